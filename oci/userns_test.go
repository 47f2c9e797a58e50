package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
)

// usernsPod pins a pod's namespaces, which belong to a user namespace, and has p join them. The root is idmapped.
func usernsPod(t testing.TB, p *Params) {
	t.Helper()
	dir := t.TempDir()
	ids := []workload.IDMapping{{HostID: 200000, Length: 65536}}
	p.Pod.Security.Namespaces.User = &workload.UserNamespace{Mode: workload.ModePod, UIDs: ids, GIDs: ids}
	var pins []sys.NamespacePin
	for _, n := range []struct {
		flag uintptr
		name string
		to   *string
	}{
		{sys.NamespaceNet, "net", &p.Namespaces.Net}, {sys.NamespaceIPC, "ipc", &p.Namespaces.IPC},
		{sys.NamespaceUTS, "uts", &p.Namespaces.UTS}, {sys.NamespaceUser, "user", &p.Namespaces.User},
	} {
		*n.to = filepath.Join(dir, n.name)
		if n.flag == sys.NamespaceNet {
			*n.to = filepath.Join(dir, "netns", n.name)
		}
		pins = append(pins, sys.NamespacePin{Flag: n.flag, Path: *n.to})
	}
	maps := []sys.IDMap{{Outside: 200000, Size: 65536}}
	if err := sys.PinUserNamespaces(pins, maps, maps, sys.LoopbackUp); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pin := range pins {
			if err := sys.UnpinNamespace(pin.Path); err != nil {
				t.Error(err)
			}
		}
		if err := sys.UnmountDetach(filepath.Join(dir, "netns")); err != nil {
			t.Error(err)
		}
	})
	ns, err := os.Open(p.Namespaces.User)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	root, err := sys.CloneMount(p.RootPath, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	if err := sys.IDMapMount(root, ns, false); err != nil {
		t.Fatal(idMapError(p.RootPath, false, err))
	}
	p.Root, p.RootPath = root, ""
}

