package oci

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/testtools"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci/cgroup"
	"github.com/cri-shim/cri-shim/oci/launcher"
)

const busybox = "/bin/busybox"

// node is a Runtime on this machine, with an image to run.
type node struct {
	t       testing.TB
	runtime *Runtime
	rootfs  string
	init    *os.File
	server  launcher.Server
	n       int
}

func newNode(t testing.TB, cfg Config) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs /bin/busybox (busybox-static)")
	}
	cg, err := cgroup.Detect()
	if err != nil {
		t.Skipf("needs control groups: %v", err)
	}
	t.Cleanup(func() { cg.Close() })
	dir := t.TempDir()
	cfg.Staging = filepath.Join(dir, "staging")
	if err := os.Mkdir(cfg.Staging, 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := New(cg, cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, runtime: r, rootfs: filepath.Join(dir, "rootfs")}
	n.makeImage()
	program, err := os.Open(filepath.Join(testtools.Binaries(t), "cri-shim-init"))
	if err != nil {
		t.Fatal(err)
	}
	if n.init, err = sys.SealedExecutable("cri-shim-init", program); errors.Is(err, sys.ErrMemfdNoExec) {
		n.init = program
	} else if program.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.server.Close()
		n.init.Close()
		reapServer(t)
	})
	if err := n.server.Warm(n.init); err != nil {
		t.Fatal(err)
	}
	return n
}

// reapServer waits for the ends of a server of inits and of what it was forked from.
func reapServer(t testing.TB) {
	for range 2 {
		var st syscall.WaitStatus
		if _, err := syscall.Wait4(-1, &st, 0, nil); err != nil && err != syscall.ECHILD {
			t.Error(err)
		}
	}
}

func (n *node) makeImage() {
	n.t.Helper()
	for _, d := range []string{"bin", "etc", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(n.rootfs, d), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		n.t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"bin/busybox": data,
		"etc/passwd":  []byte("root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"),
		"etc/group":   []byte("root:x:0:\nwheel:x:10:app\n"),
	} {
		if err := os.WriteFile(filepath.Join(n.rootfs, name), content, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := os.Symlink("busybox", filepath.Join(n.rootfs, "bin/sh")); err != nil {
		n.t.Fatal(err)
	}
}

// params is a container that runs a script; every applet of busybox is a builtin of its shell's.
func (n *node) params(script string) Params {
	n.t.Helper()
	n.n++
	root, err := os.Open(n.rootfs)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { root.Close() })
	id := "test-" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(n.n)
	pod := &workload.Pod{Metadata: workload.PodMetadata{Name: "p"}, Hostname: "p"}
	return Params{
		Pod: pod, PodID: "oci-" + strconv.Itoa(os.Getpid()), ContainerID: id,
		Container: &workload.Container{
			Command: []string{"/bin/sh", "-c", script},
			Security: workload.Security{
				MaskedPaths: defaultMasked, ReadonlyPaths: defaultReadonly,
				Seccomp: &workload.Profile{Kind: workload.ProfileRuntimeDefault},
			},
		},
		Root: root, RootPath: n.rootfs,
		CgroupPath: n.runtime.CgroupPath(pod, "oci-"+strconv.Itoa(os.Getpid()), id),
	}
}

// prepare undoes the container at the end of the test.
func (n *node) prepare(p Params) *Prepared {
	n.t.Helper()
	c, err := n.runtime.Prepare(n.t.Context(), p)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := n.runtime.Remove(ctx, p.CgroupPath); err != nil {
			n.t.Error(err)
		}
		n.removeParent(filepath.Dir(p.CgroupPath))
	})
	return c
}

// removeParent removes the test's own group once nothing is below it, and the group of all pods if it is empty then.
func (n *node) removeParent(path string) {
	for _, h := range n.runtime.mounts.Hierarchies {
		os.Remove(filepath.Join(h.Mountpoint, path))
		os.Remove(filepath.Join(h.Mountpoint, "/cri-shim"))
	}
	if n.runtime.mounts.V2 {
		os.Remove(filepath.Join("/sys/fs/cgroup", path))
		os.Remove("/sys/fs/cgroup/cri-shim")
	}
}

