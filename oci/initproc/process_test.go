package initproc_test

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

func ptr[T any](v T) *T { return &v }

// status runs a container and returns the workload's /proc/self/status.
func status(t *testing.T, edit func(*initmsg.Process)) map[string]string {
	t.Helper()
	b := newBox(t, "")
	b.m.Process.Args = []string{"/bin/cat", "/proc/self/status"}
	edit(&b.m.Process)
	lines := map[string]string{}
	for line := range strings.SplitSeq(b.ok(), "\n") {
		k, v, _ := strings.Cut(line, ":")
		lines[k] = strings.Join(strings.Fields(v), " ")
	}
	return lines
}

func TestRights(t *testing.T) {
	const netBind, chown, kill = 1 << 10, 1 << 0, 1 << 5
	for name, c := range map[string]struct {
		edit func(*initmsg.Process)
		want map[string]string
	}{
		"root": {func(p *initmsg.Process) { p.NoNewPrivs, p.Seccomp = true, allowAll() }, map[string]string{
			"CapEff": "00000000a80425fb", "CapPrm": "00000000a80425fb", "CapBnd": "00000000a80425fb",
			"CapInh": "0000000000000000", "CapAmb": "0000000000000000",
			"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1", "Uid": "0 0 0 0", "Groups": "",
			"SigBlk": "0000000000000000", "SigIgn": "0000000000000000", "SigCgt": "0000000000000000", "Threads": "1", "Umask": "0022",
		}},
		"user": {func(p *initmsg.Process) {
			p.UID, p.GID, p.Groups, p.Umask = 1000, 1001, []uint32{7, 8}, ptr[uint32](0o077)
			p.Caps.Bounding = netBind | chown
		}, map[string]string{
			"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000401",
			"CapInh": "0000000000000000", "CapAmb": "0000000000000000",
			"NoNewPrivs": "0", "Seccomp": "0", "Uid": "1000 1000 1000 1000", "Gid": "1001 1001 1001 1001", "Groups": "7 8", "Umask": "0077",
		}},
		"ambient": {func(p *initmsg.Process) {
			p.UID = 1000
			p.Caps = &initmsg.Capabilities{
				Effective: netBind | kill, Permitted: netBind | kill, Inheritable: netBind | kill,
				Bounding: netBind | kill | chown, Ambient: netBind,
			}
			p.Seccomp = allowAll() // without no_new_privs: while CAP_SYS_ADMIN is there
		}, map[string]string{
			"CapEff": "0000000000000400", "CapPrm": "0000000000000400", "CapInh": "0000000000000420",
			"CapBnd": "0000000000000421", "CapAmb": "0000000000000400", "NoNewPrivs": "0", "Seccomp": "2",
		}},
		"none": {func(p *initmsg.Process) { p.Caps = &initmsg.Capabilities{} }, map[string]string{
			"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000000", "CapInh": "0000000000000000",
		}},
		"no caps asked for, not root": {func(p *initmsg.Process) { p.Caps, p.UID = nil, 5 }, map[string]string{
			"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapAmb": "0000000000000000",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got := status(t, c.edit)
			for k, v := range c.want {
				want(t, k, got[k], v)
			}
		})
	}
}

func TestProcessSettings(t *testing.T) {
	b := newBox(t, `ulimit -n; ulimit -Hn; ulimit -c; set -- $(cat /proc/self/stat); echo ${19}; cat /proc/self/oom_score_adj; cat /proc/self/personality
grep Cpus_allowed_list /proc/self/status; pwd; id -G; echo $FOO; set -- $(cat /proc/1/stat); echo $4 $5 $6`)
	p := &b.m.Process
	p.Rlimits = []initmsg.Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 100, Hard: 200}, {Resource: unix.RLIMIT_CORE}}
	p.Scheduler = &initmsg.Scheduler{Policy: unix.SCHED_BATCH, Nice: 7}
	p.OOMScoreAdj = ptr[int32](500)
	p.Affinity = []uint64{1}
	p.IOPriority = ptr[uint32](2<<13 | 6)
	p.Personality = ptr[uint32](0x40000) // ADDR_NO_RANDOMIZE
	p.NUMAMode = ptr[uint32](unix.MPOL_PREFERRED)
	p.NUMAMask = []uint64{1}
	p.Cwd, p.CreateCwd = "/new/dir", true
	p.UID, p.GID, p.Groups = 1000, 1000, []uint32{5}
	p.Env = append(p.Env, "FOO=bar")
	want(t, "output", b.ok(), `
100
200
0
7
500
00040000
Cpus_allowed_list:	0
/new/dir
1000 5
bar
0 1 1`)
}

func TestExtraFiles(t *testing.T) {
	b := newBox(t, `cat <&3; cat <&4; cd /proc/self/fd; echo *`)
	for _, s := range []string{"unused", "first\n", "second\n"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		w.WriteString(s)
		w.Close()
		b.file(r)
	}
	b.m.Process.FirstExtra, b.m.Process.ExtraFiles = 1, 2
	want(t, "output", b.ok(), "first\nsecond\n0 1 2 3 4 5") // 5 is the shell's own

	b = newBox(t, "true")
	b.m.Process.FirstExtra, b.m.Process.ExtraFiles = 3, 1
	b.fails("start", unix.EBADF, "file of the message 3")
}

