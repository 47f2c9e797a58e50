package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// recover takes up what the last daemon left: it reads the records, connects to the
// supervisors, learns what has ended meanwhile, and undoes what was interrupted.
func (m *Manager) recover(ctx context.Context) error {
	if err := m.loadRecords(); err != nil {
		return err
	}
	if err := m.pool.recover(ctx); err != nil {
		return err
	}
	held := m.heldProcesses(ctx)
	for _, p := range m.pods {
		m.recoverPod(p, held)
	}
	for _, c := range m.ctrs {
		if err := m.recoverContainer(ctx, c, held); err != nil {
			m.cfg.Log.Error("recover container", "ctr", c.ID, "err", err)
		}
	}
	for _, c := range m.pool.all() {
		m.compare(ctx, c)
	}
	ended := make(chan struct{})
	m.background.Go(func() {
		defer close(ended)
		m.endInterrupted(m.life)
	})
	waitFor(ctx, ended, startPatience)
	m.background.Go(m.emptyTrash)
	return nil
}

// startPatience bounds how long a start waits for what the last daemon left half done: a network plugin that hangs must
// not keep the daemon from its other pods.
const startPatience = 5 * time.Second

func (m *Manager) loadRecords() error {
	pods, badPods, err := m.podFiles.load(func(p *Pod) string { return p.ID })
	if err != nil {
		return err
	}
	ctrs, badCtrs, err := m.ctrFiles.load(func(c *Container) string { return c.ID })
	if err != nil {
		return err
	}
	m.bad = append(badPods, badCtrs...)
	for _, b := range m.bad {
		m.cfg.Log.Error("record cannot be read; its object is left alone", "file", b.Path, "err", b.Err)
	}
	for _, p := range pods {
		m.pods[p.ID] = &pod{Pod: *p}
		if m.sharesPID(p) { // until its supervisor says otherwise: the exit may come before its list
			m.inits[p.ID] = make(chan struct{})
		}
	}
	for _, c := range ctrs {
		done := make(chan struct{})
		if !c.FinishedAt.IsZero() {
			close(done)
		}
		m.ctrs[c.ID] = &ctr{Container: *c, done: done}
	}
	return nil
}

// heldProcess is a process that a supervisor told of.
type heldProcess struct {
	api.Process
	client *client
}

func (m *Manager) heldProcesses(ctx context.Context) map[string]heldProcess {
	held := map[string]heldProcess{}
	for _, c := range m.pool.all() {
		processes, err := m.list(ctx, c)
		if err != nil { // it dies just now
			m.cfg.Log.Error("processes of a supervisor", "supervisor", c.id, "err", err)
		}
		for _, p := range processes {
			held[p.ID] = heldProcess{Process: p, client: c}
		}
	}
	return held
}

func (m *Manager) list(ctx context.Context, c *client) ([]api.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	return c.list(ctx)
}

// recoverPod decides whether a pod is still what its record says.
func (m *Manager) recoverPod(p *pod, held map[string]heldProcess) {
	facts := m.snapshot(p)
	m.pool.keep(facts.Supervisor, p.ID)
	m.mu.Lock()
	if init, ok := held[p.ID]; !ok || init.Exit != nil {
		delete(m.inits, p.ID)
	}
	init := m.inits[p.ID]
	m.mu.Unlock()
	why := ""
	switch {
	case facts.State() != PodReady:
		return
	case facts.Boot != m.boot:
		why = "the node was rebooted"
	case m.sharesPID(facts) && init == nil:
		why = "the init of the pod's PID namespace is gone"
	default:
		why = m.missingNamespace(facts)
	}
	if why == "" {
		return
	}
	m.cfg.Log.Warn("pod is not ready any more", "pod", p.ID, "why", why)
	if err := m.updatePod(p, func(p *Pod) { p.Why = why }); err != nil {
		m.cfg.Log.Error("record", "pod", p.ID, "err", err)
	}
}

// checkNamespaces: a pod whose namespaces somebody has unpinned can start nothing any more. A client that sees it not
// ready makes another.
func (m *Manager) checkNamespaces(ctx context.Context, p *pod) {
	if facts := m.snapshot(p); facts.State() != PodReady || m.missingNamespace(facts) == "" {
		return
	}
	brief, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	p, free, err := m.takePod(brief, p.ID, "check")
	if p == nil || err != nil {
		return // it is gone, or being worked on
	}
	defer free()
	facts := m.snapshot(p)
	why := m.missingNamespace(facts)
	if facts.State() != PodReady || why == "" {
		return
	}
	m.cfg.Log.Warn("pod is not ready any more", "pod", p.ID, "why", why)
	if err := m.updatePod(p, func(p *Pod) { p.Why = why }); err != nil {
		m.cfg.Log.Error("record", "pod", p.ID, "err", err)
	}
	m.tellPodEnd(p)
}

