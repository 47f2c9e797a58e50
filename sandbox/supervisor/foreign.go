package supervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// Another runtime is a program with runc's command line. It makes a process and ends; what it made is then an orphan below
// this subreaper, and from there on like any other process here.

// Files in api.Foreign.Dir.
const (
	foreignLog     = "log"
	foreignStderr  = "stderr"
	foreignPID     = "pid"
	foreignConsole = "console"
)

const (
	// maxRuntimeText bounds what is passed on of a runtime's own words, in bytes.
	maxRuntimeText = 2 << 10
	// maxRuntimeLog bounds what is read of its log, from the end.
	maxRuntimeLog = 64 << 10
	// undoTimeout bounds the removal of what a failed create has left.
	undoTimeout = 10 * time.Second
	// consoleTimeout bounds the wait for a terminal that the runtime says it has sent.
	consoleTimeout = 5 * time.Second
)

// runtimeEnv is the environment of another runtime, and of the hooks that it runs.
var runtimeEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// foreign is a launch by another runtime.
type foreign struct {
	*api.Foreign
	s      *Supervisor
	called *pending
}

// create has the process made and registers it: a container that waits for its start, which settle does, or an exec.
func (s *Supervisor) create(p *process, io *stdio, fs files, called *pending) (settle func() error, err error) {
	f := &foreign{Foreign: p.launch.Foreign, s: s, called: called}
	if !filepath.IsAbs(f.Program) || !filepath.IsAbs(f.Bundle) || !filepath.IsAbs(f.Dir) {
		return nil, &api.Error{Stage: "frame", Text: "a path of the runtime is not absolute"}
	}
	leave, err := f.enter(p, fs)
	if err != nil {
		return nil, err
	}
	defer leave()
	console, err := f.listen(p)
	if err != nil {
		return nil, &api.Error{Stage: "terminal", Text: err.Error()}
	}
	streams := &io.child
	if console != nil {
		streams = nil
	}
	err = f.run(f.command(p, console), streams, io.stderr)
	if err == nil {
		err = f.adopt(p, fs)
	}
	if err != nil {
		console.close()
		f.undo()
		return nil, err
	}
	return func() error {
		defer console.close()
		if err := f.settle(p, io, fs, console); err != nil {
			p.signal(int(syscall.SIGKILL))
			io.closeAll()
			return err
		}
		return nil
	}, nil
}

// enter keeps orphans from being reaped until leave, and names the PID namespace to join.
func (f *foreign) enter(p *process, fs files) (leave func(), err error) {
	s := f.s
	s.mu.Lock()
	defer s.mu.Unlock()
	target, err := s.admit(p, fs, f.called)
	if err != nil {
		return nil, err
	}
	ns, err := f.linkNamespace(target)
	if err != nil {
		return nil, &api.Error{Stage: "join PID namespace", Text: err.Error()}
	}
	s.unknown++
	return func() {
		if ns != nil {
			ns.Close()
			os.Remove(f.PIDLink)
		}
		s.mu.Lock()
		s.unknown--
		s.mu.Unlock()
		s.reap()
	}, nil
}

// linkNamespace makes PIDLink lead to the PID namespace of target, through a descriptor of this process: the number of a
// process may become another's at any time.
func (f *foreign) linkNamespace(target *os.File) (*os.File, error) {
	if target == nil || f.PIDLink == "" {
		return nil, nil
	}
	pid, err := sys.PidfdPID(target)
	if err != nil {
		return nil, err
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/pid")
	if err != nil {
		return nil, err
	}
	if !sys.PidfdAlive(target) {
		ns.Close()
		return nil, fmt.Errorf("process %d has ended", pid)
	}
	os.Remove(f.PIDLink)
	if err := os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()), f.PIDLink); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// consoleSocket is where a runtime sends a terminal.
type consoleSocket struct{ listener, dir *os.File }

func (c *consoleSocket) close() {
	if c != nil {
		c.listener.Close()
		c.dir.Close()
	}
}

// path is short, as a socket's address has 108 bytes, and does not depend on the working directory, which runtimes change.
func (c *consoleSocket) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), c.dir.Fd(), foreignConsole)
}

// listen makes the socket that gets the terminal; nil without one.
func (f *foreign) listen(p *process) (*consoleSocket, error) {
	if !p.launch.Terminal {
		return nil, nil
	}
	dir, err := os.Open(f.Dir)
	if err != nil {
		return nil, err
	}
	l, err := sys.ListenStream(filepath.Join(f.Dir, foreignConsole))
	if err != nil {
		dir.Close()
		return nil, err
	}
	return &consoleSocket{l, dir}, nil
}

