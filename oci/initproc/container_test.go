package initproc_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

func TestContainer(t *testing.T) {
	b := newBox(t, `
hostname; id -u; id -g; id -G; pwd; echo $HOME; echo $PATH; echo $$; umask
cd /proc/self/fd && echo *
ls -ld /dev/null /dev/ptmx /dev/fd | while read m x; do echo $m; done
echo x > /dev/null && echo null works
touch /tmp/x && echo root is writable`)
	want(t, "output", b.ok(), `
box
0
0
0
/
/root
/bin
1
0022
0 1 2 3
lrwxrwxrwx
crw-rw-rw-
lrwxrwxrwx
null works
root is writable
`)
	if _, err := os.Stat(filepath.Join(b.root, "tmp/x")); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(b.root, "dev")); err != nil || len(left) != 0 {
		t.Errorf("the image's own /dev has %v, %v; want nothing", left, err)
	}
}

func TestReadonlyRoot(t *testing.T) {
	b := newBox(t, `touch /x 2>&1; touch /dev/shm/x && echo shm; grep -o ' / r[ow],[^ ]* ' /proc/self/mountinfo`)
	b.m.Root.Readonly = true
	// The root keeps the other flags of the mount that it is on.
	var fs unix.Statfs_t
	if err := unix.Statfs(b.root, &fs); err != nil {
		t.Fatal(err)
	}
	atime := "relatime"
	if fs.Flags&unix.ST_NOATIME != 0 {
		atime = "noatime"
	}
	want(t, "output", b.ok(), "touch: /x: Read-only file system\nshm\n / ro,"+atime)
}

// TestRootByFile hands the root in as a detached mount.
func TestRootByFile(t *testing.T) {
	b := newBox(t, `hostname; ls /proc/1/root/bin/sh`)
	fd, err := unix.OpenTree(unix.AT_FDCWD, b.root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "root")
	defer f.Close()
	b.m.Root.File, b.m.Root.Path = b.file(f), ""
	before := read(t, "/proc/self/mountinfo")
	want(t, "output", b.ok(), "box\n/proc/1/root/bin/sh")
	if after := read(t, "/proc/self/mountinfo"); after != before {
		t.Errorf("the host's mounts changed:\n%s\n%s", before, after)
	}
}

func TestMasks(t *testing.T) {
	b := newBox(t, `
for f in interrupts version cmdline; do stat -c '%F %t:%T' /proc/$f; done
ls -A /sys/firmware | wc -l
touch /sys/firmware/x 2>&1
echo 1 > /proc/sys/kernel/panic; ls /masked; cat /secret; touch /locked/x 2>&1`)
	b.m.Masked = append(b.m.Masked, "/proc/version", "/proc/cmdline", "/masked", "/secret", "/missing", "/secret/below")
	b.m.Readonly = append(b.m.Readonly, "/locked", "/missing")
	os.MkdirAll(filepath.Join(b.root, "masked/in"), 0o755)
	os.MkdirAll(filepath.Join(b.root, "locked"), 0o755)
	writeTo(t, filepath.Join(b.root, "secret"), "secret", 0o644)
	r := b.run()
	want(t, "output", r.out, `
character special file 1:3
character special file 1:3
character special file 1:3
0
touch: /sys/firmware/x: Read-only file system
touch: /locked/x: Read-only file system`)
	if !strings.Contains(r.errs, "/proc/sys/kernel/panic: Read-only file system") {
		t.Errorf("stderr = %q; want /proc/sys to be read-only", r.errs)
	}
}