func (m *Manager) missingNamespace(p *Pod) string {
	for _, ns := range podNamespaces {
		path := m.namespacePath(p, ns.kind)
		if path == "" {
			continue
		}
		if ok, err := sys.IsNamespace(path); !ok || err != nil {
			return errors.Join(fmt.Errorf("its %s namespace %s is gone", ns.kind, path), err).Error()
		}
	}
	return ""
}

// recoverContainer learns how a container that was running fares now.
func (m *Manager) recoverContainer(ctx context.Context, c *ctr, held map[string]heldProcess) error {
	facts := m.facts(c)
	if facts.CreatedAt.IsZero() {
		return nil // an interrupted creation, undone later
	}
	if err := m.cfg.Images.Hold(facts.ImageID, c.ID); err != nil {
		m.cfg.Log.Warn("the image of a container is gone", "ctr", c.ID, "image", facts.ImageID, "err", err)
	}
	h, known := held[c.ID]
	if facts.LaunchedAt.IsZero() && !known || !facts.FinishedAt.IsZero() {
		return nil
	}
	exit, err := m.readExit(c.ID)
	if err != nil {
		m.cfg.Log.Error("exit file", "ctr", c.ID, "err", err)
	}
	switch {
	case exit != nil && exit.Failed != "":
		m.recordFailed(c, exit)
		return nil
	case exit != nil:
		m.containerExited(c, exit)
		return nil
	case known && h.Exit != nil:
		m.containerExited(c, h.Exit)
		return nil
	case known:
		err := m.adopt(ctx, c, h)
		if errors.Is(err, ErrNotFound) {
			return nil // its launch has failed just now, and an event says so
		}
		return err
	}
	return m.recoverOrphan(c)
}

// adopt takes up a container that runs.
func (m *Manager) adopt(ctx context.Context, c *ctr, h heldProcess) error {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	_, pidfd, err := h.client.call(ctx, &api.Request{Op: api.OpPidfd, ID: c.ID})
	if err != nil {
		return err
	}
	if pidfd == nil {
		return fmt.Errorf("supervisor %s: pidfd: none in the answer", h.client.id)
	}
	begun, _ := sys.StartTime(h.PID) // 0 where it has ended already
	return m.updateContainer(c, func(c *ctr) {
		if !c.FinishedAt.IsZero() { // its exit came while we asked
			pidfd.Close()
			return
		}
		c.pidfd, c.PID, c.PIDStart = pidfd, h.PID, begun
		if c.LaunchedAt.IsZero() {
			c.LaunchedAt = time.Now()
		}
		if c.StartedAt.IsZero() {
			c.StartedAt = c.LaunchedAt
		}
	})
}

// recoverOrphan is for a container that no supervisor knows: its own has died, the node
// was rebooted, or its launch was interrupted before there was a process.
func (m *Manager) recoverOrphan(c *ctr) error {
	p := m.pods[c.PodID]
	if facts := m.facts(c); p != nil && p.Boot == m.boot && facts.PID > 0 {
		pidfd, err := sys.PidfdOpenSame(facts.PID, facts.PIDStart)
		if err == nil {
			m.mu.Lock()
			c.pidfd = pidfd
			m.mu.Unlock()
			m.orphan(c)
			return nil
		}
	}
	m.finish(c, func(c *Container) {
		c.FinishedAt = time.Now()
		c.ExitCode, c.Reason, c.Message = exitUnknown, reasonError, "its exit code was lost: neither its supervisor nor an exit file tells it"
		if c.StartedAt.IsZero() {
			c.ExitCode, c.Reason, c.Message = exitStartError, reasonStartError, "the start was interrupted by a restart of the daemon"
		}
		if p != nil && p.Boot != m.boot {
			c.Message = "the node was rebooted"
		}
	})
	if p != nil {
		m.callOff(p, c.ID)
	}
	m.reclaim(c)
	return nil
}

// callOff ends a launch that a supervisor may still be at for the last daemon: another runtime's may take long.
func (m *Manager) callOff(p *pod, id string) {
	c, err := m.pool.of(p.Supervisor)
	if err != nil {
		return // with it died who could launch
	}
	if err := m.signal(m.life, c, id, false); err != nil {
		m.cfg.Log.Warn("call off an interrupted launch", "ctr", id, "err", err)
	}
}