func TestUserNamespaceContainer(t *testing.T) {
	n := newNode(t, Config{})
	p := n.params(`b=/bin/busybox
echo map $($b cat /proc/self/uid_map); echo uid $($b id -u); echo root $($b stat -c %u:%g /bin/busybox); echo pid $$
$b touch /new && echo new $($b stat -c %u /new); $b chown 5:6 /new && echo chown $($b stat -c %u:%g /new)
echo vol $($b stat -c %u:%g /vol/file); $b touch /vol/made; echo made $?
echo plain $($b stat -c %u /plain/file); echo hosts $($b cat /etc/hosts)
echo null $(echo x >/dev/null && echo ok); $b test -c /dev/urandom && echo dev ok
echo stdout >/dev/stderr; $b mount -t tmpfs none /tmp 2>/dev/null; echo mounted $?
$b mknod /n c 1 3 2>/dev/null; echo mknod $?; echo caps $($b grep CapEff /proc/self/status)
echo sysfs $($b ls /sys/class/net); echo shm $($b touch /dev/shm/x && echo ok); echo mq $($b ls -d /dev/mqueue)
echo masked $($b wc -c </proc/interrupts); echo panic $(echo 1 2>/dev/null >/proc/sys/kernel/panic; echo $?)
echo hostname $($b hostname); echo seccomp $($b grep Seccomp: /proc/self/status); echo nofile $(ulimit -H -n)
`)
	usernsPod(t, &p)
	dir := t.TempDir()
	// Nobody but the host's root may enter here: what is mounted comes as a descriptor.
	closed := filepath.Join(dir, "closed")
	for _, d := range []string{closed, filepath.Join(closed, "vol"), filepath.Join(closed, "plain")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, owner := range map[string]int{"vol/file": 7, "plain/file": 7, "hosts": 0} {
		path := filepath.Join(closed, name)
		if err := os.WriteFile(path, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(closed, "plain"), 0o755); err != nil {
		t.Fatal(err)
	}
	ids := p.Pod.Security.Namespaces.User.UIDs
	p.Hosts = filepath.Join(closed, "hosts")
	p.Container.Mounts = []workload.Mount{
		{ContainerPath: "/vol", HostPath: filepath.Join(closed, "vol"), UIDMappings: ids, GIDMappings: ids},
		{ContainerPath: "/plain", HostPath: filepath.Join(closed, "plain")},
	}
	p.Container.Resources = &workload.Resources{MemoryLimit: 64 << 20, OOMScoreAdj: 500}
	got := n.run(p)
	for k, v := range map[string]string{
		"map": "0 200000 65536", "uid": "0", "root": "0:0", "pid": "1", "new": "0", "chown": "5:6",
		"vol": "7:7", "made": "0", "plain": "65534", "hosts": "127.0.0.1 localhost", "null": "ok", "dev": "ok",
		"mounted": "1", "mknod": "1", "sysfs": "lo", "shm": "ok", "mq": "/dev/mqueue",
		"masked": "0", "panic": "1", "seccomp": "Seccomp: 2",
	} {
		if got[k] != v {
			t.Errorf("%s = %q; want %q", k, got[k], v)
		}
	}
	// On disk nothing has changed hands, and what the container made belongs to no user of the host.
	for path, uid := range map[string]uint32{
		filepath.Join(n.rootfs, "bin/busybox"): 0, filepath.Join(closed, "vol/file"): 7, filepath.Join(closed, "vol/made"): 0,
	} {
		st, err := sys.StatNode(path)
		if err != nil || st.UID != uid {
			t.Errorf("owner of %s on the host = %d, %v; want %d", path, st.UID, err, uid)
		}
	}
}

func TestUserNamespaceExec(t *testing.T) {
	n := newNode(t, Config{})
	p := n.params("echo $$; exec /bin/busybox sleep 100")
	p.Container.Security.MaskedPaths = defaultMasked
	p.Container.Resources = &workload.Resources{OOMScoreAdj: 300}
	usernsPod(t, &p)
	c := n.prepare(p)
	r := n.start(c)
	defer func() { r.process.Kill(); r.wait() }()
	if len(r.failures) > 0 {
		t.Fatalf("start: %q", r.failures)
	}
	e, err := n.runtime.Exec(t.Context(), ExecParams{
		ContainerID: p.ContainerID, CgroupPath: p.CgroupPath, Spec: c.Spec, PID: r.process.Pid, LatePID: true,
		Command: []string{"/bin/sh", "-c", `b=/bin/busybox
echo map $($b cat /proc/self/uid_map); echo id $($b id -u); $b kill -0 1; echo seen $?; echo oom $($b cat /proc/self/oom_score_adj)
echo groups $($b cat /proc/self/cgroup | $b grep -vc ':/$'); echo ns $($b readlink /proc/self/ns/user) $($b readlink /proc/1/ns/user)
$b touch /by-exec; echo made $?; echo caps $($b grep CapEff /proc/self/status); echo seccomp $($b grep Seccomp: /proc/self/status)`},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	x := n.start(e)
	if err := x.wait(); err != nil || len(x.failures) > 0 {
		t.Fatalf("exec: %v, %q, output %q", err, x.failures, x.out.String())
	}
	got := map[string]string{}
	for line := range strings.Lines(x.out.String()) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[k] = v
	}
	for k, v := range map[string]string{
		"map": "0 200000 65536", "id": "0", "seen": "0", "oom": "300", "groups": "0", "made": "0",
		"caps": "CapEff: 00000000a80425fb", "seccomp": "Seccomp: 2",
	} {
		if got[k] != v {
			t.Errorf("%s = %q; want %q", k, got[k], v)
		}
	}
	if a, b, _ := strings.Cut(got["ns"], " "); a != b || a == "" {
		t.Errorf("user namespaces of exec and container = %q; want the same", got["ns"])
	}
}

// A file system that cannot be idmapped is named, with its path and its type.
func TestIDMapRefused(t *testing.T) {
	n := newNode(t, Config{})
	p := n.params("true")
	ids := []workload.IDMapping{{HostID: 200000, Length: 65536}}
	p.Container.Mounts = []workload.Mount{{ContainerPath: "/v", HostPath: "/proc/sys", UIDMappings: ids, GIDMappings: ids}}
	_, err := n.runtime.Prepare(t.Context(), p)
	if err == nil || !strings.Contains(err.Error(), "/proc/sys") || !strings.Contains(err.Error(), "/proc: proc") {
		t.Errorf("Prepare = %v; want an error that names /proc/sys and its file system, proc", err)
	}
	n.removeParent(filepath.Dir(p.CgroupPath))
}