func TestHomeAndPath(t *testing.T) {
	b := newBox(t, `echo $HOME $PATH`)
	b.m.Process.Env, b.m.Process.UID = nil, 1000
	want(t, "environment", b.ok(), "/home/app /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	// A passwd file that never ends must not hang the start.
	b = newBox(t, `echo $HOME`)
	os.Remove(filepath.Join(b.root, "etc/passwd"))
	if err := syscall.Mkfifo(filepath.Join(b.root, "etc/passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	want(t, "HOME", b.ok(), "/")
}

func TestCommandErrors(t *testing.T) {
	for _, c := range []struct {
		arg, text string
		errno     syscall.Errno
	}{
		{"nosuch", `exec: "nosuch": executable file not found in $PATH`, unix.ENOENT},
		{"/no/such", `exec: "/no/such": stat /no/such: no such file or directory`, unix.ENOENT},
		{"/etc/passwd", `exec: "/etc/passwd": permission denied`, unix.EACCES},
		{"/etc", `exec: "/etc": is a directory`, unix.EISDIR},
		{"/bin/garbage", `exec /bin/garbage: exec format error`, unix.ENOEXEC},
	} {
		b := newBox(t, "")
		writeTo(t, filepath.Join(b.root, "bin/garbage"), "not a program", 0o755)
		b.m.Process.Args = []string{c.arg}
		b.fails("exec", c.errno, c.text)
	}
	b := newBox(t, "")
	b.m.Process.Args = nil
	b.fails("pivot", 0, "no command")
}

func TestCwdErrors(t *testing.T) {
	b := newBox(t, "true")
	b.m.Process.Cwd = "/no/such"
	b.fails("cwd", unix.ENOENT, "/no/such")
	b = newBox(t, "true")
	b.m.Process.Cwd = "/etc/passwd"
	b.fails("cwd", unix.ENOTDIR, "/etc/passwd")
	b = newBox(t, "pwd") // root may, the user may not
	b.m.Process.Cwd, b.m.Process.UID = "/closed", 1000
	os.Mkdir(filepath.Join(b.root, "closed"), 0o700)
	want(t, "cwd", b.ok(), "/closed")
}

func TestSeccomp(t *testing.T) {
	for _, nnp := range []bool{true, false} {
		b := newBox(t, "hostname x 2>&1; true")
		b.m.Process.NoNewPrivs, b.m.Process.Seccomp = nnp, deny(unix.SYS_SETHOSTNAME, unix.ENOANO)
		want(t, "output", b.ok(), "hostname: sethostname: No anode")
	}
	// Only execve is called after a filter that is loaded last.
	b := newBox(t, "")
	b.m.Process.NoNewPrivs = true
	b.m.Process.Seccomp = only(unix.SYS_EXECVE)
	r := b.run()
	if r.failure != nil || r.code != 128+int(unix.SIGSYS) {
		t.Errorf("with only execve allowed: %v, exit %d; want the workload to be killed by SIGSYS", r.failure, r.code)
	}
	b = newBox(t, "true")
	b.m.Process.NoNewPrivs, b.m.Process.Seccomp = true, []byte{1, 2, 3}
	b.fails("exec", 0, "seccomp filter")
}

func TestSeccompListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type message struct {
		state string
		files int
	}
	got := make(chan message, 1)
	go func() {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		buf, oob := make([]byte, 100), make([]byte, 100)
		n, oobn, _, _, _ := c.ReadMsgUnix(buf, oob)
		cm, _ := unix.ParseSocketControlMessage(oob[:oobn])
		files := 0
		for i := range cm {
			fds, _ := unix.ParseUnixRights(&cm[i])
			files += len(fds)
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
		got <- message{string(buf[:n]), files}
	}()
	b := newBox(t, "true")
	b.m.Process.NoNewPrivs, b.m.Process.Seccomp = true, allowAll()
	b.m.Process.SeccompListener, b.m.Process.SeccompState = path, []byte("{}")
	b.ok()
	select {
	case m := <-got:
		if m.state != "{}" || m.files != 1 {
			t.Errorf("the agent got %+v; want the state and one descriptor", m)
		}
	case <-time.After(5 * time.Second):
		t.Error("the agent got nothing")
	}
}

func TestInheritedSignals(t *testing.T) {
	// The init starts with signals ignored and blocked, as from a shell's nohup.
	b := newBox(t, "")
	b.m.Process.Args = []string{"/bin/grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"}
	b.wrap = []string{"/bin/sh", "-c", `trap "" HUP TERM PIPE USR1; exec "$0"`}
	want(t, "signals", b.ok(), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000")
}

func TestHooks(t *testing.T) {
	dir := t.TempDir()
	hook := func(script string, timeout uint64) initmsg.Hook {
		return initmsg.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"OUT=" + dir, "PATH=/bin:/usr/bin"}, Timeout: timeout}
	}
	b := newBox(t, "cat /started")
	b.m.State = []byte(`{"id":"x"}`)
	b.m.CreateContainerHooks = []initmsg.Hook{hook("cat > $OUT/created; hostname >> $OUT/created", 5)}
	b.m.StartContainerHooks = []initmsg.Hook{hook("cat > /started; id -u >> /started", 0)}
	b.m.Process.NoNewPrivs, b.m.Process.Seccomp = true, allowAll()
	want(t, "startContainer", b.ok(), `{"status":"created","pid":1,"id":"x"}0`)
	want(t, "createContainer", read(t, dir+"/created"), `{"status":"creating","pid":1,"id":"x"}box`)

	b = newBox(t, "true")
	b.m.CreateContainerHooks = []initmsg.Hook{hook("echo broken >&2; exit 3", 0)}
	b.fails("hooks", 0, "createContainer hook /bin/sh: exit status 3: broken")
	b = newBox(t, "true")
	b.m.StartContainerHooks = []initmsg.Hook{hook("sleep 100", 1)}
	start := time.Now()
	b.fails("hooks", 0, "no end after 1 s")
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("the timeout took %v", d)
	}
}

func TestStartGate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gate")
	if err := syscall.Mkfifo(path, 0o622); err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o622)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "gate")
	defer f.Close()
	b := newBox(t, "echo started")
	b.m.StartFile, b.m.Process.UID = b.file(f), 1000
	b.m.Process.NoNewPrivs, b.m.Process.Seccomp = true, only(unix.SYS_EXECVE)
	b.m.Process.Seccomp = allowAll()
	c := b.start()
	frame := make([]byte, 100)
	n, err := c.sync.Read(frame)
	if r, _, err2 := initmsg.DecodeReport(frame[:n]); err != nil || err2 != nil || r == nil || r.Kind != initmsg.KindReady {
		t.Fatalf("first report = %v, %v, %v; want ready", r, err, err2)
	}
	time.Sleep(20 * time.Millisecond)
	// By identity: the link's text leaves out what a mount of its own was mounted on.
	link := "/proc/" + itoa(c.cmd.Pid) + "/exe"
	exe, err := os.Stat(link)
	binary, err2 := os.Stat(initBinary(t))
	if err != nil || err2 != nil || !os.SameFile(exe, binary) {
		name, _ := os.Readlink(link)
		t.Fatalf("before the gate the process is %q, %v, %v; want the init", name, err, err2)
	}
	data := []byte(read(t, path))
	if r, rest, err := initmsg.DecodeReport(data); err != nil || r == nil || r.Kind != initmsg.KindExecute || len(rest) != 0 {
		t.Errorf("the fifo has %q; want that the workload is executed", data)
	}
	// Nothing is left of the first pipe: who starts the container learns from the FIFO how it went.
	if n, err := c.sync.Read(frame); n != 0 || err != io.EOF {
		t.Errorf("after the gate the pipe has %d, %v; want its end", n, err)
	}
	r := c.wait()
	if r.failure != nil || r.out != "started\n" {
		t.Errorf("after the gate: %v, %q", r.failure, r.out)
	}
}

