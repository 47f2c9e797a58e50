package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// checkpointTimeout bounds a checkpoint for which the client names no time.
const checkpointTimeout = 2 * time.Minute

// Files of a pod's checkpoint beside a container's NAME.tar.
const (
	podOptionsFile = "pod.options"
	podDumpFile    = "pod.dump"
	podFormat      = 1
)

// checkpointDir holds a folder for each container that is being checkpointed, by its ID: for the images, and as the mark
// of a daemon that died meanwhile that the container is to be thawed.
func (m *Manager) checkpointDir(id string) string {
	return filepath.Join(m.cfg.Root, "checkpoints", id)
}

// CheckpointContainer writes the state of a running container to an archive (CRI CheckpointContainer). The container goes
// on running. 0 is the runtime's own timeout.
func (m *Manager) CheckpointContainer(ctx context.Context, id, archive string, timeout time.Duration) error {
	c, err := m.container(id)
	if err != nil {
		return fmt.Errorf("checkpoint container: %w", err)
	}
	ctx, cancel := withTimeout(ctx, timeout)
	defer cancel()
	if err := m.checkpoint(ctx, []*ctr{c}, func(*ctr) string { return archive }, nil); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", c.ID, err)
	}
	return nil
}

func withTimeout(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout <= 0 {
		if _, bounded := ctx.Deadline(); bounded {
			return ctx, func() {}
		}
		timeout = checkpointTimeout
	}
	return context.WithTimeout(ctx, timeout)
}

// CheckpointPod writes the state of a pod's containers to an existing, empty folder (CRI CheckpointPod): all of them are
// stopped before the first one is captured, and run again when it returns. What an error leaves is an empty folder.
func (m *Manager) CheckpointPod(ctx context.Context, id, dir string, containers []string) error {
	p, err := m.pod(id)
	if err != nil {
		return fmt.Errorf("checkpoint pod sandbox: %w", err)
	}
	ctx, cancel := withTimeout(ctx, 0)
	defer cancel()
	if err := m.checkpointPod(ctx, p, dir, containers); err != nil {
		return fmt.Errorf("checkpoint pod sandbox %s: %w", p.ID, err)
	}
	return nil
}

func (m *Manager) checkpointPod(ctx context.Context, p *pod, dir string, ids []string) (err error) {
	free, err := m.locks.take(ctx, "pod sandbox "+p.ID, "checkpoint")
	if err != nil {
		return err
	}
	defer free()
	facts := m.snapshot(p)
	if facts.State() != PodReady {
		return fmt.Errorf("%w: it is %s", ErrState, facts.State())
	}
	all, err := m.selected(p, ids)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return invalid("output_path", "%w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%w: output_path: %s is not empty", ErrState, dir)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, empty(dir))
		}
	}()
	return m.checkpoint(ctx, all, func(c *ctr) string { return filepath.Join(dir, c.Config.Metadata.Name+".tar") },
		func() error { return writePodDump(dir, facts, all) })
}

// selected are exactly the pod's running containers.
func (m *Manager) selected(p *pod, ids []string) ([]*ctr, error) {
	if len(ids) == 0 {
		return nil, invalid("container_ids", "empty")
	}
	var all []*ctr
	names := map[string]bool{}
	for i, id := range ids {
		at := fmt.Sprintf("container_ids[%d]", i)
		c, err := m.container(id)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		switch {
		case c.PodID != p.ID:
			return nil, invalid(at, "container %s belongs to the pod sandbox %s", c.ID, c.PodID)
		case slices.Contains(all, c):
			return nil, invalid(at, "container %s is there twice", c.ID)
		case names[c.Config.Metadata.Name]:
			return nil, invalid(at, "there is another container %s", c.Config.Metadata.Name)
		}
		names[c.Config.Metadata.Name] = true
		all = append(all, c)
	}
	for _, c := range m.containersOf(p.ID) {
		if m.facts(c).State() == ContainerRunning && !slices.Contains(all, c) {
			return nil, invalid("container_ids", "container %s runs and is not among them", c.ID)
		}
	}
	return all, nil
}