func TestBinds(t *testing.T) {
	b := newBox(t, `cat /etc/resolv.conf; cat /vol/a/f; touch /vol/a/x 2>&1; touch /vol/ro/sub/x 2>&1; touch /vol/rro/sub/x 2>&1
readlink /etc/resolv.conf; cat /copy/etc/f; cat /copy/etc/link; stat -c %a /copy/etc/f; stat -c %u:%a /copy; touch /copy/new && echo copied`)
	vol := t.TempDir()
	writeTo(t, filepath.Join(vol, "f"), "file\n", 0o644)
	tree := t.TempDir()
	os.Mkdir(filepath.Join(tree, "sub"), 0o755)
	if err := unix.Mount("tmpfs", filepath.Join(tree, "sub"), "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(filepath.Join(tree, "sub"), unix.MNT_DETACH) })
	// As images of distributions have it: a link to what only systemd makes.
	os.Symlink("../run/systemd/resolve/stub-resolv.conf", filepath.Join(b.root, "etc/resolv.conf"))
	os.MkdirAll(filepath.Join(b.root, "copy/etc"), 0o755)
	os.Chown(filepath.Join(b.root, "copy"), 7, 7)
	writeTo(t, filepath.Join(b.root, "copy/etc/f"), "copied\n", 0o640)
	os.Symlink("f", filepath.Join(b.root, "copy/etc/link"))
	b.m.Mounts = append(b.m.Mounts,
		initmsg.Mount{Source: filepath.Join(vol, "f"), File: initmsg.NoFile, Target: "/etc/resolv.conf"},
		initmsg.Mount{Source: vol, File: initmsg.NoFile, Target: "/vol/a", AttrSet: rdonly},
		initmsg.Mount{Source: tree, File: initmsg.NoFile, Target: "/vol/ro", AttrSet: rdonly, Recursive: true},
		initmsg.Mount{Source: tree, File: initmsg.NoFile, Target: "/vol/rro", RecAttrSet: rdonly, Recursive: true},
		initmsg.Mount{FSType: "tmpfs", File: initmsg.NoFile, Target: "/copy", TmpCopyUp: true, Options: []string{"size=1m"}},
		initmsg.Mount{FSType: "no-such-fs", File: initmsg.NoFile, Target: "/none", Optional: true},
	)
	want(t, "output", b.ok(), `
file
file
touch: /vol/a/x: Read-only file system
touch: /vol/rro/sub/x: Read-only file system
../run/systemd/resolve/stub-resolv.conf
copied
copied
640
7:755
copied`)
	if _, err := os.Stat(filepath.Join(b.root, "none")); err == nil {
		t.Error("the target of a mount that was left out was made")
	}
}

// TestPropagation mounts on the host while the container runs, and the other way round.
func TestPropagation(t *testing.T) {
	needRoot(t)
	host := t.TempDir()
	if err := unix.Mount("tmpfs", host, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(host, unix.MNT_DETACH) })
	if err := unix.Mount("", host, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"in", "out"} {
		os.Mkdir(filepath.Join(host, d), 0o755)
	}
	for name, c := range map[string]struct {
		root, mount uint64
		in, out     bool
	}{
		"private":       {0, unix.MS_PRIVATE | unix.MS_REC, false, false},
		"slave":         {0, unix.MS_SLAVE | unix.MS_REC, true, false},
		"of the root":   {0, 0, true, false},
		"of no root":    {unix.MS_PRIVATE | unix.MS_REC, 0, false, false},
		"bidirectional": {unix.MS_SHARED | unix.MS_REC, unix.MS_SHARED | unix.MS_REC, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, `mount -t tmpfs x /vol/out; read x; ls /vol/in`)
			b.m.Process.Caps = nil
			b.m.Root.Propagation = c.root
			b.m.Mounts = append(b.m.Mounts, initmsg.Mount{Source: host, File: initmsg.NoFile, Target: "/vol", Recursive: true, Propagation: c.mount})
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			before := read(t, "/proc/self/mountinfo")
			b.stdinFile = r
			child := b.start()
			r.Close()
			if reports := child.readReports(); len(reports) > 0 {
				t.Fatal(reports[0])
			}
			waitUntil(t, "the script mounts", func() bool {
				return strings.Contains(read(t, "/proc/"+itoa(child.cmd.Pid)+"/mountinfo"), " /vol/out ")
			})
			in := filepath.Join(host, "in")
			if err := unix.Mount("tmpfs", in, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			writeTo(t, filepath.Join(in, "seen"), "", 0o644)
			mounts := read(t, "/proc/self/mountinfo")
			if got := strings.Contains(mounts, host+"/out "); got != c.out {
				t.Errorf("the container's mount on the host: %v; want %v", got, c.out)
			}
			w.Write([]byte("\n"))
			w.Close()
			child.cmd.Wait()
			if got := strings.TrimSpace(child.out.String()) == "seen"; got != c.in {
				t.Errorf("the host's mount in the container: %v (%q); want %v", got, child.out.String(), c.in)
			}
			unix.Unmount(in, unix.MNT_DETACH)
			unix.Unmount(filepath.Join(host, "out"), unix.MNT_DETACH)
			if after := read(t, "/proc/self/mountinfo"); after != before {
				t.Errorf("the host's mounts changed:\n%s\n%s", before, after)
			}
		})
	}
}