// found takes up a supervisor that is reached again.
func (m *Manager) found(c *client) {
	for _, p := range m.recorded() {
		if p.Supervisor == c.id {
			m.pool.keep(c.id, p.ID)
		}
	}
	m.compare(m.life, c)
}

// compare brings together what a supervisor holds and what is known here: exits whose event
// was lost are taken up, and processes that nobody wants any more are ended, such as execs
// of the last daemon or what a launch left that nobody waited for.
func (m *Manager) compare(ctx context.Context, c *client) {
	processes, err := m.list(ctx, c)
	if err != nil {
		if ctx.Err() == nil {
			m.cfg.Log.Warn("processes of a supervisor", "supervisor", c.id, "err", err)
		}
		return
	}
	for _, h := range processes {
		switch {
		case h.Exit != nil:
			m.exited(c, h.Exit)
		case !m.wanted(h.ID):
			m.cfg.Log.Info("end a process that nobody waits for", "ctr", h.ID, "pid", h.PID)
			if err := m.killFamily(ctx, c, h.ID); err != nil { // its exit will have it forgotten
				m.cfg.Log.Warn("end a stray process", "ctr", h.ID, "err", err)
			}
		}
	}
}

// wanted tells whether a process that runs is known. What belongs to a record that could not be
// read is left alone.
func (m *Manager) wanted(id string) bool {
	m.mu.Lock()
	c := m.ctrs[id]
	known := m.inits[id] != nil || m.execs[id] != nil || c != nil && c.FinishedAt.IsZero()
	unread := m.pods[id] == nil && c == nil
	m.mu.Unlock()
	return known || unread && (m.recordKept(m.podFiles.path(id)) || m.recordKept(m.ctrFiles.path(id)))
}

// killFamily kills a process with what it has started: one that nobody waits for, as an exec that was running when the last
// daemon died, or one whose launch was given up, which may still be the init.
func (m *Manager) killFamily(ctx context.Context, c *client, id string) error {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	r, pidfd, err := c.call(ctx, &api.Request{Op: api.OpPidfd, ID: id})
	if pidfd != nil {
		err = sys.KillFamily(pidfd, r.PID)
		pidfd.Close()
	}
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	// A launch that the supervisor has not come to is called off, and one that it has come to meanwhile is killed.
	return errors.Join(err, m.signal(ctx, c, id, true))
}

