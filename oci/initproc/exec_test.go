package initproc_test

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// sleeper starts a container that stays until the test ends, and returns its pid.
func sleeper(t *testing.T, edit func(*box)) (pid int) {
	t.Helper()
	b := newBox(t, "sleep 1000")
	if edit != nil {
		edit(b)
	}
	c := b.start()
	t.Cleanup(func() { c.cmd.Kill(); c.cmd.Wait() })
	if reports := c.readReports(); len(reports) > 0 {
		t.Fatal(reports[0])
	}
	return c.cmd.Pid
}

// newExec is another process of a container. The parent joins the PID namespace,
// here by nsenter, as setns(2) takes effect for children.
func newExec(t *testing.T, pid int, script string) *box {
	t.Helper()
	b := &box{t: t, wrap: []string{"nsenter", "--target=" + itoa(pid), "--pid"}}
	b.m = &initmsg.Message{Mode: initmsg.ModeExec, StartFile: initmsg.NoFile}
	for _, n := range []struct {
		flag uint64
		name string
	}{{unix.CLONE_NEWNET, "net"}, {unix.CLONE_NEWIPC, "ipc"}, {unix.CLONE_NEWUTS, "uts"}, {unix.CLONE_NEWCGROUP, "cgroup"}, {unix.CLONE_NEWNS, "mnt"}} {
		f, err := os.Open("/proc/" + itoa(pid) + "/ns/" + n.name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		b.m.Join = append(b.m.Join, initmsg.Namespace{Type: n.flag, File: b.file(f)})
	}
	b.m.Process = initmsg.Process{
		Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/tmp", ConsoleFile: initmsg.NoFile,
		UID: 1000, GID: 1000, Caps: &initmsg.Capabilities{}, NoNewPrivs: true, Seccomp: allowAll(),
		OOMScoreAdj: ptr[int32](700),
	}
	return b
}

func TestExec(t *testing.T) {
	pid := sleeper(t, nil)
	b := newExec(t, pid, `hostname; pwd; id -u; echo $HOME; grep -E 'CapEff|CapBnd|Seccomp:|NoNewPrivs' /proc/self/status; cat /proc/self/oom_score_adj; cd /proc/self/fd; echo *; test $$ -gt 1 && echo pid namespace; ls /`)
	want(t, "output", b.ok(), `
box
/tmp
1000
/home/app
CapEff:	0000000000000000
CapBnd:	0000000000000000
NoNewPrivs:	1
Seccomp:	2
`[1:]+"700\n0 1 2 3\npid namespace\nbin\ndev\netc\nproc\nroot\nsys\ntmp")

	b = newExec(t, pid, "")
	b.m.Process.Args = []string{"nosuch"}
	b.fails("exec", unix.ENOENT, "not found in $PATH")
}

func TestExecTerminal(t *testing.T) {
	pid := sleeper(t, nil)
	b := newExec(t, pid, "tty; stty size")
	child, conn := consolePair(t)
	p := &b.m.Process
	p.Terminal, p.ConsoleFile, p.ConsoleRows, p.ConsoleCols = true, b.file(child), 20, 40
	c := b.start()
	child.Close()
	if reports := c.readReports(); len(reports) > 0 {
		t.Fatal(reports[0])
	}
	want(t, "terminal", readTerminal(t, conn), "/dev/pts/0\n20 40")
	c.cmd.Wait()
}

// TestExecByPath joins by path in the host's mount namespace, the mount namespace not last.
func TestExecByPath(t *testing.T) {
	pid := sleeper(t, nil)
	b := newExec(t, pid, "hostname; readlink /proc/self/ns/net")
	b.files = nil
	dir := "/proc/" + itoa(pid) + "/ns/"
	b.m.Join = []initmsg.Namespace{
		{Type: unix.CLONE_NEWNS, Path: dir + "mnt", File: -1},
		{Type: unix.CLONE_NEWUTS, Path: dir + "uts", File: -1},
		{Type: unix.CLONE_NEWNET, Path: dir + "net", File: -1},
	}
	link, err := os.Readlink(dir + "net")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "output", b.ok(), "box\n"+link)
}

// TestExecCgroup is in the container's cgroup before anything else.
func TestExecCgroup(t *testing.T) {
	needRoot(t)
	const base = "/sys/fs/cgroup/pids"
	if _, err := os.Stat(base + "/tasks"); err != nil {
		t.Skip("needs the pids controller of cgroup v1")
	}
	dir, err := os.MkdirTemp(base, "initproc-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		waitUntil(t, "remove the cgroup", func() bool { return syscall.Rmdir(dir) == nil })
	})
	pid := sleeper(t, nil)
	b := newExec(t, pid, "cat /proc/self/cgroup")
	b.m.Join = b.m.Join[:3:3]
	mnt, err := os.Open("/proc/" + itoa(pid) + "/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	defer mnt.Close()
	b.m.Join = append(b.m.Join, initmsg.Namespace{Type: unix.CLONE_NEWNS, File: b.file(mnt)})
	b.m.CgroupTasks = []string{dir + "/tasks"}
	if out := b.ok(); !strings.Contains(out, ":pids:/initproc-test-") && !strings.Contains(out, strings.TrimPrefix(dir, base)) {
		t.Errorf("cgroups = %q; want %s", out, dir)
	}
}
