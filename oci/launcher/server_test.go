package launcher

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/testtools"
)

// children are this process's, by comm.
func children(t *testing.T) map[int]string {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Skip("needs /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN)")
	}
	out := map[int]string{}
	for _, task := range tasks {
		list, _ := os.ReadFile(task) // a thread that has ended
		for _, field := range strings.Fields(string(list)) {
			pid, _ := strconv.Atoi(field)
			comm, _ := os.ReadFile("/proc/" + field + "/comm")
			out[pid] = strings.TrimSpace(string(comm))
		}
	}
	return out
}

func openInit(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(filepath.Join(testtools.Binaries(t), "cri-shim-init"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// process is a workload without any isolation that prints the directory of its descriptors and its parent.
func process(t *testing.T, init *os.File, s *Server) (p Process, out *os.File) {
	t.Helper()
	encoded, err := initmsg.Encode(&initmsg.Message{Mode: initmsg.ModeExec, StartFile: initmsg.NoFile, Process: initmsg.Process{
		Args: []string{"/bin/sh", "-c", "set -- /proc/self/fd/*; echo $# $PPID $(umask)"}, Cwd: "/",
		Env: []string{"PATH=/bin"}, ConsoleFile: initmsg.NoFile, FirstExtra: initmsg.NoFile,
	}})
	if err != nil {
		t.Fatal(err)
	}
	message, err := sys.Memfd("message", encoded)
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range []*os.File{message, null, r} {
			f.Close()
		}
	})
	return Process{Init: init, Message: message, Stdio: [3]*os.File{null, w, w}, Server: s}, r
}

func runProcess(t *testing.T, p Process, out *os.File) string {
	t.Helper()
	c, err := Start(p)
	p.Stdio[1].Close()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Pidfd.Close()
	if _, err := c.Executed(); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	var st syscall.WaitStatus
	if pid, err := syscall.Wait4(c.PID, &st, 0, nil); pid != c.PID || err != nil || st != 0 {
		t.Errorf("wait = %d, %v, status %v; want the forked init as this process's child, ended with 0", pid, err, st)
	}
	return strings.TrimSpace(string(text))
}

func reap(pid int) { var st syscall.WaitStatus; syscall.Wait4(pid, &st, 0, nil) }

func TestServer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("starts processes that are not dumpable (setresgid): needs root")
	}
	init := openInit(t)
	p, out := process(t, init, nil)
	want := runProcess(t, p, out) // started anew

	lost := make(chan struct{}, 1)
	s := &Server{Lost: func() { lost <- struct{}{} }}
	if err := s.Warm(init); err != nil {
		t.Fatal(err)
	}
	reap(-1) // what the server was forked from has ended, or is about to
	server := 0
	for pid, comm := range children(t) {
		if comm == "cri-shim-init" {
			server = pid
		}
	}
	if server == 0 {
		t.Fatal("no server among the children")
	}
	if tasks, err := os.ReadDir("/proc/" + strconv.Itoa(server) + "/task"); err != nil || len(tasks) != 1 {
		t.Errorf("the server has %d threads (%v); want 1", len(tasks), err)
	}
	for range 3 {
		p, out := process(t, init, s)
		if got := runProcess(t, p, out); got != want {
			t.Errorf("forked: %q; want descriptors, parent and umask as without a server, %q", got, want)
		}
	}

	// An error of the clone is the caller's, and the server goes on.
	p, out = process(t, init, s)
	p.CloneFlags = 1 << 63
	if _, err := Start(p); err == nil || !strings.Contains(err.Error(), "invalid argument") {
		t.Errorf("Start with an unknown flag = %v; want invalid argument", err)
	}
	p.CloneFlags = 0
	if got := runProcess(t, p, out); got != want {
		t.Errorf("after an error: %q; want %q", got, want)
	}

	// More descriptors than a request takes: started anew.
	p, out = process(t, init, s)
	for range initmsg.ServerFloor {
		p.Files = append(p.Files, p.Stdio[0])
	}
	if got := runProcess(t, p, out); got != want {
		t.Errorf("many files: %q; want %q", got, want)
	}

	syscall.Kill(server, syscall.SIGKILL)
	reap(server)
	p, out = process(t, init, s)
	if got := runProcess(t, p, out); got != want {
		t.Errorf("with the server dead: %q; want %q", got, want)
	}
	<-lost
	if err := s.Warm(init); err != nil {
		t.Errorf("a second server: %v", err)
	}
	s.Close()
	for pid := range children(t) {
		reap(pid) // it ends with its connection
	}
}

// TestServersProveThemselves: on emulated processors one fork in five inherits a lock that is held for ever.
func TestServersProveThemselves(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("starts processes that are not dumpable (setresgid): needs root")
	}
	init := openInit(t)
	for i := range 30 {
		s := &Server{}
		if err := s.Warm(init); err != nil {
			t.Errorf("server %d: %v", i, err)
		}
		s.Close()
	}
	for {
		if _, err := syscall.Wait4(-1, nil, 0, nil); err == syscall.ECHILD {
			return
		}
	}
}