// signal kills a process by its ID; nil when there is none.
func (m *Manager) signal(ctx context.Context, c *client, id string, family bool) error {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	_, _, err := c.call(ctx, &api.Request{Op: api.OpSignal, ID: id, Signal: sigKill, Family: family})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// endInterrupted undoes what was half made, and finishes what was half stopped. What cannot be
// finished now is tried again by the next reconciliation.
func (m *Manager) endInterrupted(ctx context.Context) {
	var ctrs []*ctr
	var pods []string
	m.mu.Lock()
	for _, c := range m.ctrs {
		if c.CreatedAt.IsZero() || m.pods[c.PodID] == nil && !m.recordKept(m.podFiles.path(c.PodID)) {
			ctrs = append(ctrs, c)
		}
	}
	for id, p := range m.pods {
		if p.ReadyAt.IsZero() || !p.StoppedAt.IsZero() && p.Attached {
			pods = append(pods, id)
		}
	}
	m.mu.Unlock()
	side(ctrs, func(c *ctr) {
		if err := m.endInterruptedContainer(ctx, c); err != nil {
			m.cfg.Log.Warn("undo an interrupted creation", "ctr", c.ID, "err", err)
		}
	})
	side(pods, func(id string) {
		if err := m.endInterruptedPod(ctx, id); err != nil {
			m.cfg.Log.Warn("finish an interrupted operation", "pod", id, "err", err)
		}
	})
}

// interruptedAtOnce is how many interrupted pods or containers are put in order beside one another.
const interruptedAtOnce = 8

// side calls f for all, some at a time.
func side[T any](all []T, f func(T)) {
	var g errgroup.Group
	g.SetLimit(interruptedAtOnce)
	for _, v := range all {
		g.Go(func() error { f(v); return nil })
	}
	g.Wait()
}

// lockPatience is how long the reconciler waits for an object that an operation holds.
const lockPatience = 100 * time.Millisecond

func (m *Manager) endInterruptedContainer(ctx context.Context, c *ctr) error {
	brief, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	free, err := m.locks.take(brief, "container "+c.ID, "clean-up")
	if err != nil {
		return nil // not interrupted: it is being worked on
	}
	defer free()
	if facts, err := m.Container(c.ID); err != nil || !facts.CreatedAt.IsZero() && m.hasPod(c.PodID) {
		return nil
	}
	return m.teardownContainer(ctx, c)
}

func (m *Manager) hasPod(id string) bool {
	_, err := m.Pod(id)
	return err == nil
}

func (m *Manager) endInterruptedPod(ctx context.Context, id string) error {
	brief, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	p, free, err := m.takePod(brief, id, "clean-up")
	if p == nil || err != nil {
		return nil
	}
	defer free()
	switch facts := m.snapshot(p); {
	case facts.ReadyAt.IsZero():
		return m.teardownPod(ctx, p)
	case !facts.StoppedAt.IsZero() && facts.Attached:
		return m.stopPod(ctx, p)
	}
	return nil
}

// reconcileLoop compares records with the node every now and then.
func (m *Manager) reconcileLoop(ctx context.Context) {
	m.reconcile(ctx)
	if m.cfg.ReconcileInterval <= 0 {
		return
	}
	tick := time.NewTicker(m.cfg.ReconcileInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.reconcile(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// reconcile frees what no pod holds: network attachments, pod folders, exit files, cgroups
// of ended containers. Pods that have lost what they need are not ready any more.
func (m *Manager) reconcile(ctx context.Context) {
	m.mu.Lock()
	var ended []*ctr
	for _, c := range m.ctrs {
		if !c.FinishedAt.IsZero() {
			ended = append(ended, c)
		}
	}
	pods := slices.Collect(maps.Values(m.pods))
	m.mu.Unlock()
	for _, p := range pods {
		m.checkNamespaces(ctx, p)
	}
	if err := m.cfg.Network.Collect(ctx, m.recorded); err != nil && ctx.Err() == nil {
		m.cfg.Log.Warn("collect network attachments", "err", err)
	}
	for _, c := range ended {
		if ctx.Err() != nil {
			return
		}
		if p, err := m.Pod(c.PodID); err == nil {
			if err := m.cfg.Runtime.Cleanup(ctx, p, &c.Container); err != nil {
				m.cfg.Log.Warn("cgroup of an ended container", "ctr", c.ID, "err", err)
			}
		}
	}
	m.pool.retry(ctx)
	for _, c := range m.pool.all() {
		m.compare(ctx, c)
	}
	m.endInterrupted(ctx)
	m.dropFolders()
}

// recorded is every pod with a record, those that are being made too.
func (m *Manager) recorded() []*Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*Pod, 0, len(m.pods))
	for _, p := range m.pods {
		facts := p.Pod
		all = append(all, &facts)
	}
	// A pod whose record cannot be read may well run: what belongs to it is left alone.
	for _, name := range readDir(m.podFiles.dir) {
		if id, ok := strings.CutSuffix(name, ".json"); ok && m.pods[id] == nil {
			all = append(all, &Pod{ID: id})
		}
	}
	return all
}

// dropFolders removes folders of pods and containers, and exit files, that no record knows. They are
// made after their record, and a new record is looked for last, so none in use is taken.
func (m *Manager) dropFolders() {
	for _, e := range readDir(m.podStateDir("")) {
		if _, err := m.pod(e); errors.Is(err, ErrNotFound) && len(e) == 64 && !m.recordKept(m.podFiles.path(e)) {
			m.cfg.Log.Info("remove what an unknown pod left", "pod", e)
			if err := m.removePodFiles(&Pod{ID: e}); err != nil {
				m.cfg.Log.Warn("remove a pod's folder", "pod", e, "err", err)
			}
		}
	}
	for _, e := range readDir(m.layerDir("")) {
		if _, err := m.container(e); errors.Is(err, ErrNotFound) && len(e) == 64 && !m.recordKept(m.ctrFiles.path(e)) {
			m.cfg.Log.Info("remove what an unknown container left", "ctr", e)
			if err := m.discard(m.layerDir(e)); err != nil {
				m.cfg.Log.Warn("remove a container's folder", "ctr", e, "err", err)
			}
		}
	}
	for _, e := range readDir(m.exitDir()) {
		if len(e) == 64 {
			m.dropExit(e)
		}
	}
}

// recordKept tells whether a record exists that could not be read: what belongs to it is left alone.
func (m *Manager) recordKept(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func readDir(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}