type running struct {
	process  *os.Process
	out      bytes.Buffer
	copied   chan struct{}
	failures []string
}

// wait returns an error unless the process ended with status 0.
func (r *running) wait() error {
	st, err := r.process.Wait()
	<-r.copied
	if err == nil && !st.Success() {
		err = errors.New(st.String())
	}
	return err
}

// start launches what was prepared as a supervisor would, by a server of inits.
func (n *node) start(c *Prepared) *running {
	n.t.Helper()
	child, r := n.launch(c)
	warnings, err := child.Executed()
	r.failures = warnings
	if r.process.Pid != child.PID {
		if r.process, err = os.FindProcess(child.PID); err != nil {
			n.t.Fatal(err)
		}
	}
	if err != nil {
		r.failures = append(r.failures, err.Error())
	}
	return r
}

// launch starts the init and returns while it works.
func (n *node) launch(c *Prepared) (*launcher.Child, *running) {
	n.t.Helper()
	encoded, err := initmsg.Encode(c.Message)
	if err != nil {
		n.t.Fatal(err)
	}
	message, err := sys.Memfd("message", encoded)
	if err != nil {
		n.t.Fatal(err)
	}
	defer message.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		n.t.Fatal(err)
	}
	defer null.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		n.t.Fatal(err)
	}
	defer outW.Close()
	p := launcher.Process{
		Init: n.init, Message: message, Stdio: [3]*os.File{null, outW, outW}, Files: c.Files,
		CloneFlags: c.CloneFlags, Cgroup: c.CgroupFD, Server: &n.server,
		UserNamespace: c.UserNamespace, TimeNamespace: c.TimeNamespace, TimeOffsets: c.TimeOffsets, Host: c.Host, Affinity: c.Affinity, Late: c.LatePID,
	}
	if c.PIDNamespace != "" {
		if p.PIDNamespace, err = os.Open(c.PIDNamespace); err != nil {
			n.t.Fatal(err)
		}
		defer p.PIDNamespace.Close()
	}
	child, err := launcher.Start(p)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { child.Pidfd.Close() })
	r := &running{copied: make(chan struct{})}
	if r.process, err = os.FindProcess(child.PID); err != nil {
		n.t.Fatal(err)
	}
	go func() {
		io.Copy(&r.out, outR)
		outR.Close()
		close(r.copied)
	}()
	return child, r
}

// run waits for the end of a container and returns its lines, "key value".
func (n *node) run(p Params) map[string]string {
	n.t.Helper()
	r := n.start(n.prepare(p))
	timer := time.AfterFunc(20*time.Second, func() { r.process.Kill() })
	defer timer.Stop()
	if err := r.wait(); err != nil || len(r.failures) > 0 {
		n.t.Fatalf("container: %v, %q, output %q", err, r.failures, r.out.String())
	}
	out := map[string]string{}
	for line := range strings.Lines(r.out.String()) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		out[k] = v
	}
	return out
}

