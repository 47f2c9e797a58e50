package supervisor

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cri-shim/cri-shim/internal/idle"
	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// The test binary plays the supervisor's process, and an init whose message is a shell
// script; "tty " before it asks for a terminal.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "cri-shim-supervisor":
		err := Run(Config{
			Listener: os.NewFile(3, "listener"), Init: os.NewFile(4, "init"), Release: "test",
			Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			os.Exit(1)
		}
	case "cri-shim-init":
		scriptInit()
	default:
		os.Exit(m.Run())
	}
}

func scriptInit() {
	text, _ := io.ReadAll(io.NewSectionReader(os.NewFile(initmsg.FDMessage, "message"), 0, 1<<20))
	report := os.NewFile(initmsg.FDSync, "sync")
	if script, ok := strings.CutPrefix(string(text), "late "); ok {
		lateInit(report, script)
	}
	if cause, fails := strings.CutPrefix(string(text), "fail "); fails {
		report.Write(initmsg.EncodeReport(&initmsg.Report{Kind: initmsg.KindError, Stage: "exec", Text: cause}))
		os.Exit(1)
	}
	script, tty := strings.CutPrefix(string(text), "tty ")
	if tty {
		if err := takeTerminal(); err != nil {
			report.Write(initmsg.EncodeReport(&initmsg.Report{Kind: initmsg.KindError, Stage: "terminal", Text: err.Error()}))
			os.Exit(1)
		}
	}
	report.Write(initmsg.EncodeReport(&initmsg.Report{Kind: initmsg.KindExecute}))
	for fd := initmsg.FDMessage; fd < 10; fd++ {
		syscall.CloseOnExec(fd)
	}
	syscall.Exec("/bin/sh", []string{"sh", "-c", script}, []string{"PATH=/usr/bin:/bin"})
	os.Exit(1)
}

// lateInit is an init that makes the workload as a sibling, see initmsg.Message.PIDFile. One that is held makes none, and
// one that is stuck does not see its workload executed, as if somebody traced that.
func lateInit(report *os.File, script string) {
	const page = initmsg.FirstFile + 1
	script, held := strings.CutPrefix(script, "held ")
	script, stuck := strings.CutPrefix(script, "stuck ")
	if held {
		time.Sleep(time.Hour)
	}
	report.Write(initmsg.EncodeReport(&initmsg.Report{Kind: initmsg.KindExecute, Text: "sh"}))
	report.Close()
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{
		Env: []string{"PATH=/usr/bin:/bin"}, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_PARENT},
	})
	if err != nil {
		os.Exit(int(err.(syscall.Errno)))
	}
	syscall.Pwrite(page, binary.NativeEndian.AppendUint32(nil, uint32(pid)), 0)
	if stuck {
		time.Sleep(time.Hour)
	}
	os.Exit(0)
}

// TestLaunchInTimeNamespace: the offsets of a new time namespace come with the launch.
func TestLaunchInTimeNamespace(t *testing.T) {
	if _, err := os.Stat("/proc/self/ns/time"); err != nil {
		t.Skip("needs time namespaces (Linux 5.6, CONFIG_TIME_NS)")
	}
	d := startSupervisor(t)
	how := api.Launch{CloneFlags: sys.CloneNewTime, TimeOffsets: "boottime 1000000000 0\n"}
	r, log := d.launch("c", "cut -d. -f1 /proc/uptime", how)
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	if e := d.exit("c"); e.Code != 0 {
		t.Fatalf("exit = %+v; want 0", e)
	}
	if got := content(t, log); len(got) != 1 || len(got[0]) != len("F:1000000000") || !strings.HasPrefix(got[0], "F:1") {
		t.Errorf("log = %q; want an uptime after the offset", got)
	}
}

