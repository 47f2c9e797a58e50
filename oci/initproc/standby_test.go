package initproc_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// standbyEnv has boxes started by forks that were made ahead: shown the box's own message, or another one.
const standbyEnv = "INITPROC_TEST_STANDBY"

// TestStandingBy runs this package's tests with inits that stand by: what they do must be the same in every way, whatever
// they were shown.
func TestStandingBy(t *testing.T) {
	needRoot(t)
	if os.Getenv(standbyEnv) != "" {
		t.Skip("runs in itself")
	}
	for _, shown := range []string{"own", "other"} {
		t.Run(shown, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.v", "-test.skip=^(TestStandingBy|TestServer|TestForkWaits)")
			cmd.Env = append(os.Environ(), standbyEnv+"="+shown)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v:\n%s", err, out)
			}
			if n := strings.Count(string(out), standbyLine); n < 50 {
				t.Errorf("%d boxes were started by an init that stood by; want most of them", n)
			}
		})
	}
}

const standbyLine = "by an init that stood by"

// standsBy says whether the box can be started by a fork that was made ahead.
func (b *box) standsBy() bool {
	return os.Getenv(standbyEnv) != "" && len(b.wrap) == 0 && b.flags&unix.CLONE_NEWUSER == 0
}

// testServer is a server of inits for all tests.
var testServer struct {
	once sync.Once
	conn *sys.Caller
	err  error
}

func startTestServer(t testing.TB) (*sys.Caller, error) {
	s := &testServer
	s.once.Do(func() { s.conn, s.err = newTestServer(t) })
	return s.conn, s.err
}

func newTestServer(t testing.TB) (*sys.Caller, error) {
	data, err := initmsg.Encode(&initmsg.Message{
		Mode: initmsg.ModeServer, StartFile: initmsg.NoFile,
		Process: initmsg.Process{ConsoleFile: initmsg.NoFile, FirstExtra: initmsg.NoFile},
	})
	if err != nil {
		return nil, err
	}
	message, err := sys.Memfd("message", data)
	if err != nil {
		return nil, err
	}
	defer message.Close()
	conn, theirs, err := sys.NewCaller()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(initBinary(t))
	cmd.Env, cmd.Dir, cmd.ExtraFiles = initmsg.Env(), "/", []*os.File{message, theirs}
	if err := cmd.Run(); err != nil { // it goes on in a fork of itself
		return nil, err
	}
	for range 2 {
		if _, err := forkReply(conn); err != nil {
			return nil, err
		}
	}
	return conn, nil
}

func forkReply(conn *sys.Caller) (int, error) {
	buf := make([]byte, 512)
	n, err := conn.Recv(buf)
	if err != nil {
		return 0, err
	}
	r, err := initmsg.DecodeForkReply(buf[:n])
	if err == nil && r.Errno != 0 {
		err = unix.Errno(r.Errno)
	}
	return int(r.PID), err
}

// standby forks an init that is shown a message and returns it when it is ready.
func standby(t testing.TB, flags uint64, shown []byte) (conn *sys.Caller, pid int, err error) {
	server, err := startTestServer(t)
	if err != nil {
		return nil, 0, err
	}
	conn, theirs, err := sys.NewCaller()
	if err != nil {
		return nil, 0, err
	}
	defer theirs.Close()
	r := initmsg.ForkRequest{CloneFlags: flags, Files: 1, Standby: true}
	if err := server.Send(r.Append(nil), []*os.File{theirs}); err != nil {
		return nil, 0, err
	}
	theirs.Close()
	if pid, err = forkReply(server); err != nil {
		return nil, 0, err
	}
	message, err := sys.Memfd("message", shown)
	if err != nil {
		return nil, 0, err
	}
	defer message.Close()
	if err := conn.Send(r.Append(nil), []*os.File{message}); err != nil {
		return nil, 0, err
	}
	_, err = forkReply(conn)
	return conn, pid, err
}