func TestContainerSeesItsLimits(t *testing.T) {
	n := newNode(t, Config{Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}, PidsLimit: 50})
	files := map[string]string{
		"memory": "/sys/fs/cgroup/memory/memory.limit_in_bytes", "quota": "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
		"shares": "/sys/fs/cgroup/cpu/cpu.shares", "pids": "/sys/fs/cgroup/pids/pids.max",
	}
	want := map[string]string{"memory": "67108864", "quota": "50000", "shares": "256", "pids": "50"}
	if n.runtime.mounts.V2 {
		files = map[string]string{"memory": "/sys/fs/cgroup/memory.max", "quota": "/sys/fs/cgroup/cpu.max", "pids": "/sys/fs/cgroup/pids.max"}
		want = map[string]string{"memory": "67108864", "quota": "50000 100000", "pids": "50"}
	}
	script := `PATH=/bin; b=/bin/busybox
echo uid $($b id -u); echo gid $($b id -g); echo groups $($b id -G)
echo nofile $(ulimit -S -n) $(ulimit -H -n)
echo oom $($b cat /proc/self/oom_score_adj)
echo nnp $($b grep NoNewPrivs /proc/self/status); echo seccomp $($b grep Seccomp: /proc/self/status)
echo caps $($b grep CapBnd /proc/self/status)
echo pid $$; echo hosts $($b cat /etc/hosts); echo home $HOME; echo cwd $PWD
$b touch /x 2>/dev/null; echo rootfs $?; $b touch /data/x 2>/dev/null; echo rw $?; $b touch /data-ro/x 2>/dev/null; echo ro $?
$b mkdir /sys/fs/cgroup/x 2>/dev/null; echo cgroupfs $?; echo 1 2>/dev/null >/proc/sys/kernel/panic; echo sysctl $?
echo masked $($b wc -c </proc/interrupts); echo dev $($b ls /dev); echo own $($b cat /proc/self/cgroup | $b grep -c -v ':/$')
`
	for k, f := range files {
		script += "echo " + k + " $($b cat " + f + ")\n"
	}
	p := n.params(script)
	data := t.TempDir()
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(data, 0o777); err != nil {
		t.Fatal(err)
	}
	p.Hosts = hosts
	p.Container.Mounts = []workload.Mount{
		{ContainerPath: "/data", HostPath: data}, {ContainerPath: "/data-ro", HostPath: data, Readonly: true, RecursiveReadonly: true},
	}
	p.Container.WorkingDir = "/tmp"
	p.Container.Resources = &workload.Resources{CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 256, MemoryLimit: 64 << 20, OOMScoreAdj: 500}
	s := &p.Container.Security
	s.RunAsUsername, s.NoNewPrivs, s.ReadonlyRootfs = "app", true, true
	s.DropCapabilities, s.AddCapabilities = []string{"ALL"}, []string{"CHOWN"}
	got := n.run(p)
	for k, v := range map[string]string{
		"uid": "1000", "gid": "1000", "groups": "1000 10", "nofile": "100 200", "oom": "500",
		"nnp": "NoNewPrivs: 1", "seccomp": "Seccomp: 2", "caps": "CapBnd: 0000000000000001", "pid": "1",
		"hosts": "127.0.0.1 localhost", "home": "/home/app", "cwd": "/tmp",
		"rootfs": "1", "rw": "0", "ro": "1", "cgroupfs": "1", "own": "0", "sysctl": "1", "masked": "0",
		"dev": "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
	} {
		want[k] = v
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s = %q; want %q", k, got[k], v)
		}
	}
}

func TestPrivilegedContainer(t *testing.T) {
	n := newNode(t, Config{})
	p := n.params(`b=/bin/busybox
echo caps $($b grep CapBnd /proc/self/status); echo seccomp $($b grep Seccomp: /proc/self/status)
$b test -c /dev/kmsg; echo kmsg $?; $b touch /sys/kernel/profiling 2>/dev/null; $b mount | $b grep -q ' /sys type sysfs (rw'; echo sys $?
`)
	p.Pod.Security.Privileged, p.Container.Security.Privileged = true, true
	got := n.run(p)
	own := strconv.FormatUint(n.runtime.host.Capabilities, 16)
	if !strings.HasSuffix(got["caps"], own) || got["seccomp"] != "Seccomp: 0" || got["sys"] != "0" {
		t.Errorf("privileged container: %v; want capabilities %s, no seccomp, sysfs rw", got, own)
	}
	if _, err := os.Stat("/dev/kmsg"); err == nil && got["kmsg"] != "0" {
		t.Error("/dev/kmsg is not in a privileged container")
	}
}