func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// writePodDump writes what belongs to the pod, in the form that checkpointctl shows.
func writePodDump(dir string, p *Pod, all []*ctr) error {
	options := podOptions{podFormat, map[string]string{}}
	for _, c := range all {
		options.Containers[c.Config.Metadata.Name] = c.Config.Metadata.Name + ".tar"
	}
	dump := podDump{p.ID, p.Config}
	for name, v := range map[string]any{podOptionsFile: options, podDumpFile: dump} {
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// checkpoint freezes all containers, captures them one after the other, and lets them go on, whatever happened.
func (m *Manager) checkpoint(ctx context.Context, all []*ctr, archive func(*ctr) string, also func() error) (err error) {
	if m.cfg.Checkpoints == nil {
		return fmt.Errorf("checkpoints: %w", errors.ErrUnsupported)
	}
	if err := m.cfg.Checkpoints.Ready(ctx); err != nil {
		return err
	}
	// In the order of their IDs, so that two such calls do not wait for each other.
	locked := slices.SortedFunc(slices.Values(all), func(a, b *ctr) int { return strings.Compare(a.ID, b.ID) })
	for _, c := range locked {
		free, err := m.locks.take(ctx, "container "+c.ID, "checkpoint")
		if err != nil {
			return err
		}
		defer free()
		if state := m.facts(c).State(); state != ContainerRunning {
			return fmt.Errorf("%w: container %s is %s", ErrState, c.ID, state)
		}
	}
	for _, c := range all {
		if err := m.freeze(ctx, c); err != nil {
			return errors.Join(err, m.thaw(all))
		}
	}
	defer func() { err = errors.Join(err, m.thaw(all)) }()
	for _, c := range all {
		p, err := m.pod(c.PodID)
		if err != nil {
			return err
		}
		err = m.cfg.Checkpoints.Save(ctx, m.snapshot(p), m.facts(c), m.layerDir(c.ID), m.checkpointDir(c.ID), archive(c))
		if err != nil {
			return fmt.Errorf("container %s: %w", c.Config.Metadata.Name, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if also == nil {
		return nil
	}
	return also()
}

func (m *Manager) freeze(ctx context.Context, c *ctr) error {
	p, err := m.pod(c.PodID)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.checkpointDir(c.ID), 0o700); err != nil { // the mark comes first
		return err
	}
	return m.cfg.Checkpoints.Freeze(ctx, m.snapshot(p), m.facts(c))
}

// thaw lets containers go on and removes what was collected of them; safe for those that are not frozen.
func (m *Manager) thaw(all []*ctr) (err error) {
	for _, c := range all {
		p, podErr := m.pod(c.PodID)
		if podErr == nil {
			podErr = m.cfg.Checkpoints.Thaw(m.snapshot(p), m.facts(c))
		}
		if podErr != nil { // the mark stays, for the next daemon
			err = errors.Join(err, podErr)
			continue
		}
		err = errors.Join(err, os.RemoveAll(m.checkpointDir(c.ID)))
	}
	return err
}

// thawLeftovers lets containers go on that a daemon froze and died.
func (m *Manager) thawLeftovers() {
	entries, err := os.ReadDir(m.checkpointDir(""))
	if err != nil || m.cfg.Checkpoints == nil {
		return
	}
	for _, e := range entries {
		c, err := m.container(e.Name())
		if errors.Is(err, ErrNotFound) {
			err = os.RemoveAll(m.checkpointDir(e.Name()))
		} else if err == nil {
			err = m.thaw([]*ctr{c})
		}
		if err != nil {
			m.cfg.Log.Error("let an interrupted checkpoint's container go on", "ctr", e.Name(), "err", err)
		}
	}
}