// command is what makes the process.
func (f *foreign) command(p *process, console *consoleSocket) []string {
	c := []string{"create", "--bundle", f.Bundle}
	if f.Process != "" {
		c = []string{"exec", "--detach", "--process", f.Process}
	}
	c = append(c, "--pid-file", filepath.Join(f.Dir, foreignPID))
	if console != nil {
		c = append(c, "--console-socket", console.path())
	}
	return append(c, f.ID)
}

// undo removes what a create has left that failed; the daemon does so too, but may be gone.
func (f *foreign) undo() {
	if f.Process != "" {
		return
	}
	again := *f
	again.called = nil // it is to be undone because it was called off
	again.Foreign = new(api.Foreign)
	*again.Foreign = *f.Foreign
	again.Timeout = min(f.Timeout, undoTimeout)
	// A runtime that has made nothing says so as an error.
	_ = again.run([]string{"delete", "--force", f.ID}, nil, nil)
}

// run runs the program to its end, with the standard streams of the process that it makes; nil for a command without.
// said is where its standard error can be read if that is the container's.
func (f *foreign) run(command []string, streams *[3]*os.File, said *os.File) error {
	op := filepath.Base(f.Program) + " " + command[0]
	os.Remove(filepath.Join(f.Dir, foreignLog))
	if streams == nil {
		own, err := f.ownStreams()
		if err != nil {
			return &api.Error{Stage: op, Text: err.Error()}
		}
		defer own[0].Close()
		defer own[2].Close()
		streams = own
	}
	args := append([]string{f.Program}, f.Options...)
	args = append(args, "--log", filepath.Join(f.Dir, foreignLog), "--log-format", "json")
	status, err := f.execute(append(args, command...), *streams)
	switch {
	case err != nil:
		return &api.Error{Stage: op, Text: err.Error()}
	case status == 0:
		return nil
	}
	text := f.lastWords(said)
	if text == "" {
		code, _ := sys.ExitCode(status)
		text = fmt.Sprintf("%s ended with code %d and without a word", f.Program, code)
	}
	return &api.Error{Stage: op, Text: text}
}

// ownStreams are those of a command that makes no process: what it says is kept.
func (f *foreign) ownStreams() (*[3]*os.File, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	errs, err := os.OpenFile(filepath.Join(f.Dir, foreignStderr), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		null.Close()
		return nil, err
	}
	return &[3]*os.File{null, null, errs}, nil
}

// execute starts the program and waits for it: not longer than its time, nor than anybody wants the launch.
func (f *foreign) execute(args []string, stdio [3]*os.File) (syscall.WaitStatus, error) {
	done := make(chan syscall.WaitStatus, 1)
	pid, err := f.spawn(args, stdio, done)
	if err != nil {
		return 0, err
	}
	timer := time.NewTimer(f.Timeout)
	defer timer.Stop()
	var off <-chan struct{}
	if f.called != nil {
		off = f.called.gone
	}
	select {
	case status := <-done:
		return status, nil
	case <-timer.C:
		err = fmt.Errorf("%s has not ended after %s", f.Program, f.Timeout)
	case <-off:
		err = errors.New("it was called off")
	}
	syscall.Kill(-pid, syscall.SIGKILL) // it leads a session of its own, and is ours to reap
	select {
	case <-done:
	case <-time.After(undoTimeout):
		err = fmt.Errorf("%w, and survives SIGKILL as process %d", err, pid)
	}
	return 0, err
}

func (f *foreign) spawn(args []string, stdio [3]*os.File, done chan<- syscall.WaitStatus) (int, error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	pid, pidfd, err := sys.Spawn(sys.SpawnAttr{
		Path: f.Program, Dir: f.Dir, Args: args, Env: runtimeEnv, Files: stdio[:], Session: true,
	})
	if err != nil {
		return 0, err
	}
	pidfd.Close()
	f.s.commands[pid] = done
	return pid, nil
}

// adopt registers the process that the runtime has made.
func (f *foreign) adopt(p *process, fs files) error {
	pid, err := f.pid()
	if err != nil {
		return &api.Error{Stage: "pid file", Text: err.Error()}
	}
	s := f.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.admit(p, fs, f.called); err != nil {
		if pidfd, openErr := sys.PidfdOpen(pid); openErr == nil && sys.IsChild(pid) {
			sys.PidfdSignal(pidfd, syscall.SIGKILL)
			pidfd.Close()
		}
		return err
	}
	// A PID of the runtime's invention could be anybody's; a child cannot, as nothing but us reaps it.
	if s.byPID[pid] != nil || s.commands[pid] != nil || !sys.IsChild(pid) {
		return &api.Error{Stage: "pid file", Text: fmt.Sprintf("process %d is not one that %s has made for us", pid, f.Program)}
	}
	if p.pidfd, err = sys.PidfdOpen(pid); err != nil {
		return err
	}
	p.pid = pid
	s.register(p)
	return nil
}

