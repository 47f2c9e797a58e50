package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// ExecSync runs a command in a running container and returns its output and exit code. When
// timeout has passed (0: no limit), the command is killed and the error is
// context.DeadlineExceeded. Of each stream at most Config.ExecOutputMax bytes are kept.
func (m *Manager) ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (*ExecResult, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	r, err := m.execSync(ctx, c, command)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.ID, err)
	}
	return r, nil
}

func (m *Manager) execSync(ctx context.Context, c *ctr, command []string) (*ExecResult, error) {
	stdout, stderr := &capture{limit: m.cfg.ExecOutputMax}, &capture{limit: m.cfg.ExecOutputMax}
	code, err := m.execPipes(ctx, c, command, Streams{Stdout: stdout, Stderr: stderr})
	if err != nil {
		return nil, err
	}
	return &ExecResult{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), ExitCode: code}, nil
}

// Exec runs a command in a running container with a client's streams and returns its exit code. When ctx ends before the
// command, the command and what it started are killed: nobody is there to see it any more.
func (m *Manager) Exec(ctx context.Context, id string, command []string, s Streams) (code int, err error) {
	c, err := m.container(id)
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	if s.Terminal {
		code, err = m.execTerminal(ctx, c, command, s)
	} else {
		code, err = m.execPipes(ctx, c, command, s)
	}
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.ID, err)
	}
	return code, nil
}

func (m *Manager) execPipes(ctx context.Context, c *ctr, command []string, s Streams) (int, error) {
	stdio := map[api.Role]*os.File{}
	var outputs []*output
	defer func() {
		for _, o := range outputs {
			o.close()
		}
	}()
	for role, to := range map[api.Role]io.Writer{api.RoleStdout: s.Stdout, api.RoleStderr: s.Stderr} {
		if to == nil {
			continue
		}
		o, err := newOutput(to)
		if err != nil {
			return 0, err
		}
		outputs, stdio[role] = append(outputs, o), o.w
	}
	var stdin *os.File
	if s.Stdin != nil {
		r, w, err := sys.Pipe(true)
		if err != nil {
			return 0, err
		}
		defer r.Close()
		defer w.Close() // wakes a feed that the process does not read
		stdin, stdio[api.RoleStdin] = w, r
	}
	x, err := m.startExec(ctx, c, ExecSpec{Command: command}, stdio)
	if err != nil {
		return 0, err
	}
	defer x.close()
	for _, o := range outputs {
		o.start()
	}
	if stdin != nil {
		stdio[api.RoleStdin].Close() // a process that is gone must be seen
		go feed(stdin, s.Stdin, true)
	}
	return x.finish(ctx, outputs...)
}

// execTerminal runs a command on a terminal of its own. The end of the client's input is no end of the terminal's.
func (m *Manager) execTerminal(ctx context.Context, c *ctr, command []string, s Streams) (int, error) {
	ours, theirs, err := sys.Socketpair()
	if err != nil {
		return 0, err
	}
	defer ours.Close()
	x, err := m.startExec(ctx, c, ExecSpec{Command: command, Terminal: true}, map[api.Role]*os.File{api.RoleConsole: theirs})
	theirs.Close()
	if err != nil {
		return 0, err
	}
	defer x.close()
	console, err := sys.ReceiveFile(ours)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("terminal: %w", err), x.kill())
	}
	defer console.Close() // hangs up on what is left in the background
	if s.Resizes != nil {
		go func() {
			for size := range s.Resizes {
				sys.Winsize(console, size.Rows, size.Cols) // it may have ended
			}
		}()
	}
	to := s.Stdout
	if to == nil {
		to = io.Discard
	}
	o := &output{r: console, to: to, done: make(chan struct{})}
	o.start()
	if s.Stdin != nil {
		go feed(console, s.Stdin, false)
	}
	return x.finish(ctx, o)
}

// finish waits for the exit and for the rest of the output.
func (x *execProcess) finish(ctx context.Context, outputs ...*output) (int, error) {
	code, err := x.wait(ctx)
	for _, o := range outputs {
		o.exited()
	}
	if err != nil {
		return 0, err
	}
	for _, o := range outputs {
		if err := o.wait(ctx); err != nil {
			return 0, fmt.Errorf("its output: %w", err)
		}
	}
	return code, nil
}

// execProcess is a process that was started in a running container.
type execProcess struct {
	m      *Manager
	id     string
	client *client
	pid    int
	pidfd  *os.File
	exit   chan *api.Exit
	ended  bool
}

