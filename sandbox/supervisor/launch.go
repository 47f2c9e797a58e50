package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// files are the descriptors beside a launch, by role.
type files struct {
	message, cgroup, log, pidns    *os.File
	stdin, stdout, stderr, console *os.File
	extra                          []*os.File
}

func sortFiles(roles []api.Role, received []*os.File) (files, error) {
	var fs files
	if len(roles) != len(received) {
		return fs, fmt.Errorf("%d roles for %d descriptors", len(roles), len(received))
	}
	single := map[api.Role]**os.File{
		api.RoleMessage: &fs.message, api.RoleCgroup: &fs.cgroup, api.RoleLog: &fs.log,
		api.RoleStdin: &fs.stdin, api.RoleStdout: &fs.stdout, api.RoleStderr: &fs.stderr,
		api.RoleConsole: &fs.console, api.RolePIDNamespace: &fs.pidns,
	}
	for i, role := range roles {
		slot := single[role]
		switch {
		case role == api.RoleFile:
			fs.extra = append(fs.extra, received[i])
		case slot == nil:
			return fs, fmt.Errorf("unknown role %q", role)
		case *slot != nil:
			return fs, fmt.Errorf("role %q twice", role)
		default:
			*slot = received[i]
		}
	}
	return fs, nil
}

// stdio is what the child gets as 0, 1, 2, and what of it is closed here after the clone.
type stdio struct {
	child          [3]*os.File
	close          []*os.File
	stdout, stderr *os.File // our reading ends
	stdin          *os.File // our writing end
	console        *sys.Conn
	consoleChild   *os.File
}

func (io *stdio) closeChild() {
	for _, f := range io.close {
		f.Close()
	}
	if io.consoleChild != nil {
		io.consoleChild.Close()
	}
}

func (io *stdio) closeAll() {
	io.closeChild()
	for _, f := range []*os.File{io.stdout, io.stderr, io.stdin} {
		if f != nil {
			f.Close()
		}
	}
	if io.console != nil {
		io.console.Close()
	}
}

