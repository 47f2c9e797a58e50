package sandbox

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/sandbox/api"
)

const (
	syscallKill = syscall.SIGKILL
	sigKill     = int(syscallKill)
)

// StopPod stops a pod's containers and gives its network back. Unknown pods are stopped already.
func (m *Manager) StopPod(ctx context.Context, id string) error {
	p, free, err := m.takePod(ctx, id, "stop")
	if p == nil {
		return err
	}
	defer free()
	if err := m.stopPod(ctx, p); err != nil {
		return fmt.Errorf("stop pod sandbox %s: %w", p.ID, err)
	}
	return nil
}

// RemovePod removes a pod and its containers. Unknown pods are removed already.
func (m *Manager) RemovePod(ctx context.Context, id string) error {
	p, free, err := m.takePod(ctx, id, "remove")
	if p == nil {
		return err
	}
	defer free()
	if err := m.teardownPod(ctx, p); err != nil {
		return fmt.Errorf("remove pod sandbox %s: %w", p.ID, err)
	}
	return nil
}

// takePod finds a pod and locks it for an operation; a nil pod without an error is unknown.
func (m *Manager) takePod(ctx context.Context, id, op string) (*pod, func(), error) {
	p, err := m.pod(id)
	if errors.Is(err, ErrNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	free, err := m.locks.take(ctx, "pod sandbox "+p.ID, op)
	if err != nil {
		return nil, nil, err
	}
	if _, err := m.pod(p.ID); err != nil { // removed while we waited
		free()
		return nil, nil, nil
	}
	return p, free, nil
}

// stopPod is the first half of the teardown. It is safe at any point, and twice.
func (m *Manager) stopPod(ctx context.Context, p *pod) error {
	m.recordStop(p, func(p *Pod) {
		if p.StoppedAt.IsZero() {
			p.StoppedAt = time.Now()
		}
	})
	if err := m.killContainers(ctx, p); err != nil {
		return err
	}
	if err := m.stopPodInit(ctx, p); err != nil {
		return err
	}
	facts := m.snapshot(p)
	if facts.Attached {
		if err := m.cfg.Network.Teardown(ctx, facts); err != nil {
			return err
		}
		m.recordStop(p, func(p *Pod) { p.Attached = false })
	}
	m.tellPodEnd(p)
	m.mu.Lock()
	tell := (p.announced || !p.ReadyAt.IsZero()) && !p.stopTold
	p.stopTold = true
	m.mu.Unlock()
	if tell {
		m.tellPlugins(ctx, PluginStopPod, facts, nil)
	}
	return m.removePodFiles(facts)
}

// recordStop records a step of a stop as well as it can: on a full disk pods must stop, and
// every step can be done again by a daemon that does not know of it.
func (m *Manager) recordStop(p *pod, change func(*Pod)) {
	if err := m.updatePod(p, change); err != nil {
		m.cfg.Log.Error("record a stop", "pod", p.ID, "err", err)
	}
}

// killContainers kills all containers of the pod side by side.
func (m *Manager) killContainers(ctx context.Context, p *pod) error {
	all := m.containersOf(p.ID)
	errs := make(chan error, len(all))
	for _, c := range all {
		go func() { errs <- m.stopContainer(ctx, c, 0) }()
	}
	var err error
	for range all {
		err = errors.Join(err, <-errs)
	}
	return err
}

func (m *Manager) stopPodInit(ctx context.Context, p *pod) error {
	m.mu.Lock()
	done := m.inits[p.ID]
	m.mu.Unlock()
	if done == nil {
		if facts := m.snapshot(p); m.sharesPID(facts) { // its supervisor may have died before it
			return m.cfg.Runtime.CleanupPod(ctx, facts)
		}
		return nil
	}
	c, err := m.pool.of(m.snapshot(p).Supervisor)
	if err != nil {
		return err
	}
	if _, _, err := c.call(ctx, &api.Request{Op: api.OpSignal, ID: p.ID, Signal: sigKill}); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("the pod's init does not end: %w", ctx.Err())
	}
	if _, err := m.pool.of(c.id); err != nil { // the supervisor has ended and maybe not the init
		return m.cfg.Runtime.CleanupPod(ctx, m.snapshot(p))
	}
	return nil
}

// teardownPod is how a pod goes: roll-back, removal and recovery alike. The record goes last.
func (m *Manager) teardownPod(ctx context.Context, p *pod) error {
	if err := m.stopPod(ctx, p); err != nil {
		return err
	}
	for _, c := range m.containersOf(p.ID) {
		if err := m.RemoveContainer(ctx, c.ID); err != nil {
			return err
		}
	}
	facts := m.snapshot(p)
	if err := m.cfg.Runtime.CleanupPod(ctx, facts); err != nil {
		return err
	}
	if facts.Supervisor != "" {
		m.pool.free(ctx, facts.Supervisor, p.ID)
	}
	defer m.holdPlugins()()
	if p.announced || !p.ReadyAt.IsZero() {
		m.tellPlugins(ctx, PluginRemovePod, facts, nil)
	}
	if err := m.podFiles.remove(p.ID); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, p.ID)
	if !p.ReadyAt.IsZero() {
		m.tellLocked(EventDeleted, p.ID, &p.Pod)
	}
	return nil
}