// TestLateLaunch: the process that is told of is the workload, and its end is its own; an init that fails or is called off
// leaves nothing.
func TestLateLaunch(t *testing.T) {
	d := startSupervisor(t)
	if r, _ := d.launch("c", "exec sleep 1000", api.Launch{}); r.Err != nil {
		t.Fatal(r.Err)
	}
	exec := func(id, script string) {
		t.Helper()
		message, err := sys.Memfd("message", []byte("late "+script))
		check(t, err)
		defer message.Close()
		how := &api.Launch{PIDNamespaceOf: "c", LatePID: true}
		d.send(&api.Request{Op: api.OpLaunch, ID: id, Launch: how, Roles: []api.Role{api.RoleMessage}}, message)
	}
	reply := func() *api.Reply {
		t.Helper()
		for {
			r, err := d.recv()
			check(t, err)
			if r.Exit == nil {
				return r
			}
			d.exits = append(d.exits, r.Exit)
		}
	}
	for i := range 20 {
		id := "e" + strconv.Itoa(i)
		exec(id, "exit 7")
		if r := reply(); r.Err != nil || r.PID == 0 {
			t.Fatalf("launch: %+v", r)
		}
		if e := d.exit(id); e.Code != 7 || e.Failed != "" {
			t.Fatalf("exit = %+v; want the workload's 7", e)
		}
	}
	exec("lives", "exec sleep 1000")
	r := reply()
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", r.PID)); err != nil || string(comm) != "sh\n" && string(comm) != "sleep\n" {
		t.Errorf("process %d is %q, %v; want the workload, the shell or what it has become", r.PID, comm, err)
	}
	d.call(&api.Request{Op: api.OpSignal, ID: "lives", Signal: int(syscall.SIGKILL)})
	if e := d.exit("lives"); e.Signal != int(syscall.SIGKILL) {
		t.Errorf("exit = %+v; want SIGKILL", e)
	}
	for _, id := range []string{"held", "stuck"} {
		exec(id, id+" setsid sleep 1000 & sleep 1000; true")
		time.Sleep(200 * time.Millisecond) // until there is something to end
		d.send(&api.Request{Op: api.OpSignal, ID: id, Signal: int(syscall.SIGKILL)})
		if e := d.exit(id); e.Failed == "" {
			t.Errorf("%s: exit = %+v; want a launch that failed", id, e)
		}
	}
	children := func() (out string) {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.pid))
		for _, task := range tasks {
			b, _ := os.ReadFile(task)
			out += string(b)
		}
		return strings.TrimSpace(out)
	}
	list := d.call(&api.Request{Op: api.OpList}).Processes
	for end := time.Now().Add(5 * time.Second); strings.Contains(children(), " ") && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if got := children(); strings.Contains(got, " ") {
		t.Errorf("children of the supervisor: %s; want the container alone, of %+v", got, list)
	}
	d.call(&api.Request{Op: api.OpSignal, ID: "c", Signal: int(syscall.SIGKILL)})
	d.exit("c")
}

// takeTerminal does what the init does: the master goes over the socket, the slave becomes the stdio.
func takeTerminal() error {
	const console = initmsg.FDSync + 1
	master, err := syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var unlock int32
	ioctl := func(fd int, request, arg uintptr) (int, error) {
		r, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, arg)
		if errno != 0 {
			return -1, errno
		}
		return int(r), nil
	}
	if _, err := ioctl(master, syscall.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlock))); err != nil {
		return err
	}
	const peer = 0x5441 // TIOCGPTPEER
	slave, err := ioctl(master, peer, syscall.O_RDWR|syscall.O_NOCTTY)
	if err != nil {
		return err
	}
	if err := syscall.Sendmsg(console, []byte("ptmx"), syscall.UnixRights(master), nil, 0); err != nil {
		return err
	}
	syscall.Setsid()
	for fd := range 3 {
		if err := syscall.Dup3(slave, fd, 0); err != nil {
			return err
		}
	}
	_, err = ioctl(0, syscall.TIOCSCTTY, 0)
	return err
}

// daemon is a connection to a supervisor in a process of its own.
type daemon struct {
	t    *testing.T
	dir  string
	pid  int
	conn *sys.Conn
	seq  uint64
	// exits are the events that came while an answer was awaited.
	exits []*api.Exit
}

func startSupervisor(t *testing.T) *daemon {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("starts processes that are not dumpable (setresgid): needs root")
	}
	exe, err := os.Open("/proc/self/exe")
	check(t, err)
	defer exe.Close()
	d := &daemon{t: t, dir: t.TempDir()}
	l, err := sys.ListenSeqpacket(filepath.Join(d.dir, "sock"))
	check(t, err)
	defer l.Close()
	pid, pidfd, err := sys.Spawn(sys.SpawnAttr{
		Exe: exe, Args: []string{"cri-shim-supervisor"}, Env: []string{"GOMAXPROCS=1"},
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, l, exe}, Session: true,
	})
	check(t, err)
	d.pid = pid
	t.Cleanup(func() {
		sys.PidfdSignal(pidfd, syscall.SIGKILL)
		pidfd.Close()
		sys.WaitChild(pid)
	})
	d.dial()
	return d
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) dial() {
	d.t.Helper()
	conn, err := sys.DialSeqpacket(filepath.Join(d.dir, "sock"))
	check(d.t, err)
	d.conn = conn
	d.t.Cleanup(func() { conn.Close() })
}

