package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// RemoveContainer removes a container; one that runs is killed first. Unknown ones are removed already.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.container(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	free, err := m.locks.take(ctx, "container "+c.ID, "remove")
	if err != nil {
		return fmt.Errorf("remove container %s: %w", c.ID, err)
	}
	defer free()
	if _, err := m.container(c.ID); err != nil { // removed while we waited
		return nil
	}
	if err := m.endContainer(ctx, c, 0); err != nil { // under the lock: no start comes between
		return fmt.Errorf("remove container %s: %w", c.ID, err)
	}
	if err := m.teardownContainer(ctx, c); err != nil {
		return fmt.Errorf("remove container %s: %w", c.ID, err)
	}
	return nil
}

// teardownContainer is how a container that does not run goes: roll-back, removal and recovery
// alike. It is safe at any point, and twice. The record goes last.
func (m *Manager) teardownContainer(ctx context.Context, c *ctr) error {
	if p, err := m.pod(c.PodID); err == nil {
		pod := m.snapshot(p)
		if err := m.cfg.Runtime.Cleanup(ctx, pod, &c.Container); err != nil {
			return err
		}
		if !c.LaunchedAt.IsZero() {
			m.background.Go(func() { m.forget(c.ID, pod.Supervisor) })
		}
	}
	if err := m.discard(m.layerDir(c.ID)); err != nil {
		return err
	}
	m.cfg.Images.Release(c.ID)
	if err := os.Remove(m.exitFile(c.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer m.holdPlugins()()
	if !c.CreatedAt.IsZero() {
		m.tellPluginsOf(ctx, PluginRemove, c)
	}
	if err := m.ctrFiles.remove(c.ID); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.ctrs, c.ID)
	if !c.CreatedAt.IsZero() {
		m.tellContainerLocked(EventDeleted, c)
	}
	return nil
}

// discard takes a folder out of sight at once and deletes it in the background: a large
// writable layer does not keep its caller waiting.
func (m *Manager) discard(dir string) error {
	gone := filepath.Join(m.trashDir(), filepath.Base(dir))
	err := os.Rename(dir, gone)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, fs.ErrExist) { // an earlier deletion did not finish
		err = os.Rename(dir, gone+"."+newID()[:8])
	}
	if err != nil {
		return err
	}
	m.background.Go(m.emptyTrash)
	return nil
}

func (m *Manager) emptyTrash() {
	m.trash.Lock()
	defer m.trash.Unlock()
	entries, err := os.ReadDir(m.trashDir())
	for _, e := range entries {
		err = errors.Join(err, m.cfg.Layers.Remove(filepath.Join(m.trashDir(), e.Name())))
	}
	if err != nil {
		m.cfg.Log.Warn("delete removed layers", "err", err)
	}
}