// consolePair is the socket pair for the terminal's master.
func consolePair(t *testing.T) (child *os.File, parent *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := os.NewFile(uintptr(fds[1]), "parent")
	defer p.Close()
	conn, err := net.FileConn(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return os.NewFile(uintptr(fds[0]), "console"), conn.(*net.UnixConn)
}

// readTerminal receives the master and reads it to its end.
func readTerminal(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf, oob := make([]byte, 100), make([]byte, 100)
	_, n, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		t.Fatal(err)
	}
	cm, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(cm) != 1 {
		t.Fatal(cm, err)
	}
	fds, err := unix.ParseUnixRights(&cm[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	master := os.NewFile(uintptr(fds[0]), "master")
	defer master.Close()
	var out []byte
	for {
		b := make([]byte, 1000)
		n, err := master.Read(b)
		out = append(out, b[:n]...)
		if err != nil { // EIO when the last slave is closed
			return strings.ReplaceAll(string(out), "\r\n", "\n")
		}
	}
}

func TestTerminal(t *testing.T) {
	b := newBox(t, `tty; stty size; echo on console > /dev/console; echo on tty > /dev/tty; stat -c '%t:%T %u' /dev/console /dev/pts/0; cd /proc/self/fd; echo *`)
	child, conn := consolePair(t)
	p := &b.m.Process
	p.Terminal, p.ConsoleFile, p.ConsoleRows, p.ConsoleCols = true, b.file(child), 33, 99
	p.UID = 1000
	c := b.start()
	child.Close()
	if reports := c.readReports(); len(reports) > 0 {
		t.Fatal(reports[0])
	}
	want(t, "terminal", readTerminal(t, conn), "/dev/pts/0\n33 99\non console\non tty\n88:0 1000\n88:0 1000\n0 1 2 3")
	c.cmd.Wait()
}

func only(nr uint32) []byte {
	return filter(
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jt: 1},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	)
}
