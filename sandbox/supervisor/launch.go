package supervisor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci/launcher"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// files are the descriptors beside a launch, by role.
type files struct {
	message, init, cgroup, log     *os.File
	pidns, userns, timens          *os.File
	stdin, stdout, stderr, console *os.File
	session                        *os.File
	extra                          []*os.File
}

func sortFiles(roles []api.Role, received []*os.File) (files, error) {
	var fs files
	if len(roles) != len(received) {
		return fs, fmt.Errorf("%d roles for %d descriptors", len(roles), len(received))
	}
	single := map[api.Role]**os.File{
		api.RoleMessage: &fs.message, api.RoleInit: &fs.init, api.RoleCgroup: &fs.cgroup, api.RoleLog: &fs.log,
		api.RoleStdin: &fs.stdin, api.RoleStdout: &fs.stdout, api.RoleStderr: &fs.stderr,
		api.RoleConsole: &fs.console, api.RoleSession: &fs.session, api.RolePIDNamespace: &fs.pidns,
		api.RoleUserNamespace: &fs.userns, api.RoleTimeNamespace: &fs.timens,
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
	if l.Terminal && l.Foreign == nil {
		s.console, s.consoleChild, err = launcher.Terminal()
		return s, err
	}
	if l.Terminal {
		return s, nil // the other runtime makes it
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
	if fs.message == nil && l.Foreign == nil {
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
	var settle func() error
	if l.Foreign != nil {
		settle, err = s.create(p, io, fs, called)
	} else {
		settle, err = s.clone(p, io, fs, called)
	}
	io.closeChild()
	if err != nil {
		io.closeAll()
		return nil, err
	}
	err = settle()
	if err != nil {
		s.mu.Lock()
		p.failed = err.Error()
		s.mu.Unlock()
	}
	close(p.started)
	return p, err
}

// clone makes the process and registers it. What it returns waits until the workload is executed.
func (s *Supervisor) clone(p *process, io *stdio, fs files, called *pending) (settle func() error, err error) {
	how := launcher.Process{
		Init: s.cfg.Init, Message: fs.message, Stdio: io.child, Files: fs.extra,
		CloneFlags: p.launch.CloneFlags, Cgroup: fs.cgroup, Server: &s.inits,
		UserNamespace: fs.userns, TimeNamespace: fs.timens, TimeOffsets: p.launch.TimeOffsets,
		Host: hostSetup(p.launch.Host), Affinity: p.launch.Affinity,
	}
	if fs.init != nil {
		how.Init, how.Server = fs.init, nil
	}
	switch {
	case io.consoleChild != nil:
		how.Files = append(how.Files, io.consoleChild)
	case fs.console != nil:
		how.Files = append(how.Files, fs.console)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if how.PIDNamespace, err = s.admit(p, fs, called); err != nil {
		return nil, err
	}
	if how.Late = p.launch.LatePID; how.Late {
		return s.cloneLate(p, io, fs, called, how)
	}
	child, err := launcher.Start(how)
	if err != nil {
		return nil, apiError(err)
	}
	p.pid, p.pidfd = child.PID, child.Pidfd
	s.register(p)
	return func() error { return s.settle(p, io, child, nil) }, nil
}

// cloneLate makes an init that makes the process; the lock is held. The process is registered when it has been executed,
// so until then no unknown child is reaped.
func (s *Supervisor) cloneLate(p *process, io *stdio, fs files, called *pending, how launcher.Process) (settle func() error, err error) {
	done := make(chan syscall.WaitStatus, 1)
	first := 0
	how.Reap = func(pid int) syscall.WaitStatus {
		if pid != first {
			return 0 // the workload of a launch that failed: who traces it can delay its end, so nobody waits for it
		}
		return <-done
	}
	child, err := launcher.Start(how)
	if err != nil {
		return nil, apiError(err)
	}
	first = child.PID
	s.commands[first] = done
	s.unknown++
	return func() error {
		defer func() {
			s.mu.Lock()
			s.unknown--
			s.mu.Unlock()
			s.reap()
		}()
		init, err := sys.Dup(child.Pidfd)
		if err != nil {
			return err
		}
		settled := make(chan struct{})
		go func() {
			defer init.Close()
			select {
			case <-called.gone:
				sys.PidfdSignal(init, syscall.SIGKILL)
			case <-settled:
			}
		}()
		defer close(settled)
		err = s.settle(p, io, child, func() error { return s.adopt(p, fs, called) })
		if err != nil { // of others the end says so
			s.mu.Lock()
			s.tell(&api.Exit{ID: p.id, Code: exitNotExecuted, At: time.Now(), Failed: err.Error()})
			s.mu.Unlock()
		}
		return err
	}, nil
}

// adopt registers p, a child that is not known yet. Where it must not run any more it is killed, with what it has started
// meanwhile.
func (s *Supervisor) adopt(p *process, fs files, called *pending) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.admit(p, fs, called)
	if err != nil {
		err = errors.Join(err, sys.KillFamily(p.pidfd, p.pid))
		p.pidfd.Close()
		return err
	}
	s.register(p)
	return nil
}

// admit says whether a process may be launched, and gives a pidfd of the one whose PID namespace it joins; the lock is
// held.
func (s *Supervisor) admit(p *process, fs files, called *pending) (pidns *os.File, err error) {
	if s.quitting {
		return nil, &api.Error{Stage: "launch", Text: "the supervisor is ending"}
	}
	if s.processes[p.id] != nil {
		return nil, &api.Error{Stage: "launch", Text: fmt.Sprintf("process %q exists", p.id)}
	}
	if called.cancelled {
		err := &api.Error{Stage: "launch", Text: "it was called off before there was a process"}
		s.tell(&api.Exit{ID: p.id, Code: exitNotExecuted, At: time.Now(), Failed: err.Error()})
		return nil, err
	}
	of := p.launch.PIDNamespaceOf
	if of == "" {
		return nil, nil
	}
	target := s.processes[of]
	switch {
	case target != nil && target.exit == nil:
		return target.pidfd, nil
	case target == nil && fs.pidns != nil:
		return fs.pidns, nil
	}
	return nil, &api.Error{Stage: "join PID namespace", Text: fmt.Sprintf("process %q does not run", of)}
}

// register makes a process known; the lock is held.
func (s *Supervisor) register(p *process) {
	s.processes[p.id] = p
	s.byPID[p.pid] = p
}

func hostSetup(h *api.HostSetup) (out sys.HostSetup) {
	if h == nil {
		return out
	}
	for _, l := range h.Rlimits {
		out.Rlimits = append(out.Rlimits, sys.Rlimit(l))
	}
	out.CgroupTasks, out.Dir, out.StdioUID, out.OOMScoreAdj = h.CgroupTasks, h.Dir, h.StdioUID, h.OOMScoreAdj
	return out
}

// apiError is what the launcher says went wrong, for the daemon.
func apiError(err error) error {
	var r *initmsg.Report
	if !errors.As(err, &r) {
		return err
	}
	return &api.Error{Stage: r.Stage, Text: r.Text, Errno: int(r.Errno)}
}

// tooLittleMemory adds what a limit of a few bytes does to the init, which is all that a client sees of it.
func tooLittleMemory(p *process, err error) error {
	e := (*api.Error)(nil)
	if n, ok := oomCount(p.launch.OOMFile); ok && n > 0 && errors.As(err, &e) {
		e.Text += ": out of memory: the container's memory limit is too low"
	}
	return err
}

// settle waits for the init's word: executed, or what went wrong.
// register, if any, makes it known.
func (s *Supervisor) settle(p *process, io *stdio, child *launcher.Child, register func() error) error {
	if io.console != nil {
		master, err := launcher.ReceiveTerminal(io.console)
		if err == nil {
			io.stdout = master
		}
	}
	warnings, err := child.Executed()
	switch {
	case err != nil && register != nil:
		child.Pidfd.Close() // the init has been reaped
	case err != nil:
		p.signal(int(syscall.SIGKILL))
	case register != nil:
		p.pid, p.pidfd = child.PID, child.Pidfd
		err = register()
	}
	if err != nil {
		io.closeAll()
		return tooLittleMemory(p, apiError(err))
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