// recv returns the next frame.
func (d *daemon) recv() (*api.Reply, error) {
	d.conn.SetRecvDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, api.MaxFrame)
	n, files, err := d.conn.Recv(buf, api.MaxFiles)
	closeAll(files)
	if err != nil {
		return nil, err
	}
	r := new(api.Reply)
	return r, api.Decode(buf[:n], r)
}

func (d *daemon) send(req *api.Request, files ...*os.File) {
	d.t.Helper()
	d.seq++
	req.Seq = d.seq
	frame, err := api.Encode(req)
	check(d.t, err)
	check(d.t, d.conn.Send(frame, files...))
}

func (d *daemon) call(req *api.Request, files ...*os.File) *api.Reply {
	d.t.Helper()
	d.send(req, files...)
	for {
		r, err := d.recv()
		if err != nil {
			d.t.Fatalf("%s: %v", req.Op, err)
		}
		if r.Exit != nil {
			d.exits = append(d.exits, r.Exit)
			continue
		}
		return r
	}
}

func (d *daemon) exit(id string) *api.Exit {
	d.t.Helper()
	for {
		for _, e := range d.exits {
			if e.ID == id {
				return e
			}
		}
		r, err := d.recv()
		if err != nil {
			d.t.Fatalf("exit of %s: %v", id, err)
		}
		if r.Exit != nil {
			d.exits = append(d.exits, r.Exit)
		}
	}
}

// launch launches a script with a log and returns the log's path.
func (d *daemon) launch(id, script string, how api.Launch) (*api.Reply, string) {
	d.t.Helper()
	log := filepath.Join(d.dir, id+".log")
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	check(d.t, err)
	defer f.Close()
	message, err := sys.Memfd("message", []byte(script))
	check(d.t, err)
	defer message.Close()
	how.Logged = true
	return d.call(&api.Request{Op: api.OpLaunch, ID: id, Launch: &how, Roles: []api.Role{api.RoleMessage, api.RoleLog}}, message, f), log
}

// attach returns the client's ends.
func (d *daemon) attach(id string) (stdin, stdout *os.File) {
	d.t.Helper()
	inR, inW, err := os.Pipe()
	check(d.t, err)
	outR, outW, err := os.Pipe()
	check(d.t, err)
	r := d.call(&api.Request{Op: api.OpAttach, ID: id, Roles: []api.Role{api.RoleStdin, api.RoleStdout}}, inR, outW)
	if r.Err != nil {
		d.t.Fatalf("attach: %v", r.Err)
	}
	inR.Close()
	outW.Close()
	d.t.Cleanup(func() { inW.Close(); outR.Close() })
	return inW, outR
}

// until reads until the text was seen.
func until(t *testing.T, r *os.File, want string) {
	t.Helper()
	r.SetReadDeadline(time.Now().Add(5 * time.Second))
	var got bytes.Buffer
	buf := make([]byte, 1024)
	for !strings.Contains(got.String(), want) {
		n, err := r.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("read %q, %v; want %q", got.String(), err, want)
		}
	}
}

// Closing the client's stdin ends the container's where it is for one client only.
func TestAttachStdinOnce(t *testing.T) {
	d := startSupervisor(t)
	r, log := d.launch("c", "cat; echo the end", api.Launch{Stdin: true, StdinOnce: true})
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	in, out := d.attach("c")
	fmt.Fprintln(in, "hello")
	until(t, out, "hello\n")
	in.Close() // half: its output still comes
	until(t, out, "the end\n")
	if e := d.exit("c"); e.Code != 0 {
		t.Errorf("exit code = %d; want 0", e.Code)
	}
	if got := content(t, log); len(got) != 2 || got[0] != "F:hello" || got[1] != "F:the end" {
		t.Errorf("log = %q", got)
	}
}