// startExec starts a command in a running container with the given files.
func (m *Manager) startExec(ctx context.Context, c *ctr, spec ExecSpec, stdio map[api.Role]*os.File) (*execProcess, error) {
	m.mu.Lock()
	facts := c.Container
	m.mu.Unlock()
	if facts.State() != ContainerRunning {
		return nil, fmt.Errorf("%w: the container is %s", ErrState, facts.State())
	}
	p, err := m.pod(c.PodID)
	if err != nil {
		return nil, err
	}
	client, err := m.supervisorOf(ctx, p)
	if err != nil {
		return nil, err
	}
	// One with another init is of another build, and may not know of it.
	spec.PID, spec.LatePID = facts.PID, client.ownInit
	l, err := m.cfg.Runtime.PrepareExec(ctx, m.snapshot(p), &facts, spec)
	if err != nil {
		return nil, m.joinError(ctx, c, err, errors.Is(err, fs.ErrNotExist)) // its files in /proc
	}
	defer l.Close()
	x := &execProcess{m: m, id: newID(), client: client, exit: make(chan *api.Exit, 1)}
	m.mu.Lock()
	m.execs[x.id] = x.exit
	m.mu.Unlock()
	how := &api.Launch{Pod: c.PodID, Terminal: spec.Terminal}
	if l.JoinPID {
		how.PIDNamespaceOf, how.LatePID = c.ID, l.LatePID
		if pidns := m.pidfdOf(c.ID); pidns != nil {
			defer pidns.Close()
			stdio = maps.Clone(stdio)
			stdio[api.RolePIDNamespace] = pidns
		}
	}
	x.pid, x.pidfd, err = m.launch(ctx, client, x.id, l, how, stdio)
	if err != nil {
		x.drop() // what may have been started is being killed, and its exit has it forgotten
		return nil, m.joinError(ctx, c, err, false)
	}
	return x, nil
}

// endingTime bounds the wait for the end of a process that has given up its namespaces already.
const endingTime = time.Second

// joinError is why a container could not be joined: any step may be the one that finds its process gone, on record or not.
func (m *Manager) joinError(ctx context.Context, c *ctr, err error, ending bool) error {
	ended := func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return c.State() != ContainerRunning || c.pidfd != nil && !sys.PidfdAlive(c.pidfd)
	}
	if ending {
		ctx, cancel := context.WithTimeout(ctx, endingTime)
		defer cancel()
		for !ended() && ctx.Err() == nil {
			waitFor(ctx, nil, time.Millisecond)
		}
	}
	if ended() && ctx.Err() == nil {
		return fmt.Errorf("%w: the container is %s", ErrState, ContainerExited)
	}
	return err
}

// drop ends the wait for the exit.
func (x *execProcess) drop() {
	x.m.mu.Lock()
	delete(x.m.execs, x.id)
	x.m.mu.Unlock()
}

// wait returns the exit code; when ctx ends first, the process is killed.
func (x *execProcess) wait(ctx context.Context) (int, error) {
	select {
	case e := <-x.exit:
		x.ended = true
		return e.Code, nil
	case <-x.client.gone:
		err := fmt.Errorf("%w: the connection to supervisor %s broke", ErrUnavailable, x.client.id)
		return 0, errors.Join(err, x.kill())
	case <-ctx.Done():
		why := "the command did not end in time"
		if errors.Is(ctx.Err(), context.Canceled) {
			why = "nobody waits for the command any more"
		}
		return 0, errors.Join(fmt.Errorf("%s: %w", why, ctx.Err()), x.kill())
	}
}

// kill ends the process and what it started. The init makes it the leader of a session.
func (x *execProcess) kill() error { return sys.KillFamily(x.pidfd, x.pid) }

func (x *execProcess) close() {
	x.pidfd.Close()
	if !x.ended {
		x.drop()
		select {
		case <-x.exit:
		default:
			return // it will be forgotten when it ends
		}
	}
	x.m.background.Go(func() { x.m.forgetAt(x.client, x.id) })
}

// pidfdOf duplicates the pidfd of a container that runs; nil for others.
func (m *Manager) pidfdOf(id string) *os.File {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.ctrs[id]
	if c == nil || c.pidfd == nil {
		return nil
	}
	f, err := sys.Dup(c.pidfd)
	if err != nil {
		return nil
	}
	return f
}
