package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// Reasons of an exit (CRI ContainerStatus.reason).
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOM        = "OOMKilled"
	reasonStartError = "StartError"
	// exitUnknown is the exit code where the real one is lost.
	exitUnknown = 255
	// reapTime is how long the machine's PID 1 may take to reap an orphan.
	reapTime = 10 * time.Second
)

// exited hears from a supervisor that a process has ended. It may hear it twice.
func (m *Manager) exited(from *client, e *api.Exit) {
	m.mu.Lock()
	c := m.ctrs[e.ID]
	init := m.inits[e.ID]
	exec := m.execs[e.ID]
	delete(m.inits, e.ID)
	delete(m.execs, e.ID)
	if exec != nil {
		exec <- e // it has room for one, and gets only one
	}
	m.mu.Unlock()
	switch {
	case exec != nil:
	case init != nil:
		close(init)
		m.background.Go(func() { m.initEnded(e) })
	case c != nil && e.Failed != "":
		m.background.Go(func() { m.launchFailed(c, e) })
	case c != nil:
		m.background.Go(func() { m.containerExited(c, e) })
	default:
		m.background.Go(func() { m.strayExit(from, e) })
	}
}

// strayExit is of a process that nobody knows any more: of a container that was removed before its supervisor had written
// why its launch failed.
func (m *Manager) strayExit(from *client, e *api.Exit) {
	if e.Failed == "" {
		m.forgetAt(from, e.ID)
	}
	m.dropExit(e.ID)
}

// dropExit removes an exit file, unless there is a record that it may belong to.
func (m *Manager) dropExit(id string) {
	if _, err := m.container(id); !errors.Is(err, ErrNotFound) || m.recordKept(m.ctrFiles.path(id)) {
		return
	}
	if err := os.Remove(m.exitFile(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.cfg.Log.Warn("exit file", "ctr", id, "err", err)
	}
}

// launchFailed: whoever asked for the launch records why it failed. This is for a launch that
// an earlier daemon asked for.
func (m *Manager) launchFailed(c *ctr, e *api.Exit) {
	free, err := m.locks.take(m.life, "container "+c.ID, "record a failed launch")
	if err != nil {
		return
	}
	defer free()
	m.recordFailed(c, e)
}

func (m *Manager) recordFailed(c *ctr, e *api.Exit) {
	m.finish(c, func(c *Container) {
		c.FinishedAt, c.ExitCode, c.Reason, c.Message = e.At, exitStartError, reasonStartError, e.Failed
	})
	m.reclaim(c)
}

// initEnded: a pod whose init has ended without being told to is not ready any more.
func (m *Manager) initEnded(e *api.Exit) {
	p, err := m.pod(e.ID)
	if err != nil {
		return
	}
	m.updatePod(p, func(p *Pod) {
		if p.StoppedAt.IsZero() && p.Why == "" {
			p.Why = fmt.Sprintf("the init of the pod's PID namespace has ended with code %d", e.Code)
			m.cfg.Log.Error("pod init has ended", "pod", p.ID, "code", e.Code)
		}
	})
	m.tellPodEnd(p)
	m.forget(e.ID, m.snapshot(p).Supervisor)
}

// containerExited records an exit, then gives back what the process held. The record
// is written before the exit file goes.
func (m *Manager) containerExited(c *ctr, e *api.Exit) {
	err := m.finish(c, func(c *Container) {
		c.FinishedAt, c.ExitCode, c.OOMKilled, c.Reason = e.At, e.Code, e.OOM, exitReason(e)
	})
	if err == nil { // else the exit file and the supervisor keep it, and compare tries again
		m.reclaim(c)
	}
}

func exitReason(e *api.Exit) string {
	switch {
	case e.OOM:
		return reasonOOM
	case e.Code != 0:
		return reasonError
	}
	return reasonCompleted
}

// reclaim gives back what an ended container's process held. What fails is
// tried again by the reconciler and at removal.
func (m *Manager) reclaim(c *ctr) {
	ctx, cancel := context.WithTimeout(m.life, m.cfg.CleanupTimeout)
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
	ctx, cancel := context.WithTimeout(m.life, helloTimeout)
	defer cancel()
	_, _, err := c.call(ctx, &api.Request{Op: api.OpForget, ID: id})
	if err != nil && !errors.Is(err, ErrUnavailable) && m.life.Err() == nil { // compare tries again
		m.cfg.Log.Warn("forget an ended process", "ctr", id, "err", err)
	}
}

// finish sets the facts of a container's end once, records them and wakes who waits.
func (m *Manager) finish(c *ctr, facts func(*Container)) error {
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
		m.tellEnd(c) // before anyone who waits for the end could remove it
		m.tellPluginsOf(m.life, PluginStopContainer, c)
		close(c.done)
	}
	return err
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
			m.updatePod(p, func(p *Pod) { p.Why = "the supervisor of the pod's init has died" })
			m.tellPodEnd(p)
			close(init)
		}
		for _, c := range m.containersOf(id) {
			m.orphan(c)
		}
	}
}

// orphan waits for a running container that no supervisor holds.
func (m *Manager) orphan(c *ctr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.pidfd == nil {
		return
	}
	pidfd, err := sys.Dup(c.pidfd) // the other one is for signals
	m.background.Go(func() { m.awaitOrphan(c, pidfd, err) })
}

func (m *Manager) awaitOrphan(c *ctr, pidfd *os.File, err error) {
	var e *api.Exit
	text := "its supervisor died before it"
	if err == nil {
		e, err = m.orphanExit(c, pidfd)
	}
	if m.life.Err() != nil {
		return // the next daemon will wait
	}
	if err != nil {
		e = &api.Exit{ID: c.ID, Code: exitUnknown, At: time.Now()}
		text = "its supervisor died and the exit code was lost: " + err.Error()
	}
	m.finish(c, func(c *Container) {
		c.FinishedAt, c.ExitCode, c.OOMKilled, c.Reason, c.Message = e.At, e.Code, e.OOM, exitReason(e), text
	})
	m.reclaim(c)
}

// orphanExit waits for the end of a process. How it ended is asked of the kernel, or read from
// the exit file: a supervisor that cannot be talked to may live and write it.
func (m *Manager) orphanExit(c *ctr, pidfd *os.File) (*api.Exit, error) {
	f, wait, err := sys.WaitPidfd(pidfd)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	defer context.AfterFunc(m.life, func() { f.Close() })()
	if err := wait(); err != nil {
		return nil, err
	}
	at := time.Now()
	status, err := sys.PidfdExitWait(f, reapTime)
	if err == nil {
		code, sig := sys.ExitCode(status)
		return &api.Exit{ID: c.ID, Code: code, Signal: sig, At: at}, nil
	}
	if e, fileErr := m.readExit(c.ID); e != nil && fileErr == nil {
		return e, nil
	}
	return nil, err
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
	if err := json.Unmarshal(data, e); err != nil {
		return nil, fmt.Errorf("%s: %w", m.exitFile(id), err)
	}
	if e.ID != id {
		return nil, fmt.Errorf("%s: id: %q is not the file's name", m.exitFile(id), e.ID)
	}
	return e, nil
}