func TestExecUpdateStatsKill(t *testing.T) {
	n := newNode(t, Config{})
	p := n.params("/bin/busybox sleep 100")
	p.Container.Resources = &workload.Resources{MemoryLimit: 64 << 20}
	c := n.prepare(p)
	r := n.start(c)
	if len(r.failures) > 0 {
		t.Fatalf("container: %q", r.failures)
	}
	alive := 0
	e, err := n.runtime.Exec(t.Context(), ExecParams{
		ContainerID: p.ContainerID, CgroupPath: p.CgroupPath, Spec: c.Spec, PID: r.process.Pid, LatePID: true,
		Command: []string{"/bin/sh", "-c", "echo me $(/bin/busybox id -u) $(/bin/busybox cat /proc/1/comm) $(/bin/busybox cat /proc/self/cgroup | /bin/busybox head -1)"},
		Alive:   func() error { alive++; return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if alive != 1 {
		t.Errorf("Alive was asked %d times; want once", alive)
	}
	x := n.start(e)
	if err := x.wait(); err != nil || len(x.failures) > 0 {
		t.Fatalf("exec: %v, %q, output %q", err, x.failures, x.out.String())
	}
	if got := x.out.String(); !strings.HasPrefix(got, "me 0 busybox ") || !strings.HasSuffix(got, ":/\n") {
		t.Errorf("exec printed %q; want user 0, the container's PID 1, and its group as the root", got)
	}
	if err := n.runtime.Update(t.Context(), p.CgroupPath, &workload.Resources{MemoryLimit: 96 << 20}); err != nil {
		t.Fatal(err)
	}
	stats, err := n.runtime.Stats(t.Context(), p.CgroupPath, true)
	if err != nil || stats == nil {
		t.Fatalf("Stats = %+v, %v", stats, err)
	}
	if !n.runtime.mounts.V2 {
		b, err := os.ReadFile("/sys/fs/cgroup/memory" + p.CgroupPath + "/memory.limit_in_bytes")
		if err != nil || strings.TrimSpace(string(b)) != "100663296" {
			t.Errorf("limit after Update = %q, %v; want 96 MiB", b, err)
		}
	}
	go r.wait() // reaps
	if err := n.runtime.Kill(t.Context(), p.CgroupPath); err != nil {
		t.Errorf("Kill = %v", err)
	}
	if err := n.runtime.Remove(t.Context(), p.CgroupPath); err != nil {
		t.Errorf("Remove = %v", err)
	}
	for name, f := range map[string]func(context.Context, string) error{"Kill": n.runtime.Kill, "Remove": n.runtime.Remove} {
		if err := f(t.Context(), p.CgroupPath); err != nil {
			t.Errorf("%s of a group that is gone = %v; want nil", name, err)
		}
	}
	if _, err := n.runtime.Stats(t.Context(), p.CgroupPath, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stats of a group that is gone = %v; want not exist", err)
	}
	if err := n.runtime.Update(t.Context(), p.CgroupPath, &workload.Resources{CPUShares: -1}); err == nil {
		t.Error("Update with negative shares = nil; want an error")
	}
}

// Whatever fails, no group and no descriptor stays behind.
func TestPrepareLeavesNothing(t *testing.T) {
	n := newNode(t, Config{})
	first := n.params("true")
	if err := n.prepare(first).Undo(t.Context()); err != nil { // v2 keeps the device program for the next container
		t.Fatal(err)
	}
	first.Root.Close()
	runtime.GC() // closes what other tests have forgotten, now or a little later
	before := openFiles(t)
	for name, change := range map[string]func(*Params){
		"build":  func(p *Params) { p.Image.User = "who" },
		"cgroup": func(p *Params) { p.Container.Resources = &workload.Resources{CPUSetCPUs: "9999"} },
		"edit":   func(p *Params) { p.Edit = func(*Built) error { return errors.New("no") } },
		"compile": func(p *Params) {
			p.Edit = func(b *Built) error { b.Spec.Solaris = &specs.Solaris{}; return nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := n.params("true")
			change(&p)
			_, err := n.runtime.Prepare(t.Context(), p)
			p.Root.Close()
			if err == nil || !strings.Contains(err.Error(), p.ContainerID) {
				t.Fatalf("Prepare = %v; want an error with the container's ID", err)
			}
			if _, err := n.runtime.cgroups.Open(p.CgroupPath); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("group %s after a failure: %v; want none", p.CgroupPath, err)
			}
			n.removeParent(filepath.Dir(p.CgroupPath))
		})
	}
	p := n.params("true")
	c := n.prepare(p)
	p.Root.Close()
	if err := c.Undo(t.Context()); err != nil {
		t.Errorf("Undo = %v", err)
	}
	if err := c.Undo(t.Context()); err != nil {
		t.Errorf("Undo again = %v; want nil", err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors are open; want %d", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestCheckMakesNothing(t *testing.T) {
	n := newNode(t, Config{})
	p := n.params("true")
	p.Container.Security.RunAsUsername = "whoever is in the image"
	if err := n.runtime.Check(t.Context(), p); err != nil {
		t.Errorf("Check = %v; want nil: the image is not looked at", err)
	}
	if _, err := n.runtime.cgroups.Open(p.CgroupPath); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Check made a group: %v", err)
	}
	p.Container.Mounts = []workload.Mount{{ContainerPath: "/a", HostPath: "/no/such"}}
	wantField(t, n.runtime.Check(t.Context(), p), "mounts[0].host_path", "/no/such")
}

func TestPodInitAppArmor(t *testing.T) {
	n := newNode(t, Config{})
	n.runtime.host.AppArmor, n.runtime.host.AppArmorDefault = true, "cri-shim-default"
	for i, tt := range []struct {
		security workload.PodSecurity
		want     string
	}{
		{workload.PodSecurity{}, "cri-shim-default"},
		{workload.PodSecurity{AppArmor: &workload.Profile{Kind: workload.ProfileRuntimeDefault}}, "cri-shim-default"},
		{workload.PodSecurity{AppArmor: &workload.Profile{Kind: workload.ProfileLocalhost, Localhost: "x"}}, "cri-shim-default"},
		{workload.PodSecurity{AppArmor: &workload.Profile{Kind: workload.ProfileUnconfined}}, ""},
		{workload.PodSecurity{Privileged: true}, ""},
	} {
		pod := &workload.Pod{Security: tt.security}
		id := "init-" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(i)
		c, err := n.runtime.PodInit(t.Context(), pod, id, Namespaces{})
		if err != nil {
			t.Fatal(err)
		}
		m, err := initmsg.Decode(c.Encoded)
		if err != nil || m.Process.AppArmor != tt.want {
			t.Errorf("%+v: profile %q, %v; want %q", tt.security, m.Process.AppArmor, err, tt.want)
		}
		c.Close()
		path := n.runtime.PodInitCgroup(pod, id)
		if err := n.runtime.Remove(t.Context(), path); err != nil {
			t.Error(err)
		}
		n.removeParent(filepath.Dir(path))
	}
}

func TestPodInit(t *testing.T) {
	n := newNode(t, Config{})
	pod := &workload.Pod{}
	id := "init-" + strconv.Itoa(os.Getpid())
	c, err := n.runtime.PodInit(t.Context(), pod, id, Namespaces{})
	if err != nil {
		t.Fatal(err)
	}
	path := n.runtime.PodInitCgroup(pod, id)
	t.Cleanup(func() {
		c.Close()
		if err := n.runtime.Remove(context.Background(), path); err != nil {
			t.Error(err)
		}
		n.removeParent(filepath.Dir(path))
	})
	r := n.start(c)
	if len(r.failures) > 0 {
		t.Fatalf("pod init: %q", r.failures)
	}
	pids, err := c.Group.Pids()
	if err != nil || !slices.Equal(pids, []int{r.process.Pid}) {
		t.Errorf("processes of the group = %v, %v; want %d", pids, err, r.process.Pid)
	}
	if err := r.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(10*time.Second, func() { r.process.Kill(); t.Error("the pod's init did not end on SIGTERM") })
	defer timer.Stop()
	r.wait()
}

// TestSeccompDefaultFile: the administrator's profile takes the built-in one's place, and one that is wrong is
// refused before a container needs it.
func TestSeccompDefaultFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.json", `{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
		{"names": ["read"], "action": "SCMP_ACT_ALLOW"},
		{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]}`)
	p := newProfiles()
	if err := p.useForDefault(good); err != nil {
		t.Fatal(err)
	}
	// What was read at the start counts.
	write("good.json", "not a profile any more")
	for want, caps := range map[int][]string{1: {"CAP_CHOWN"}, 2: {"CAP_SYS_ADMIN"}} {
		s, err := p.Default(caps)
		if err != nil || len(s.Syscalls) != want || s.DefaultAction != specs.ActErrno {
			t.Errorf("Default(%v) = %+v, %v; want %d rules", caps, s, err, want)
		}
	}
	for _, path := range []string{
		filepath.Join(dir, "absent"), dir, write("empty.json", ""), write("silent.json", "{}"),
		write("action.json", `{"defaultAction": "SCMP_ACT_MAYBE"}`),
		write("name.json", `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NO"}]}`),
	} {
		if err := newProfiles().useForDefault(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("useForDefault(%s) = %v; want an error that names the file", path, err)
		}
	}
}