func TestSysctlHostnameDomain(t *testing.T) {
	b := newBox(t, `cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni /proc/sys/kernel/domainname`)
	b.m.Domainname = "example"
	b.m.Sysctls = []initmsg.Sysctl{{Name: "net/ipv4/ip_unprivileged_port_start", Value: "7"}, {Name: "kernel/shmmni", Value: "77"}}
	want(t, "sysctls", b.ok(), "7\n77\nexample")

	for _, name := range []string{"../sysrq-trigger", "net/../../sysrq-trigger", "no/such", "../self/oom_score_adj"} {
		b := newBox(t, "true")
		b.m.Sysctls = []initmsg.Sysctl{{Name: name, Value: "5"}}
		b.fails("sysctl", 0, name)
	}
}

func TestNoPivot(t *testing.T) {
	b := newBox(t, `ls /; cat /proc/self/mountinfo | grep -c ' proc '`)
	b.m.Root.NoPivot = true
	b.m.Readonly, b.m.Masked = nil, nil
	want(t, "output", b.ok(), "bin\ndev\netc\nproc\nroot\nsys\ntmp\n1")
}

func TestDevices(t *testing.T) {
	b := newBox(t, `stat -c '%F %t:%T %u:%g %a' /dev/mine /dev/deep/fifo /dev/bound; ls -l /dev/core; echo; cat /dev/bound | wc -c`)
	b.m.Devices = append(b.m.Devices,
		initmsg.Device{Path: "/dev/mine", Mode: unix.S_IFBLK | 0o640, Major: 7, Minor: 3, UID: 5, GID: 6},
		initmsg.Device{Path: "/dev/deep/fifo", Mode: unix.S_IFIFO | 0o622},
		initmsg.Device{Path: "/dev/bound", Mode: unix.S_IFCHR, Major: 1, Minor: 3, Bind: "/dev/null"},
	)
	b.m.Symlinks = append(b.m.Symlinks, initmsg.Symlink{Target: "/proc/kcore", Path: "/dev/core"}, initmsg.Symlink{Target: "x", Path: "/dev/null"})
	out := b.ok()
	for _, line := range []string{"block special file 7:3 5:6 640\n", "fifo 0:0 0:0 622\n", "character special file 1:3 ", "/dev/core -> /proc/kcore"} {
		if !strings.Contains(out, line) {
			t.Errorf("output %q lacks %q", out, line)
		}
	}
	b = newBox(t, "true")
	b.m.Mounts = nil
	b.m.Masked, b.m.Readonly = nil, nil
	writeTo(t, filepath.Join(b.root, "dev/null"), "fake", 0o644)
	b.fails("devices", 0, "something else at this path")
}

func TestNamespacesRefused(t *testing.T) {
	for _, c := range []struct {
		edit func(*initmsg.Message)
		text string
	}{
		{func(m *initmsg.Message) {
			m.Join = []initmsg.Namespace{{Type: unix.CLONE_NEWUSER, Path: "/proc/self/ns/user", File: -1}}
		}, "user namespace"},
		{func(m *initmsg.Message) {
			m.Join = []initmsg.Namespace{{Type: unix.CLONE_NEWPID, Path: "/proc/self/ns/pid", File: -1}}
		}, "pid namespace"},
		{func(m *initmsg.Message) { m.Unshare = unix.CLONE_NEWUSER }, "user namespace"},
		{func(m *initmsg.Message) { m.Unshare = unix.CLONE_NEWTIME }, "time namespace"},
		{func(m *initmsg.Message) {
			m.Join = []initmsg.Namespace{{Type: unix.CLONE_NEWNET, Path: "/proc/self/ns/ipc", File: -1}}
		}, "join the network namespace"},
		{func(m *initmsg.Message) {
			m.Join = []initmsg.Namespace{{Type: unix.CLONE_NEWNET, Path: "/no/such", File: -1}}
		}, "/no/such"},
	} {
		b := newBox(t, "true")
		c.edit(b.m)
		b.fails("namespaces", 0, c.text)
	}
}

func TestUnshareCgroup(t *testing.T) {
	b := newBox(t, `cat /proc/self/cgroup | grep -v ':/$'; true`)
	b.m.Unshare = unix.CLONE_NEWCGROUP
	if out := b.ok(); out != "" {
		t.Errorf("cgroups = %q; want all of them to be the root", out)
	}
}

