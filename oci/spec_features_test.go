package oci

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// exec runs a script in a running container and returns its lines, "key value".
func (n *node) exec(p Params, c *Prepared, pid int, script string) map[string]string {
	n.t.Helper()
	e, err := n.runtime.Exec(n.t.Context(), ExecParams{
		ContainerID: p.ContainerID, CgroupPath: p.CgroupPath, Spec: c.Spec, PID: pid, LatePID: true, Command: []string{"/bin/sh", "-c", script},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	defer e.Close()
	x := n.start(e)
	if err := x.wait(); err != nil || len(x.failures) > 0 {
		n.t.Fatalf("exec: %v, %q, output %q", err, x.failures, x.out.String())
	}
	out := map[string]string{}
	for line := range strings.Lines(x.out.String()) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		out[k] = v
	}
	return out
}

func expect(t *testing.T, got, want map[string]string) {
	t.Helper()
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s = %q; want %q", k, got[k], v)
		}
	}
}

// What a process is given before it runs, as it sees it itself.
func TestSpecFeaturesProcess(t *testing.T) {
	n := newNode(t, Config{})
	p := n.params(`b=/bin/busybox
echo sched $($b awk '{print $41, $19}' /proc/self/stat); echo io $($b ionice -p $$); echo machine $($b uname -m)
echo numa $($b head -1 /proc/self/numa_maps); echo domain $($b cat /proc/sys/kernel/domainname)
echo umask $(umask); echo root $($b awk '$5 == "/" && /shared:/' /proc/self/mountinfo | $b wc -l); echo sysctl $($b cat /proc/sys/kernel/shmmni)
`)
	p.Edit = func(b *Built) error {
		s := b.Spec
		pr, l := s.Process, s.Linux
		pr.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
		pr.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
		pr.User.Umask = ptr[uint32](0o27)
		l.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		if numa() {
			l.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}
		}
		l.RootfsPropagation = "shared"
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.UTSNamespace}, specs.LinuxNamespace{Type: specs.IPCNamespace})
		l.Sysctl = map[string]string{"kernel.shmmni": "4095"}
		s.Domainname = "example.test"
		return nil
	}
	got := n.run(p)
	expect(t, got, map[string]string{
		"sched": "3 5", "io": "best-effort: prio 6", "machine": "i686", "domain": "example.test", "umask": "0027", "sysctl": "4095",
	})
	if got["root"] == "0" {
		t.Error("the root is not shared; want rootfsPropagation to make it so")
	}
	if numa() && !strings.Contains(got["numa"], "bind:0") {
		t.Errorf("numa_maps = %q; want the policy bind:0", got["numa"])
	}
}

func numa() bool {
	_, err := os.Stat("/proc/self/numa_maps")
	return err == nil
}

func TestSpecFeaturesTime(t *testing.T) {
	if _, err := os.Stat("/proc/self/ns/time"); err != nil {
		t.Skip("needs time namespaces (Linux 5.6)")
	}
	n := newNode(t, Config{})
	const uptime = `echo up $(/bin/busybox cut -d. -f1 /proc/uptime)`
	a := n.params(`echo; exec /bin/busybox sleep 100`)
	a.Edit = func(b *Built) error {
		s := b.Spec
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 100000000}, "monotonic": {Secs: 5, Nanosecs: 6}}
		return nil
	}
	c := n.prepare(a)
	r := n.start(c)
	defer func() { r.process.Kill(); r.wait() }()
	if len(r.failures) > 0 {
		t.Fatalf("start: %q", r.failures)
	}
	later := func(where string, got map[string]string) {
		t.Helper()
		if up, err := strconv.Atoi(got["up"]); err != nil || up < 100000000 {
			t.Errorf("uptime of %s = %q; want that of the time namespace", where, got["up"])
		}
	}
	later("an exec", n.exec(a, c, r.process.Pid, uptime))
	b := n.params(uptime)
	b.Edit = func(b *Built) error {
		s := b.Spec
		path := "/proc/" + strconv.Itoa(r.process.Pid) + "/ns/time"
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace, Path: path})
		return nil
	}
	later("a container that joins by path", n.run(b))
}