func TestProfilesAreShared(t *testing.T) {
	p := newProfiles()
	a, err := p.Default([]string{"CAP_CHOWN"})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := p.Default([]string{"CAP_CHOWN"})
	c, _ := p.Default([]string{"CAP_CHOWN", "CAP_SYS_ADMIN"})
	if a != b || a == c {
		t.Errorf("Default: same caps share %t, other caps share %t; want true, false", a == b, a == c)
	}
	f, err := p.compile(a)
	if err != nil {
		t.Fatal(err)
	}
	g, _ := p.compile(a)
	if f != g || len(f.Program) == 0 || len(f.Program)%8 != 0 {
		t.Errorf("compile twice = %p, %p, %d bytes; want one program", f, g, len(f.Program))
	}
	other := *a
	if h, err := p.compile(&other); err != nil || !bytes.Equal(h.Program, f.Program) {
		t.Errorf("compile of a copy: %v; want the same program", err)
	}
	if len(p.filters) != 1 {
		t.Errorf("%d filters are kept by address; want the default's alone", len(p.filters))
	}
}

// mountTmpfs mounts a tmpfs of the test's own with the given propagation.
func mountTmpfs(t *testing.T, propagation string) string {
	t.Helper()
	dir := t.TempDir()
	for _, args := range [][]string{{"-t", "tmpfs", "oci-test", dir}, {"--make-" + propagation, dir}} {
		if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
			t.Skipf("mount %v: %v, %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-R", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v, %s", err, out)
		}
	})
	return dir
}

