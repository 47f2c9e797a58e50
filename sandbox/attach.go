package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

const (
	// attachBuffer is what an attached client may be behind before it misses output, in bytes of kernel memory that
	// are taken only then.
	attachBuffer = 1 << 20
	// endTime is how long a container's exit may take to be known here after its output has ended.
	endTime = 5 * time.Second
)

// Attach connects a client to the streams of a running container until the container ends or ctx does. The container
// and its log never wait for it.
func (m *Manager) Attach(ctx context.Context, id string, s Streams) error {
	c, err := m.container(id)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := m.attachTo(ctx, c, s); err != nil {
		return fmt.Errorf("attach to container %s: %w", c.ID, err)
	}
	return nil
}

func (m *Manager) attachTo(ctx context.Context, c *ctr, s Streams) error {
	client, done, err := m.reach(c)
	if err != nil {
		return err
	}
	a, err := newAttachment(c.Config.TTY, s)
	if err != nil {
		return err
	}
	defer a.close()
	_, _, err = client.call(ctx, &api.Request{Op: api.OpAttach, ID: c.ID, Roles: a.roles}, a.theirs...)
	if err != nil {
		return err
	}
	a.start(s)
	if s.Resizes != nil && c.Config.TTY {
		go m.resize(ctx, client, c.ID, s)
	}
	return a.wait(ctx, client, done)
}

// reach finds the supervisor of a running container, and what is closed at the container's exit.
func (m *Manager) reach(c *ctr) (*client, <-chan struct{}, error) {
	m.mu.Lock()
	state, done := c.State(), c.done
	m.mu.Unlock()
	if state != ContainerRunning {
		return nil, nil, fmt.Errorf("%w: the container is %s", ErrState, state)
	}
	p, err := m.pod(c.PodID)
	if err != nil {
		return nil, nil, err
	}
	client, err := m.pool.of(m.snapshot(p).Supervisor)
	return client, done, err
}

func (m *Manager) resize(ctx context.Context, client *client, id string, s Streams) {
	for size := range s.Resizes {
		if _, _, err := client.call(ctx, &api.Request{Op: api.OpResize, ID: id, Rows: size.Rows, Cols: size.Cols}); err != nil {
			m.cfg.Log.Debug("resize a terminal", "ctr", id, "err", err)
		}
	}
}

// attachment is the daemon's ends of the pipes between a client and a supervisor.
type attachment struct {
	outputs []*output
	stdin   *os.File // nil where the client has none
	session *os.File // its end is that of the attachment
	fed     chan struct{}

	roles  []api.Role
	theirs []*os.File
}

// newAttachment makes the pipes that a client asks for. A container with a terminal has one output only.
func newAttachment(terminal bool, s Streams) (a *attachment, err error) {
	a = &attachment{fed: make(chan struct{})}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	r, w, err := sys.Pipe(true)
	if err != nil {
		return a, err
	}
	a.session = w
	a.give(api.RoleSession, r)
	if terminal {
		s.Stderr = nil
	}
	for role, to := range map[api.Role]io.Writer{api.RoleStdout: s.Stdout, api.RoleStderr: s.Stderr} {
		if to == nil {
			continue
		}
		o, err := newOutput(to)
		if err != nil {
			return a, err
		}
		_ = sys.GrowPipe(o.r, attachBuffer) // what a process may have of it is limited; the usual size will do
		a.outputs = append(a.outputs, o)
		a.give(role, o.w)
		o.w = nil
	}
	if s.Stdin != nil {
		r, w, err := sys.Pipe(true)
		if err != nil {
			return a, err
		}
		a.stdin = w
		a.give(api.RoleStdin, r)
	}
	return a, nil
}

func (a *attachment) give(role api.Role, f *os.File) {
	a.roles, a.theirs = append(a.roles, role), append(a.theirs, f)
}

// start copies; our copies of the supervisor's ends must go first.
func (a *attachment) start(s Streams) {
	closeFiles(a.theirs)
	a.theirs = nil
	for _, o := range a.outputs {
		o.start()
	}
	if a.stdin != nil {
		go func() {
			defer close(a.fed)
			feed(a.stdin, s.Stdin, true)
		}()
	}
}

// wait ends with the container, with ctx, and, for a client that wants no output, with its input.
func (a *attachment) wait(ctx context.Context, client *client, done <-chan struct{}) error {
	if len(a.outputs) == 0 {
		select {
		case <-a.fed:
			return nil
		case <-done:
			return nil
		case <-client.gone:
			return fmt.Errorf("%w: the connection to supervisor %s broke", ErrUnavailable, client.id)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, o := range a.outputs {
		if err := o.wait(ctx); err != nil {
			return err
		}
	}
	if !waitFor(ctx, done, endTime) && ctx.Err() == nil {
		return fmt.Errorf("%w: supervisor %s let go of the client while the container runs", ErrUnavailable, client.id)
	}
	return nil
}

func (a *attachment) close() {
	closeFiles(a.theirs)
	for _, o := range a.outputs {
		o.close()
	}
	for _, f := range []*os.File{a.stdin, a.session} {
		if f != nil {
			f.Close()
		}
	}
}
