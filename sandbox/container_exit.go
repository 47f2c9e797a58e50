package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// Reasons of an exit (CRI ContainerStatus.reason).
const (
	reasonCompleted = "Completed"
	reasonError     = "Error"
	reasonOOM       = "OOMKilled"
	// exitUnknown is the exit code where the real one is lost.
	exitUnknown = 255
	// reapTime is how long the machine's PID 1 may take to reap an orphan.
	reapTime = 10 * time.Second
)

// exited hears from a supervisor that a process has ended.
func (m *Manager) exited(e *api.Exit) {
	m.mu.Lock()
	c := m.ctrs[e.ID]
	init := m.inits[e.ID]
	exec := m.execs[e.ID]
	delete(m.inits, e.ID)
	delete(m.execs, e.ID)
	m.mu.Unlock()
	switch {
	case exec != nil:
		exec <- e
	case init != nil:
		close(init)
		go m.initEnded(e)
	case c != nil:
		go m.containerExited(c, e)
	}
}

// initEnded: a pod whose init has ended without being told to is not ready any more.
func (m *Manager) initEnded(e *api.Exit) {
	p, err := m.pod(e.ID)
	if err != nil {
		return
	}
	m.forget(e.ID, m.snapshot(p).Supervisor)
	if m.snapshot(p).State() == PodReady {
		m.updatePod(p, func(p *Pod) { p.Why = "the init of the pod's PID namespace has ended" })
		m.cfg.Log.Error("pod init has ended", "pod", p.ID, "code", e.Code)
	}
}

// containerExited records an exit, then gives back what the process held. The record
// is written before the exit file goes.
func (m *Manager) containerExited(c *ctr, e *api.Exit) {
	reason := reasonCompleted
	switch {
	case e.OOM:
		reason = reasonOOM
	case e.Code != 0:
		reason = reasonError
	}
	m.finish(c, func(c *Container) {
		c.FinishedAt, c.ExitCode, c.OOMKilled, c.Reason = e.At, e.Code, e.OOM, reason
	})
	m.reclaim(c)
}

// reclaim gives back what an ended container's process held. What fails is
// tried again by the reconciler and at removal.
func (m *Manager) reclaim(c *ctr) {
	ctx, cancel := m.cleanup(context.Background())
	defer cancel()
	p, err := m.pod(c.PodID)
	if err != nil {
		return
	}
	pod := m.snapshot(p)
	if err := m.cfg.Runtime.Cleanup(ctx, pod, &c.Container); err != nil {
		m.cfg.Log.Warn("cgroup of an ended container", "ctr", c.ID, "err", err)
	}
	m.forget(c.ID, pod.Supervisor)
	if err := os.Remove(m.exitFile(c.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.cfg.Log.Warn("exit file", "ctr", c.ID, "err", err)
	}
}

// forget lets the supervisor drop an ended process.
func (m *Manager) forget(id, supervisor string) {
	if c, err := m.pool.of(supervisor); err == nil {
		m.forgetAt(c, id)
	}
}

func (m *Manager) forgetAt(c *client, id string) {
	ctx, cancel := m.cleanup(context.Background())
	defer cancel()
	if _, _, err := c.call(ctx, &api.Request{Op: api.OpForget, ID: id}); err != nil && !errors.Is(err, ErrUnavailable) {
		m.cfg.Log.Warn("forget an ended process", "ctr", id, "err", err)
	}
}

// finish sets the facts of a container's end once, records them and wakes who waits.
func (m *Manager) finish(c *ctr, facts func(*Container)) {
	var first bool
	err := m.updateContainer(c, func(c *ctr) {
		if first = c.FinishedAt.IsZero(); first {
			facts(&c.Container)
			c.dropPidfd()
		}
	})
	if err != nil {
		m.cfg.Log.Error("record an exit", "ctr", c.ID, "err", err)
	}
	if first {
		close(c.done)
	}
}

// lost is told that a supervisor has died. Its containers go on as orphans, and their exit
// codes come from the pidfds that are held here.
func (m *Manager) lost(supervisor string, pods []string) {
	for _, id := range pods {
		m.mu.Lock()
		init := m.inits[id]
		delete(m.inits, id)
		m.mu.Unlock()
		if p, err := m.pod(id); err == nil && init != nil {
			close(init)
			m.updatePod(p, func(p *Pod) { p.Why = "the supervisor of the pod's init has died" })
		}
		for _, c := range m.containersOf(id) {
			m.mu.Lock()
			pidfd := c.pidfd
			c.pidfd = nil
			m.mu.Unlock()
			if pidfd != nil {
				go m.orphan(c, pidfd)
			}
		}
	}
}

// orphan waits for a container that no supervisor holds.
func (m *Manager) orphan(c *ctr, pidfd *os.File) {
	keep, err := sys.Dup(pidfd)
	if err == nil {
		m.mu.Lock()
		c.pidfd = keep // for signals; finish closes it
		m.mu.Unlock()
	}
	f, wait, err := sys.WaitPidfd(pidfd)
	if err == nil {
		defer f.Close()
		err = wait()
	}
	e := &api.Exit{ID: c.ID, Code: exitUnknown, At: time.Now()}
	text := "its supervisor died and the exit code was lost"
	if err == nil {
		status, statusErr := sys.PidfdExitWait(f, reapTime)
		if statusErr == nil {
			e.Code, e.Signal = sys.ExitCode(status)
			text = "its supervisor died before it"
		} else {
			text += ": " + statusErr.Error()
		}
	}
	m.finish(c, func(c *Container) {
		c.FinishedAt, c.ExitCode, c.Reason, c.Message = e.At, e.Code, reasonError, text
		if e.Code == 0 {
			c.Reason = reasonCompleted
		}
	})
	m.reclaim(c)
}

// readExit reads an exit file; nil without an error when there is none.
func (m *Manager) readExit(id string) (*api.Exit, error) {
	data, err := os.ReadFile(m.exitFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	e := new(api.Exit)
	return e, json.Unmarshal(data, e)
}