// TestCgroup enters v1 groups, before the cgroup namespace is made.
func TestCgroup(t *testing.T) {
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
	b := newBox(t, `grep pids /proc/self/cgroup; grep pids /proc/self/mountinfo; cat /cg/cgroup.procs | wc -l; ls -d /cg/initproc* 2>/dev/null`)
	b.m.CgroupTasks = []string{filepath.Join(dir, "tasks")}
	b.m.Unshare = unix.CLONE_NEWCGROUP
	b.m.Mounts = append(b.m.Mounts, initmsg.Mount{FSType: "cgroup", Source: "cgroup", File: -1, Target: "/cg", Options: []string{"pids"}, AttrSet: rdonly | nosuid})
	r := b.run()
	if r.failure != nil {
		t.Fatal(r.failure)
	}
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if len(lines) != 3 || !strings.HasSuffix(lines[0], ":pids:/") || !strings.Contains(lines[1], " / /cg ro,nosuid") || lines[2] == "0" {
		t.Errorf("output = %q; want the cgroup as the root", lines)
	}
	b = newBox(t, "true")
	b.m.CgroupTasks = []string{base + "/no-such-group/tasks"}
	b.fails("cgroup", unix.ENOENT, "no-such-group/tasks")
}

// wantMounts compares mountinfo, which is sorted by the age of mounts: some of an init that stood by are older than others.
func wantMounts(t *testing.T, got, expected string) {
	t.Helper()
	if os.Getenv(standbyEnv) != "" {
		sorted := func(s string) string {
			return strings.Join(slices.Sorted(strings.SplitSeq(strings.TrimSpace(s), "\n")), "\n")
		}
		got, expected = sorted(got), sorted(expected)
	}
	want(t, "output", got, expected)
}

// TestMountsBelowTmpfs: what is mounted below a tmpfs that was just mounted is where a search for its target would have put
// it: on what was mounted over the tmpfs, also by way of a link of the image, on an entry that is there already, and not
// where the target's last part is none.
func TestMountsBelowTmpfs(t *testing.T) {
	b := newBox(t, `cat /a/dir/f /a/file; stat -c %a /a/dir2 /a/file2 2>&1; ls /twice /link /twice/in; cat /over/f; ls /up; cat /up/f
grep -c ' /up/.. ' /proc/self/mountinfo; cut -d' ' -f5 /proc/self/mountinfo | grep -E '^/(a|twice|over)'`)
	dirs := []string{t.TempDir(), t.TempDir()}
	for i, d := range dirs {
		writeTo(t, filepath.Join(d, "f"), "f"+strconv.Itoa(i)+"\n", 0o644)
	}
	os.MkdirAll(filepath.Join(b.root, "twice"), 0o755)
	os.Symlink("twice", filepath.Join(b.root, "link"))
	tmpfs := func(at string) initmsg.Mount {
		return initmsg.Mount{FSType: "tmpfs", Source: "tmpfs", File: initmsg.NoFile, Target: at, Options: []string{"size=64k"}}
	}
	bind := func(source, at string) initmsg.Mount {
		return initmsg.Mount{Source: source, File: initmsg.NoFile, Target: at, AttrSet: rdonly, Propagation: unix.MS_PRIVATE}
	}
	b.m.Mounts = append(b.m.Mounts,
		tmpfs("/a"), bind(dirs[0], "/a/dir"), bind(filepath.Join(dirs[1], "f"), "/a/file"),
		tmpfs("/twice"), bind(dirs[0], "/twice/hidden"), tmpfs("/link"), bind(dirs[1], "/twice/in"),
		tmpfs("/over"), bind(dirs[0], "/over/x"), bind(dirs[1], "/over/x"), bind(dirs[1], "/over"), bind(filepath.Join(dirs[0], "f"), "/over/f"),
		tmpfs("/up"), bind(filepath.Join(dirs[0], "f"), "/up/f"),
	)
	wantMounts(t, b.ok(), `
f0
f1
stat: can't stat '/a/dir2': No such file or directory
stat: can't stat '/a/file2': No such file or directory
/link:
in

/twice:
in

/twice/in:
f
f0
f
f0
0
/a
/a/dir
/a/file
/twice
/twice/hidden
/twice
/twice/in
/over
/over/x
/over/x
/over
/over/f`)
	b = newBox(t, "true")
	b.m.Mounts = append(b.m.Mounts, tmpfs("/b"), bind(filepath.Join(dirs[0], "f"), "/b/file"), bind(dirs[0], "/b/file/below"))
	b.fails("mount", unix.ENOTDIR, "/b/file/below")
	b = newBox(t, "true")
	b.m.Mounts = append(b.m.Mounts, tmpfs("/b"), bind(filepath.Join(dirs[0], "f"), "/b/file"), bind(dirs[0], "/b/file"))
	b.fails("mount", unix.ENOTDIR, "the target is not a directory")
}