// openStdio makes the pipes of a container, or takes the descriptors of an exec.
func openStdio(l *api.Launch, fs files) (s *stdio, err error) {
	s = new(stdio)
	defer func() {
		if err != nil {
			s.closeAll()
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return s, err
	}
	s.close = append(s.close, null)
	s.child = [3]*os.File{null, null, null}
	if !l.Logged {
		for i, f := range []*os.File{fs.stdin, fs.stdout, fs.stderr} {
			if f != nil {
				s.child[i] = f
			}
		}
		return s, nil
	}
	if l.Terminal {
		s.console, s.consoleChild, err = sys.Socketpair()
		return s, err
	}
	for i, ours := range map[int]**os.File{1: &s.stdout, 2: &s.stderr} {
		r, w, err := sys.Pipe(false)
		if err != nil {
			return s, err
		}
		*ours, s.child[i] = r, w
		s.close = append(s.close, w)
	}
	if l.Stdin {
		r, w, err := sys.Pipe(true)
		if err != nil {
			return s, err
		}
		s.stdin, s.child[0] = w, r
		s.close = append(s.close, r)
	}
	return s, nil
}

// start launches a process and returns once the workload is executed.
func (s *Supervisor) start(id string, l *api.Launch, fs files, called *pending) (*process, error) {
	if fs.message == nil {
		return nil, &api.Error{Stage: "launch", Text: "no message for the init"}
	}
	if l.Logged && fs.log == nil {
		return nil, &api.Error{Stage: "launch", Text: "no log file"}
	}
	p := &process{id: id, launch: *l, started: make(chan struct{})}
	p.oomBase, _ = oomCount(l.OOMParent)
	if l.Logged {
		p.log = &logFile{file: fs.log}
	}
	io, err := openStdio(l, fs)
	if err != nil {
		return nil, &api.Error{Stage: "stdio", Text: err.Error()}
	}
	syncR, syncW, err := sys.Pipe(false)
	if err != nil {
		io.closeAll()
		return nil, &api.Error{Stage: "stdio", Text: err.Error()}
	}
	defer syncR.Close()
	err = s.clone(p, io, fs, syncW, called)
	syncW.Close()
	io.closeChild()
	if err != nil {
		io.closeAll()
		return nil, err
	}
	err = s.settle(p, io, syncR)
	if err != nil {
		s.mu.Lock()
		p.failed = err.Error()
		s.mu.Unlock()
	}
	close(p.started)
	return p, err
}

// clone makes the process and registers it.
func (s *Supervisor) clone(p *process, io *stdio, fs files, syncW *os.File, called *pending) error {
	list := append(io.child[:3:3], fs.message, syncW)
	list = append(list, fs.extra...)
	switch {
	case io.consoleChild != nil:
		list = append(list, io.consoleChild)
	case fs.console != nil:
		list = append(list, fs.console)
	}
	attr := sys.SpawnAttr{
		Exe: s.cfg.Init, Args: []string{"cri-shim-init"}, Env: initmsg.Env(), Files: list,
		CloneFlags: p.launch.CloneFlags, Cgroup: fs.cgroup, Secret: true,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quitting {
		return &api.Error{Stage: "launch", Text: "the supervisor is ending"}
	}
	if s.processes[p.id] != nil {
		return &api.Error{Stage: "launch", Text: fmt.Sprintf("process %q exists", p.id)}
	}
	if called.cancelled {
		err := &api.Error{Stage: "launch", Text: "it was called off before there was a process"}
		s.tell(&api.Exit{ID: p.id, Code: exitNotExecuted, At: time.Now(), Failed: err.Error()})
		return err
	}
	if of := p.launch.PIDNamespaceOf; of != "" {
		target := s.processes[of]
		switch {
		case target != nil && target.exit == nil:
			attr.PIDNamespace = target.pidfd
		case target == nil && fs.pidns != nil:
			attr.PIDNamespace = fs.pidns
		default:
			return &api.Error{Stage: "join PID namespace", Text: fmt.Sprintf("process %q does not run", of)}
		}
	}
	pid, pidfd, err := sys.Spawn(attr)
	if err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		return &api.Error{Stage: "clone", Text: err.Error(), Errno: int(errno)}
	}
	p.pid, p.pidfd = pid, pidfd
	s.processes[p.id] = p
	s.byPID[pid] = p
	return nil
}

// settle waits for the init's word: executed, or what went wrong.
func (s *Supervisor) settle(p *process, io *stdio, syncR *os.File) error {
	if io.console != nil {
		master, err := receiveConsole(io.console)
		if err == nil {
			io.stdout = master
		}
	}
	warnings, err := readReports(syncR)
	if err != nil {
		p.signal(int(syscall.SIGKILL))
		io.closeAll()
		return err
	}
	p.warnings = warnings
	if io.console != nil {
		io.console.Close()
		p.console = io.stdout
	}
	if p.launch.CloneFlags&sys.CloneNewNS != 0 {
		p.mounts, _ = os.Open("/proc/" + strconv.Itoa(p.pid) + "/ns/mnt")
	}
	if p.launch.Logged {
		p.wire(io)
	}
	return nil
}

func (p *process) wire(io *stdio) {
	switch {
	case p.console != nil && p.launch.Stdin:
		p.in = &input{w: p.console, once: p.launch.StdinOnce, shared: true}
	case io.stdin != nil:
		p.in = &input{w: io.stdin, once: p.launch.StdinOnce}
	}
	p.pump(io.stdout, io.stderr)
}

// receiveConsole takes the terminal's master that the init sends before it reports.
func receiveConsole(c *sys.Conn) (*os.File, error) {
	n, fds, err := c.Recv(make([]byte, 16), 1)
	if err != nil {
		return nil, err
	}
	if n == 0 || len(fds) != 1 {
		return nil, errors.New("no terminal")
	}
	return sys.Pollable(fds[0])
}

// readReports reads what the init reports to the pipe's end. Success is the mark that it is
// about to execute the workload, and nothing after it: execve(2) closes the pipe. Without
// the mark the init was killed.
func readReports(r *os.File) (warnings []string, err error) {
	data, err := io.ReadAll(io.LimitReader(r, maxReports))
	if err != nil {
		return nil, &api.Error{Stage: "init", Text: err.Error()}
	}
	executed := false
	for len(data) > 0 {
		rep, rest, err := initmsg.DecodeReport(data)
		switch {
		case err != nil:
			return nil, &api.Error{Stage: "init", Text: err.Error()}
		case rep == nil:
			return nil, &api.Error{Stage: "init", Text: "its report ends early"}
		}
		switch rep.Kind {
		case initmsg.KindError:
			return nil, &api.Error{Stage: rep.Stage, Text: rep.Text, Errno: int(rep.Errno)}
		case initmsg.KindWarning:
			warnings = append(warnings, rep.Error())
		case initmsg.KindExecute:
			executed = true
		}
		data = rest
	}
	if !executed {
		return nil, &api.Error{Stage: "init", Text: "it was killed before the workload was executed"}
	}
	return warnings, nil
}

// maxReports bounds what is read of an init's reports, in bytes.
const maxReports = 64 << 10
