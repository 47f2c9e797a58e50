package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// drainTime bounds the wait for output after an exec's exit: a child that it left in the
// background may hold the pipes open for ever.
const drainTime = 500 * time.Millisecond

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
	stdout, err := m.newCapture()
	if err != nil {
		return nil, err
	}
	defer stdout.close()
	stderr, err := m.newCapture()
	if err != nil {
		return nil, err
	}
	defer stderr.close()
	x, err := m.startExec(ctx, c, ExecSpec{Command: command}, map[api.Role]*os.File{
		api.RoleStdout: stdout.w, api.RoleStderr: stderr.w,
	})
	if err != nil {
		return nil, err
	}
	defer x.close()
	stdout.start()
	stderr.start()
	code, err := x.wait(ctx)
	if err != nil {
		return nil, err
	}
	drain, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	stdout.drain(drain)
	stderr.drain(drain)
	return &ExecResult{Stdout: stdout.bytes(), Stderr: stderr.bytes(), ExitCode: code}, nil
}

// execProcess is a process that was started in a running container.
type execProcess struct {
	m      *Manager
	id     string
	client *client
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
	spec.PID = facts.PID
	l, err := m.cfg.Runtime.PrepareExec(ctx, m.snapshot(p), &facts, spec)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	x := &execProcess{m: m, id: newID(), client: client, exit: make(chan *api.Exit, 1)}
	m.mu.Lock()
	m.execs[x.id] = x.exit
	m.mu.Unlock()
	how := &api.Launch{Pod: c.PodID, Terminal: spec.Terminal}
	if l.JoinPID {
		how.PIDNamespaceOf = c.ID
		if pidns := m.pidfdOf(c.ID); pidns != nil {
			defer pidns.Close()
			stdio = maps.Clone(stdio)
			stdio[api.RolePIDNamespace] = pidns
		}
	}
	_, x.pidfd, err = m.launch(ctx, client, x.id, l, how, stdio)
	if err != nil {
		x.drop() // what may have been started is being killed, and its exit has it forgotten
		return nil, err
	}
	return x, nil
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
		return 0, errors.Join(err, sys.PidfdSignal(x.pidfd, syscallKill))
	case <-ctx.Done():
		err := fmt.Errorf("the command did not end in time: %w", ctx.Err())
		// The init makes it the leader of a session, so what it started in the foreground goes with it.
		return 0, errors.Join(err, sys.PidfdSignalGroup(x.pidfd, syscallKill))
	}
}

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

// capture collects one stream of an exec, up to a limit; what is beyond is read and dropped,
// so that the command is not blocked.
type capture struct {
	r, w  *os.File
	limit int
	done  chan struct{}

	mu  sync.Mutex
	buf bytes.Buffer
}

func (m *Manager) newCapture() (*capture, error) {
	r, w, err := sys.Pipe(false)
	if err != nil {
		return nil, err
	}
	return &capture{r: r, w: w, limit: m.cfg.ExecOutputMax, done: make(chan struct{})}, nil
}

// start reads in the background; our copy of the writing end must go first, or there would be no end.
func (c *capture) start() {
	c.w.Close()
	c.w = nil
	go func() {
		defer close(c.done)
		io.CopyBuffer(c, struct{ io.Reader }{c.r}, make([]byte, 8<<10))
	}()
}

func (c *capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if room := c.limit - c.buf.Len(); room > 0 {
		c.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (c *capture) drain(ctx context.Context) {
	select {
	case <-c.done:
	case <-ctx.Done():
	}
}

func (c *capture) bytes() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.buf.Bytes())
}

func (c *capture) close() {
	c.r.Close()
	if c.w != nil {
		c.w.Close()
	}
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