func TestPropagation(t *testing.T) {
	n := newNode(t, Config{})
	for _, tc := range []struct {
		mode          string
		toHost, toCtr string // "0" where a mount made on the other side is seen
	}{
		{mode: workload.PropagationPrivate, toHost: "1", toCtr: "1"},
		{mode: workload.PropagationHostToContainer, toHost: "1", toCtr: "0"},
		{mode: workload.PropagationBidirectional, toHost: "0", toCtr: "0"},
	} {
		t.Run(tc.mode, func(t *testing.T) {
			dir := mountTmpfs(t, "shared")
			for _, d := range []string{"a", "b"} {
				if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			p := n.params(`b=/bin/busybox
$b mount -t tmpfs inside /vol/a && $b touch /vol/a/made
i=0; while [ ! -e /vol/go ] && [ $i -lt 200 ]; do $b sleep 0.05; i=$((i+1)); done
$b test -e /vol/b/made; echo seen $?
`)
			p.Pod.Security.Privileged, p.Container.Security.Privileged = true, true
			p.Container.Mounts = []workload.Mount{{ContainerPath: "/vol", HostPath: dir, Propagation: tc.mode}}
			r := n.start(n.prepare(p))
			if len(r.failures) > 0 {
				t.Fatalf("container: %q", r.failures)
			}
			if out, err := exec.Command("mount", "-t", "tmpfs", "outside", filepath.Join(dir, "b")).CombinedOutput(); err != nil {
				t.Fatalf("mount: %v, %s", err, out)
			}
			write := func(name string) {
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write("b/made")
			got := "1"
			for range 50 {
				if _, err := os.Stat(filepath.Join(dir, "a/made")); err == nil {
					got = "0"
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			write("go")
			if err := r.wait(); err != nil {
				t.Fatalf("container: %v, %q", err, r.out.String())
			}
			if got != tc.toHost {
				t.Errorf("a mount of the container's seen on the host: %s; want %s", got, tc.toHost)
			}
			if out := strings.TrimSpace(r.out.String()); out != "seen "+tc.toCtr {
				t.Errorf("a mount of the host's: %q; want %q", out, "seen "+tc.toCtr)
			}
		})
	}
	t.Run("not shared", func(t *testing.T) {
		p := n.params("true")
		p.Container.Mounts = []workload.Mount{{ContainerPath: "/v", HostPath: mountTmpfs(t, "private"), Propagation: workload.PropagationBidirectional}}
		_, err := n.runtime.Prepare(t.Context(), p)
		wantField(t, err, "mounts[0].propagation", "not shared")
		n.removeParent(filepath.Dir(p.CgroupPath))
	})
}

func TestDeviceAccess(t *testing.T) {
	n := newNode(t, Config{})
	p := n.params(`b=/bin/busybox
$b dd if=/dev/only-read of=/dev/null count=1 bs=1 2>/dev/null; echo read $?
echo x 2>/dev/null >/dev/only-read; echo write $?
$b mknod /dev/other c 1 11; echo mknod $?
$b dd if=/dev/other of=/dev/null count=1 bs=1 2>/dev/null; echo denied $?
`)
	p.Container.Devices = []workload.Device{{HostPath: "/dev/hwrng", ContainerPath: "/dev/only-read", Permissions: "r"}}
	if f, err := os.Open("/dev/hwrng"); err != nil {
		t.Skipf("needs a working /dev/hwrng: %v", err)
	} else {
		f.Close()
	}
	got := n.run(p)
	if got["write"] == "0" || got["mknod"] != "0" || got["denied"] == "0" {
		t.Errorf("device access = %v; want a device that may only be read, a node that can be made, and no access to it", got)
	}
}

// A container in the PID namespace of its pod sees the pod's init.
func TestSharedPIDNamespace(t *testing.T) {
	n := newNode(t, Config{})
	pod := &workload.Pod{}
	id := "pid-" + strconv.Itoa(os.Getpid())
	c, err := n.runtime.PodInit(t.Context(), pod, id, Namespaces{})
	if err != nil {
		t.Fatal(err)
	}
	path := n.runtime.PodInitCgroup(pod, id)
	t.Cleanup(func() {
		c.Close()
		if err := n.runtime.Remove(context.Background(), path); err != nil {
			t.Error(err)
		}
		n.removeParent(filepath.Dir(path))
	})
	init := n.start(c)
	defer func() {
		init.process.Kill()
		init.wait()
	}()
	p := n.params("echo comm $(/bin/busybox cat /proc/1/comm); /bin/busybox test $$ -gt 1; echo pid $?")
	p.Namespaces.PID, p.Namespaces.PIDPath = PIDJoin, "/proc/"+strconv.Itoa(init.process.Pid)+"/ns/pid"
	if got := n.run(p); got["comm"] != "pod-init" || got["pid"] != "0" {
		t.Errorf("container of a shared PID namespace = %v; want pod-init as PID 1", got)
	}
	if k := n.prepare(p).KillGroup; len(k) == 0 {
		t.Error("KillGroup of a container without a PID namespace of its own is empty")
	}
}