// fork starts the box by an init that stands by.
func (c *child) fork(b *box, message []byte, files []*os.File) error {
	shown := message
	if os.Getenv(standbyEnv) == "other" {
		var err error
		if shown, err = initmsg.Encode(otherMessage(b)); err != nil {
			return err
		}
	}
	conn, pid, err := standby(b.t, uint64(b.flags), shown)
	if err != nil {
		return err
	}
	defer conn.Close()
	b.t.Log(standbyLine)
	stdin, out, errs, copied, err := c.pipes(b)
	if err != nil {
		return err
	}
	files = append([]*os.File{stdin, out, errs}, files...)
	r := initmsg.ForkRequest{CloneFlags: uint64(b.flags), Files: len(files)}
	err = conn.Send(r.Append(nil), files)
	for _, f := range files[:3] {
		f.Close()
	}
	if err != nil {
		return err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	c.cmd = process{p, func() (*os.ProcessState, error) {
		state, err := p.Wait()
		copied.Wait()
		if err == nil && !state.Success() {
			err = &exec.ExitError{ProcessState: state}
		}
		return state, err
	}}
	return nil
}

// pipes are what exec.Cmd makes.
func (c *child) pipes(b *box) (stdin, out, errs *os.File, copied *sync.WaitGroup, err error) {
	copied = new(sync.WaitGroup)
	if stdin = b.stdinFile; stdin != nil {
		stdin, err = sys.Dup(stdin)
	} else {
		var w *os.File
		if stdin, w, err = os.Pipe(); err == nil {
			go func() { io.WriteString(w, b.stdin); w.Close() }()
		}
	}
	if err != nil {
		return nil, nil, nil, nil, err
	}
	take := func(to io.Writer) (w *os.File, err error) {
		r, w, err := os.Pipe()
		if err == nil {
			copied.Go(func() { io.Copy(to, r); r.Close() })
		}
		return w, err
	}
	if out, err = take(&c.out); err == nil {
		errs, err = take(&c.errs)
	}
	return stdin, out, errs, copied, err
}

// otherMessage is for a container of another kind: with mounts that are the same, that are not, and in another order.
func otherMessage(b *box) *initmsg.Message {
	m := *b.m
	m.Mode, m.ExecRoot, m.PIDFile, m.HookFile, m.StartFile, m.UserNamespace = initmsg.ModeContainer, nil, nil, nil, initmsg.NoFile, false
	m.CreateContainerHooks, m.StartContainerHooks, m.Files, m.Join = nil, nil, nil, nil
	m.Process = initmsg.Process{Args: []string{"/bin/other"}, Cwd: "/", ConsoleFile: initmsg.NoFile, FirstExtra: initmsg.NoFile}
	m.Root = &initmsg.Root{File: initmsg.NoFile, Path: "/nonexistent", Staging: "/proc"}
	tmpfs := func(target string) initmsg.Mount {
		return initmsg.Mount{FSType: "tmpfs", Source: "tmpfs", File: initmsg.NoFile, Target: target, AttrSet: nosuid | unix.MOUNT_ATTR_STRICTATIME, Options: []string{"mode=755", "size=65536k"}}
	}
	m.Mounts = []initmsg.Mount{
		tmpfs("/dev"), tmpfs("/dev/other"),
		{FSType: "proc", Source: "proc", File: initmsg.NoFile, Target: "/proc", AttrSet: nosuid | nodev | noexec},
		tmpfs("/other"), {Source: "/nonexistent", File: initmsg.NoFile, Target: "/other/bind"},
	}
	m.Masked = []string{"/proc/uptime", "/proc/tty", "/etc"}
	m.Readonly = []string{"/proc/sys", "/proc/stat"}
	m.Devices = []initmsg.Device{char("/dev/null", 1, 3), char("/dev/surplus", 1, 3)}
	return &m
}

// TestStandbyEnds: with its socket, with a request that it was not made for, and with a message that it cannot read.
func TestStandbyEnds(t *testing.T) {
	b := newBox(t, "true")
	data, err := initmsg.Encode(b.m)
	if err != nil {
		t.Fatal(err)
	}
	ended := func(what string, pid int) {
		t.Helper()
		timer := time.AfterFunc(20*time.Second, func() { unix.Kill(pid, unix.SIGKILL) })
		defer timer.Stop()
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || !ws.Exited() {
			t.Errorf("%s: wait = %v, %v; want its own end", what, ws, err)
		}
	}
	conn, pid, err := standby(t, containerFlags, data)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	ended("without a parent", pid)

	conn, pid, err = standby(t, containerFlags, data)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r := initmsg.ForkRequest{CloneFlags: unix.CLONE_NEWNS, Files: 1}
	if err := conn.Send(r.Append(nil), []*os.File{null}); err != nil {
		t.Fatal(err)
	}
	ended("with other namespaces", pid)

	for _, bad := range []string{"", "\x01garbage", strings.Repeat("x", 20<<10)} {
		_, pid, err := standby(t, containerFlags, []byte(bad))
		if err == nil {
			t.Errorf("shown %.9q: ready; want its end", bad)
		}
		ended("shown nonsense", pid)
	}
}

// TestStandbyMounts: what is made ahead is made again where mounts of the message land on it by ways that only the image knows.
func TestStandbyMounts(t *testing.T) {
	t.Setenv(standbyEnv, "own")
	b := newBox(t, "grep -c ' /proc/keys ' /proc/self/mountinfo; cat /proc/keys; ls -A /proc/tty; test -c /dev/null && test -c /dev/zero && echo nodes")
	volume := t.TempDir()
	writeTo(t, filepath.Join(volume, "file"), "secret", 0o600)
	if err := os.Symlink("/proc", filepath.Join(b.root, "way")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev", filepath.Join(b.root, "devices")); err != nil {
		t.Fatal(err)
	}
	b.m.Masked = append(b.m.Masked, "/proc/tty")
	b.m.Mounts = append(b.m.Mounts,
		initmsg.Mount{Source: filepath.Join(volume, "file"), File: initmsg.NoFile, Target: "/way/keys"},
		initmsg.Mount{Source: volume, File: initmsg.NoFile, Target: "/way/tty"},
		initmsg.Mount{FSType: "tmpfs", Source: "tmpfs", File: initmsg.NoFile, Target: "/devices"})
	want(t, "what is masked", b.ok(), "3\nnodes")
}

// TestStandbyRoot: a container cannot tell from its root by whom it was made, and finds nothing below it.
func TestStandbyRoot(t *testing.T) {
	script := `ls /..; ls -d /../../proc; mount | grep -c /
busybox unshare -U true && echo user namespaces
busybox unshare -m /bin/sh -c 'echo mount namespaces; ls /; mount | grep -c /'
mkdir /n /jail && mount -t tmpfs n /n && mkdir /n/old && cd /n && busybox pivot_root . old && /old/bin/ls /old && echo pivot
/old/bin/busybox nsenter --mount=/old/proc/self/ns/mnt /old/bin/ls /
/old/bin/umount -l / && echo unmounted; /old/bin/ls / && echo /*`
	outputs := []string{}
	for _, mode := range []string{"", "own", "other"} {
		t.Setenv(standbyEnv, mode)
		b := newBox(t, script)
		b.m.Process.Caps = nil
		r := b.run()
		if r.failure != nil || !strings.Contains(r.out, "user namespaces") || !strings.Contains(r.out, "pivot") {
			t.Errorf("shown %q: %v, exit %d, %q, %q", mode, r.failure, r.code, r.out, r.errs)
		}
		outputs = append(outputs, r.out+r.errs)
	}
	want(t, "what one that stood by sees", outputs[1], outputs[0])
	want(t, "what one that was shown another message sees", outputs[2], outputs[0])
	t.Log(outputs[0])
}