// Without StdinOnce it stays open for the next client.
func TestAttachStdinStays(t *testing.T) {
	d := startSupervisor(t)
	if r, _ := d.launch("c", "cat", api.Launch{Stdin: true}); r.Err != nil {
		t.Fatal(r.Err)
	}
	in, out := d.attach("c")
	fmt.Fprintln(in, "one")
	until(t, out, "one\n")
	in.Close()
	in, out = d.attach("c")
	fmt.Fprintln(in, "two")
	until(t, out, "two\n")
	before := descriptors(t, d.pid)
	d.call(&api.Request{Op: api.OpSignal, ID: "c", Signal: int(syscall.SIGKILL)})
	d.exit("c")
	d.call(&api.Request{Op: api.OpForget, ID: "c"})
	// The clients still hold their ends of stdin; the supervisor lets go of its own.
	deadline := time.Now().Add(5 * time.Second)
	for descriptors(t, d.pid) > before-6 { // pidfd, log, stdout, stderr, stdin, two clients'
		if time.Now().After(deadline) {
			t.Fatalf("descriptors: %d, now %d", before, descriptors(t, d.pid))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	all, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	check(t, err)
	return len(all)
}

func TestTerminal(t *testing.T) {
	if _, err := os.Stat("/dev/ptmx"); err != nil {
		t.Skipf("needs a terminal: %v", err)
	}
	d := startSupervisor(t)
	r, log := d.launch("c", `tty read line; echo "got $line"; read line; stty size; exit 6`, api.Launch{Terminal: true, Stdin: true, StdinOnce: true})
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	in, out := d.attach("c")
	fmt.Fprintln(in, "hello")
	until(t, out, "got hello\r\n")
	if r := d.call(&api.Request{Op: api.OpResize, ID: "c", Rows: 33, Cols: 77}); r.Err != nil {
		t.Fatalf("resize: %v", r.Err)
	}
	fmt.Fprintln(in, "")
	until(t, out, "33 77\r\n")
	if e := d.exit("c"); e.Code != 6 {
		t.Errorf("exit code = %d; want 6", e.Code)
	}
	if got := content(t, log); !strings.Contains(strings.Join(got, "\n"), "F:33 77") {
		t.Errorf("log = %q", got)
	}
}

// Frames that are no frames cost their connection, with a word why, and nothing else.
func TestRefusedFrames(t *testing.T) {
	d := startSupervisor(t)
	for name, frame := range map[string]string{
		"other version": "\x02{}", "no JSON": "\x01{", "no sequence": `` + "\x01" + `{"op":"hello"}`,
	} {
		d.dial()
		check(t, d.conn.Send([]byte(frame)))
		r, err := d.recv()
		if err != nil || r.Err == nil || r.Err.Stage != "frame" {
			t.Errorf("%s: %+v, %v; want an error of stage frame", name, r, err)
			continue
		}
		if name == "other version" && !strings.Contains(r.Err.Text, "version 2, this program speaks 1") {
			t.Errorf("%s: %q; want both versions", name, r.Err.Text)
		}
		if _, err := d.recv(); err != io.EOF {
			t.Errorf("%s: then %v; want the end", name, err)
		}
	}
	d.dial()
	if r := d.call(&api.Request{Op: api.OpHello}); r.Hello == nil || r.Hello.PID != d.pid {
		t.Errorf("hello = %+v; want its PID %d", r, d.pid)
	}
	if r := d.call(&api.Request{Op: "teleport"}); r.Err == nil || r.Err.NotFound || !strings.Contains(r.Err.Text, `unknown operation "teleport"`) {
		t.Errorf("an operation of a later release: %+v; want an error that names it", r.Err)
	}
	check(t, d.conn.Send([]byte("\x01"+`{"seq":99,"op":"hello","new_field":{"a":1}}`)))
	if r, err := d.recv(); err != nil || r.Err != nil || r.Seq != 99 {
		t.Errorf("a field of a later release: %+v, %v; want it ignored", r, err)
	}
}

// A kill that follows a launch calls it off, whatever the order in which they are carried out.
func TestKillCallsLaunchOff(t *testing.T) {
	d := startSupervisor(t)
	message, err := sys.Memfd("message", []byte("exec sleep 1000"))
	check(t, err)
	defer message.Close()
	const launches = 50
	for i := range launches {
		id := strconv.Itoa(i)
		d.send(&api.Request{Op: api.OpLaunch, ID: id, Launch: &api.Launch{}, Roles: []api.Role{api.RoleMessage}}, message)
		d.send(&api.Request{Op: api.OpSignal, ID: id, Signal: int(syscall.SIGKILL)})
		d.exit(id)
	}
	for _, p := range d.call(&api.Request{Op: api.OpList}).Processes {
		if p.Exit == nil {
			t.Errorf("process %s runs", p.ID)
		}
	}
}

// A daemon that dies after it asked for the end does not keep the supervisor, nor do two
// that ask for it.
func TestQuitWithoutReader(t *testing.T) {
	s := testSupervisor(t)
	for range 2 {
		ses := newSession(s, nil)
		ses.out = make(chan outgoing) // nobody takes the answer
		close(ses.done)
		ses.answer(&api.Request{Seq: 1, Op: api.OpQuit}, nil, nil)
	}
	select {
	case <-s.quit:
	default:
		t.Error("the supervisor stays")
	}
}

func testSupervisor(t *testing.T) *Supervisor {
	s := &Supervisor{
		cfg: Config{Log: slog.New(slog.DiscardHandler)}, processes: map[string]*process{}, byPID: map[int]*process{},
		pending: map[string]*pending{}, sessions: map[*session]struct{}{}, quit: make(chan struct{}), trim: idle.NewTrimmer(time.Hour),
	}
	t.Cleanup(s.trim.Stop)
	return s
}

// A daemon that does not read does not stop the supervisor, and learns of all exits later.
func TestDaemonThatDoesNotRead(t *testing.T) {
	d := startSupervisor(t)
	d.call(&api.Request{Op: api.OpHello})
	deaf := d.conn
	d.dial()
	for i := range 20 {
		if r, _ := d.launch(strconv.Itoa(i), "exit 4", api.Launch{}); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	for i := range 20 {
		if e := d.exit(strconv.Itoa(i)); e.Code != 4 {
			t.Errorf("exit code = %d; want 4", e.Code)
		}
	}
	deaf.Close()
}

// An exit is told though the log's file system hangs.
func TestExitWithHangingLog(t *testing.T) {
	p := &process{log: &logFile{}, ends: nil}
	p.log.mu.Lock() // a write that does not return
	defer p.log.mu.Unlock()
	done := make(chan struct{})
	go func() { p.drain(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * drainTime):
		t.Error("drain waits for the log")
	}
}

// Whatever comes over the connection, the supervisor lives.
func FuzzSession(f *testing.F) {
	f.Add([]byte("\x01"+`{"seq":1,"op":"hello"}`), uint8(0))
	f.Add([]byte("\x01"+`{"seq":1,"op":"launch","id":"a","roles":["message"],"launch":{}}`), uint8(1))
	f.Add([]byte("\x01"+`{"seq":1,"op":"attach","id":"a","roles":["stdin","stdout"]}`), uint8(2))
	f.Add([]byte("\x01"+`{"seq":1,"op":"signal","id":"a","signal":99}`), uint8(3))
	f.Fuzz(func(t *testing.T, frame []byte, n uint8) {
		if bytes.Contains(frame, []byte("launch")) || bytes.Contains(frame, []byte(`\u`)) {
			n = 0 // nothing of the fuzzer's is executed
		}
		s := testSupervisor(t)
		ours, theirs, err := sys.Socketpair()
		check(t, err)
		defer ours.Close()
		conn, err := sys.FileConn(theirs)
		check(t, err)
		ses := newSession(s, conn)
		ended := make(chan struct{})
		go func() { ses.serve(); close(ended) }()
		null, err := os.Open(os.DevNull)
		check(t, err)
		defer null.Close()
		var beside []*os.File
		for range min(n, 4) {
			beside = append(beside, null)
		}
		if len(frame) > 0 && len(frame) < api.MaxFrame {
			check(t, ours.Send(frame, beside...))
			ours.SetRecvDeadline(time.Now().Add(5 * time.Second))
			if _, _, err := ours.Recv(make([]byte, api.MaxFrame), 4); err != nil && err != io.EOF {
				t.Errorf("no answer to %q: %v", frame, err)
			}
		}
		ours.Close()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Error("the session does not end")
		}
	})
}

// TestFailedLaunchFile: the cause of a launch that failed is in the exit file, for a daemon that did not hear it.
func TestFailedLaunchFile(t *testing.T) {
	d := startSupervisor(t)
	file := filepath.Join(d.dir, "exit")
	if r, _ := d.launch("c", "fail no such file", api.Launch{ExitFile: file}); r.Err == nil {
		t.Fatalf("launch = %+v; want an error", r)
	}
	if e := d.exit("c"); !strings.Contains(e.Failed, "no such file") {
		t.Errorf("exit = %+v; want why it failed", e)
	}
	data, err := os.ReadFile(file)
	check(t, err)
	var e api.Exit
	check(t, json.Unmarshal(data, &e))
	if e.ID != "c" || e.Code != exitNotExecuted || !strings.Contains(e.Failed, "no such file") {
		t.Errorf("exit file = %s; want why it failed", data)
	}
}
