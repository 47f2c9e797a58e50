package initproc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/testtools"
)

const busybox = "/bin/busybox"

// initBinary is the init, built from this tree.
func initBinary(t testing.TB) string {
	t.Helper()
	return filepath.Join(testtools.Binaries(t), "cri-shim-init")
}

const containerFlags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET

// box is one container to be: the message and what the parent does about it.
type box struct {
	t         testing.TB
	root      string // of the image
	m         *initmsg.Message
	flags     uintptr
	files     []*os.File
	stdin     string
	stdinFile *os.File
	wrap      []string // runs the init
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs /bin/busybox (busybox-static)")
	}
}

// newBox is a container as the kubelet would ask for, that runs a shell script.
func newBox(t testing.TB, script string) *box {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	b := &box{t: t, root: filepath.Join(dir, "rootfs"), flags: containerFlags}
	makeImage(t, b.root)
	staging := filepath.Join(dir, "staging")
	if err := os.Mkdir(staging, 0o700); err != nil {
		t.Fatal(err)
	}
	b.m = &initmsg.Message{
		Mode:      initmsg.ModeContainer,
		StartFile: initmsg.NoFile,
		Root:      &initmsg.Root{File: initmsg.NoFile, Path: b.root, Staging: staging},
		Mounts: []initmsg.Mount{
			{FSType: "proc", Source: "proc", File: initmsg.NoFile, Target: "/proc", AttrSet: nosuid | nodev | noexec},
			{FSType: "tmpfs", Source: "tmpfs", File: initmsg.NoFile, Target: "/dev", AttrSet: nosuid | unix.MOUNT_ATTR_STRICTATIME, Options: []string{"mode=755", "size=65536k"}},
			{FSType: "devpts", Source: "devpts", File: initmsg.NoFile, Target: "/dev/pts", AttrSet: nosuid | noexec, Options: []string{"newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{FSType: "tmpfs", Source: "shm", File: initmsg.NoFile, Target: "/dev/shm", AttrSet: nosuid | nodev | noexec, Options: []string{"mode=1777", "size=65536k"}},
			{FSType: "mqueue", Source: "mqueue", File: initmsg.NoFile, Target: "/dev/mqueue", AttrSet: nosuid | nodev | noexec},
			{FSType: "sysfs", Source: "sysfs", File: initmsg.NoFile, Target: "/sys", AttrSet: nosuid | nodev | noexec | rdonly},
		},
		Devices: []initmsg.Device{
			char("/dev/null", 1, 3), char("/dev/zero", 1, 5), char("/dev/full", 1, 7),
			char("/dev/random", 1, 8), char("/dev/urandom", 1, 9), char("/dev/tty", 5, 0),
		},
		Symlinks: []initmsg.Symlink{
			{Target: "/proc/self/fd", Path: "/dev/fd"}, {Target: "/proc/self/fd/0", Path: "/dev/stdin"},
			{Target: "/proc/self/fd/1", Path: "/dev/stdout"}, {Target: "/proc/self/fd/2", Path: "/dev/stderr"},
			{Target: "pts/ptmx", Path: "/dev/ptmx"},
		},
		Masked: []string{
			"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
			"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
		},
		Readonly: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		Hostname: "box",
		Process: initmsg.Process{
			Args: []string{"/bin/sh", "-c", script}, Cwd: "/", ConsoleFile: initmsg.NoFile,
			Env:  []string{"PATH=/bin"},
			Caps: &initmsg.Capabilities{Effective: defaultCaps, Permitted: defaultCaps, Bounding: defaultCaps},
		},
	}
	return b
}

const (
	nosuid = unix.MOUNT_ATTR_NOSUID
	nodev  = unix.MOUNT_ATTR_NODEV
	noexec = unix.MOUNT_ATTR_NOEXEC
	rdonly = unix.MOUNT_ATTR_RDONLY
	// defaultCaps is containerd's default set.
	defaultCaps = 0xa80425fb
)

func char(path string, major, minor uint32) initmsg.Device {
	return initmsg.Device{Path: path, Mode: unix.S_IFCHR | 0o666, Major: major, Minor: minor}
}

// makeImage makes a busybox root file system.
func makeImage(t testing.TB, root string) {
	t.Helper()
	for _, d := range []string{"bin", "etc", "tmp", "proc", "dev", "sys", "root"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(busybox, filepath.Join(root, "bin/busybox")); err != nil {
		data, err := os.ReadFile(busybox)
		if err != nil {
			t.Fatal(err)
		}
		writeTo(t, filepath.Join(root, "bin/busybox"), string(data), 0o755)
	}
	for _, name := range []string{"sh", "cat", "ls", "id", "stat", "mount", "test", "true", "false", "grep", "touch",
		"echo", "mkdir", "hostname", "readlink", "tty", "sleep", "env", "pwd", "ps", "kill", "umount", "stty", "wc", "sort", "dd", "nice", "ulimit"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	writeTo(t, filepath.Join(root, "etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", 0o644)
}

func writeTo(t testing.TB, path, data string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
}

// result is how an init ended.
type result struct {
	out, errs string
	code      int // exit status, or 128 + signal
	reports   []*initmsg.Report
	failure   error // the KindError report
}

// child is a started init.
type child struct {
	t         testing.TB
	cmd       process
	sync      *os.File
	out, errs bytes.Buffer
}

// process is an exec.Cmd, or a fork of the server that stands in for one.
type process struct {
	*os.Process
	Wait func() (*os.ProcessState, error)
}

// file adds a file to the message and returns its index.
func (b *box) file(f *os.File) int32 {
	b.files = append(b.files, f)
	return int32(len(b.files) - 1)
}

// startBox starts the init; the sync pipe is read by wait.
func (b *box) start() *child {
	b.t.Helper()
	c, err := b.launch()
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *box) launch() (*child, error) {
	data, err := initmsg.Encode(b.m)
	if err != nil {
		return nil, err
	}
	msgR, msgW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	syncR, syncW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c := &child{t: b.t, sync: syncR}
	files := append([]*os.File{msgR, syncW}, b.files...)
	if b.standsBy() {
		err = c.fork(b, data, files)
	} else {
		err = c.exec(b, files)
	}
	msgR.Close()
	syncW.Close()
	if err == nil {
		_, err = msgW.Write(data)
	}
	msgW.Close()
	return c, err
}

func (c *child) exec(b *box, files []*os.File) error {
	args := append(b.wrap, initBinary(b.t))
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = initmsg.Env()
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(b.stdin)
	if b.stdinFile != nil {
		cmd.Stdin = b.stdinFile
	}
	cmd.Stdout, cmd.Stderr = &c.out, &c.errs
	cmd.ExtraFiles = files
	cmd.SysProcAttr = sysProcAttr(b.flags)
	err := cmd.Start()
	c.cmd = process{cmd.Process, func() (*os.ProcessState, error) {
		err := cmd.Wait()
		return cmd.ProcessState, err
	}}
	return err
}

// readReports reads to the end of the sync pipe: the workload runs, or the init has failed.
func (c *child) readReports() (all []*initmsg.Report) {
	c.t.Helper()
	defer c.sync.Close()
	data, err := io.ReadAll(c.sync)
	if err != nil {
		c.t.Fatal(err)
	}
	for len(data) > 0 {
		r, rest, err := initmsg.DecodeReport(data)
		if err != nil || r == nil {
			c.t.Fatalf("DecodeReport(%q) = %v, %v", data, r, err)
		}
		if data = rest; r.Kind == initmsg.KindExecute {
			continue // the last word of every start, and no news
		}
		all = append(all, r)
	}
	return all
}

func (c *child) wait() (r result) {
	c.t.Helper()
	r.reports = c.readReports()
	for _, p := range r.reports {
		if p.Kind == initmsg.KindError {
			r.failure = p
		}
	}
	timer := time.AfterFunc(20*time.Second, func() { c.cmd.Kill() })
	defer timer.Stop()
	state, err := c.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	ws := state.Sys().(syscall.WaitStatus)
	if r.code = ws.ExitStatus(); ws.Signaled() {
		r.code = 128 + int(ws.Signal())
	}
	r.out, r.errs = c.out.String(), c.errs.String()
	return r
}

// run starts the init and waits for its end.
func (b *box) run() result { b.t.Helper(); return b.start().wait() }

// ok runs the script and wants it to succeed, and its output.
func (b *box) ok() string {
	b.t.Helper()
	r := b.run()
	if r.failure != nil || r.code != 0 {
		b.t.Fatalf("init: %v, exit %d, stdout %q, stderr %q", r.failure, r.code, r.out, r.errs)
	}
	return r.out
}

// fails wants the init to fail at a stage, with an errno where that is not 0, and with a text.
func (b *box) fails(stage string, errno syscall.Errno, text string) {
	b.t.Helper()
	r := b.run()
	if r.failure == nil {
		b.t.Fatalf("the workload ran (exit %d, stdout %q); want an error at %s", r.code, r.out, stage)
	}
	p := r.failure.(*initmsg.Report)
	if p.Stage != stage || errno != 0 && p.Errno != errno || !strings.Contains(p.Text, text) {
		b.t.Errorf("error = %q at %q, errno %d (%v); want %q at %q, %v", p.Text, p.Stage, p.Errno, p.Errno, text, stage, errno)
	}
	if r.code != 1 {
		b.t.Errorf("exit status = %d; want 1", r.code)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

func want(t testing.TB, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%s = %q; want %q", what, got, want)
	}
}

func sysProcAttr(flags uintptr) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
}

// filter is a seccomp program in the kernel's form.
func filter(instructions ...unix.SockFilter) (b []byte) {
	for _, i := range instructions {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}

func allowAll() []byte {
	return filter(unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
}

// deny gives errno for one system call.
func deny(nr uint32, errno syscall.Errno) []byte {
	return filter(
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jf: 1},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	)
}

// command is a helper program of a test.
func command(name string, args ...string) *exec.Cmd { return exec.Command(name, args...) }

// waitUntil polls for five seconds.
func waitUntil(t testing.TB, what string, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: not within 5 s", what)
}