func TestSpecFeaturesMounts(t *testing.T) {
	n := newNode(t, Config{})
	vol := t.TempDir()
	sub := filepath.Join(vol, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := sys.MountTmpfs(sub, 1<<20, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.UnmountDetach(sub); err != nil {
			t.Error(err)
		}
	})
	p := n.params(`b=/bin/busybox
for v in ro rro; do
$b touch /$v/x 2>/dev/null; echo $v-top $?; $b touch /$v/sub/x 2>/dev/null; echo $v-below $?
done
echo flags $($b awk '$5 == "/flags/sub" {print $6}' /proc/self/mountinfo)
echo copied $($b head -1 /etc/passwd) $($b stat -f -c %T /etc); $b touch /etc/new; echo made $?
echo links $($b ls -l /etc/link | $b wc -l)
`)
	if err := os.Symlink("passwd", filepath.Join(n.rootfs, "etc/link")); err != nil {
		t.Fatal(err)
	}
	p.Edit = func(b *Built) error {
		s := b.Spec
		bind := func(at string, options ...string) specs.Mount {
			return specs.Mount{Destination: at, Type: "bind", Source: vol, Options: append(options, "rbind")}
		}
		s.Mounts = append(s.Mounts, bind("/ro", "ro"), bind("/rro", "rro"), bind("/flags", "rnoatime", "rnosymfollow", "rsuid", "rro"),
			specs.Mount{Destination: "/etc", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup", "size=1m"}})
		return nil
	}
	got := n.run(p)
	expect(t, got, map[string]string{
		"ro-top": "1", "ro-below": "0", "rro-top": "1", "rro-below": "1",
		"copied": "root:x:0:0::/root:/bin/sh tmpfs", "made": "0", "links": "1",
	})
	for _, flag := range []string{"ro", "noatime", "nosymfollow", "nodev"} {
		if !strings.Contains(","+got["flags"]+",", ","+flag+",") {
			t.Errorf("options below a recursive bind = %q; want %s among them", got["flags"], flag)
		}
	}
	if strings.Contains(got["flags"], "nosuid") {
		t.Errorf("options below a recursive bind = %q; want rsuid to take nosuid away", got["flags"])
	}
	if _, err := os.Lstat(filepath.Join(n.rootfs, "etc/new")); err == nil {
		t.Error("the image was written to through a copy of it")
	}
}

func TestIDMappedMount(t *testing.T) {
	n := newNode(t, Config{})
	vol := t.TempDir()
	file := filepath.Join(vol, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(file, 7, 8); err != nil {
		t.Fatal(err)
	}
	p := n.params(`b=/bin/busybox; echo file $($b stat -c %u:%g /vol/file); echo plain $($b stat -c %u:%g /plain/file)`)
	uids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 100}}
	gids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 2000, Size: 100}}
	p.Edit = func(b *Built) error {
		s := b.Spec
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/vol", Type: "bind", Source: vol, Options: []string{"rbind", "idmap"}, UIDMappings: uids, GIDMappings: gids},
			specs.Mount{Destination: "/plain", Type: "bind", Source: vol, Options: []string{"bind"}})
		return nil
	}
	c, err := n.runtime.Prepare(t.Context(), p)
	if errors.Is(err, syscall.EINVAL) {
		t.Skipf("needs a temporary folder whose file system can be idmapped: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Undo(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, n.run(p), map[string]string{"file": "1007:2008", "plain": "7:8"})

	p = n.params(`echo tmp $(/bin/busybox stat -c %u:%g /tmp)`)
	p.Edit = func(b *Built) error {
		b.Spec.Mounts = append(b.Spec.Mounts,
			specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"idmap"}, UIDMappings: uids, GIDMappings: gids})
		return nil
	}
	r := n.start(n.prepare(p))
	err = r.wait()
	if len(r.failures) == 1 && strings.HasSuffix(r.failures[0], "idmap a mount of type tmpfs: invalid argument") {
		t.Skip("needs a tmpfs that can be idmapped (Linux 6.3)")
	}
	if err != nil || r.out.String() != "tmp 1000:2000\n" {
		t.Errorf("an idmapped tmpfs: %v, %q, %q", err, r.failures, r.out.String())
	}
}

func TestSpecFeaturesExec(t *testing.T) {
	n := newNode(t, Config{})
	p := n.params(`echo; exec /bin/busybox sleep 100`)
	p.Edit = func(b *Built) error {
		s := b.Spec
		s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0", Final: "0"}
		return nil
	}
	c := n.prepare(p)
	r := n.start(c)
	defer func() { r.process.Kill(); r.wait() }()
	const cpus = `echo cpus $(/bin/busybox awk '/Cpus_allowed_list/{print $2}' /proc/self/status)`
	expect(t, n.exec(p, c, r.process.Pid, cpus), map[string]string{"cpus": "0"})
	p.Edit = nil
	c.Spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "100"} // the node has no such CPU
	e, err := n.runtime.Exec(t.Context(), ExecParams{ContainerID: p.ContainerID, CgroupPath: p.CgroupPath, Spec: c.Spec, PID: r.process.Pid, Command: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if len(e.Affinity) != 2 || e.Affinity[1] != 1<<36 || len(e.Message.Process.Affinity) != 0 {
		t.Errorf("Affinity = %x, then %x; want CPU 100 to start on and nothing after", e.Affinity, e.Message.Process.Affinity)
	}
}