// pid reads the file that the runtime has written.
func (f *foreign) pid() (int, error) {
	file, err := os.Open(filepath.Join(f.Dir, foreignPID))
	if err != nil {
		return 0, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, 32))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 32)
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%q is no process ID", text)
	}
	return int(pid), nil
}

// settle takes the terminal and starts the container. An exec runs already.
func (f *foreign) settle(p *process, io *stdio, fs files, console *consoleSocket) error {
	if console != nil {
		master, err := f.terminal(console.listener)
		if err != nil {
			return &api.Error{Stage: "terminal", Text: err.Error()}
		}
		if err := f.passTerminal(p, io, fs, master); err != nil {
			return &api.Error{Stage: "terminal", Text: err.Error()}
		}
	}
	if f.Process == "" {
		p.mounts, _ = os.Open("/proc/" + strconv.Itoa(p.pid) + "/ns/mnt")
		if err := f.run([]string{"start", f.ID}, nil, nil); err != nil {
			return err
		}
	}
	if p.launch.Logged {
		p.wire(io)
	}
	return nil
}

// terminal takes the master that the runtime has sent; what it sends beside it is the terminal's name.
func (f *foreign) terminal(console *os.File) (*os.File, error) {
	if err := console.SetReadDeadline(time.Now().Add(consoleTimeout)); err != nil {
		return nil, err
	}
	conn, err := sys.Accept(console)
	if err != nil {
		return nil, fmt.Errorf("%s has sent none: %w", f.Program, err)
	}
	defer conn.Close()
	if err := conn.SetRecvDeadline(time.Now().Add(consoleTimeout)); err != nil {
		return nil, err
	}
	_, received, err := conn.Recv(make([]byte, 4096), 1)
	if err != nil {
		return nil, err
	}
	if len(received) != 1 {
		return nil, fmt.Errorf("%s has sent %d descriptors", f.Program, len(received))
	}
	return sys.Pollable(received[0])
}

// passTerminal keeps a container's terminal, and sends an exec's to who asked.
func (f *foreign) passTerminal(p *process, io *stdio, fs files, master *os.File) error {
	if p.launch.Logged {
		io.stdout, p.console = master, master
		return nil
	}
	defer master.Close()
	if fs.console == nil {
		return errors.New("nobody to send it to")
	}
	to, err := sys.Dup(fs.console)
	if err != nil {
		return err
	}
	conn, err := sys.FileConn(to)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetSendDeadline(time.Now().Add(consoleTimeout))
	return conn.Send([]byte("ptmx"), master)
}

// lastWords is the runtime's last error: of its log, else of its standard error.
func (f *foreign) lastWords(said *os.File) string {
	text := lastError(tailOf(filepath.Join(f.Dir, foreignLog), maxRuntimeLog))
	if text == "" && said != nil {
		if raw, err := said.SyscallConn(); err == nil {
			buf := make([]byte, maxRuntimeText)
			n, _ := sys.ReadNow(raw, buf)
			text = string(buf[:max(n, 0)])
		}
	}
	if text == "" {
		text = string(tailOf(filepath.Join(f.Dir, foreignStderr), maxRuntimeText))
	}
	text = strings.ToValidUTF8(strings.TrimSpace(text), "?")
	if len(text) > maxRuntimeText {
		text = strings.ToValidUTF8(text[:maxRuntimeText], "") + "…"
	}
	return text
}

// lastError is the message of the last error in a log in JSON, or of its last entry where none is an error.
func lastError(log []byte) (text string) {
	failed := false
	for line := range bytes.Lines(log) {
		var entry struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
		}
		if json.Unmarshal(line, &entry) != nil || entry.Msg == "" {
			continue
		}
		bad := entry.Level == "error" || entry.Level == "fatal" || entry.Level == "panic"
		if bad || !failed {
			text, failed = entry.Msg, bad
		}
	}
	return text
}

// tailOf is the end of a file, at most n bytes; nothing where it cannot be read.
func tailOf(path string, n int64) []byte {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return nil
	}
	data, err := io.ReadAll(io.NewSectionReader(file, max(0, fi.Size()-n), n))
	if err != nil {
		return nil
	}
	return data
}
