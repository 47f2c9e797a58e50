package sandbox

import (
	"context"
	"fmt"

	"github.com/cri-shim/cri-shim/sandbox/api"
)

// ReopenLog goes on in a new file at the container's log path, after the old one was renamed.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	c, err := m.container(id)
	if err != nil {
		return fmt.Errorf("reopen log: %w", err)
	}
	if err := m.reopenLog(ctx, c); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", c.ID, err)
	}
	return nil
}

func (m *Manager) reopenLog(ctx context.Context, c *ctr) error {
	facts, err := m.Container(c.ID)
	if err != nil {
		return err
	}
	if facts.State() != ContainerRunning {
		return fmt.Errorf("%w: the container is %s", ErrState, facts.State())
	}
	p, err := m.pod(c.PodID)
	if err != nil {
		return err
	}
	client, err := m.pool.of(m.snapshot(p).Supervisor)
	if err != nil {
		return err
	}
	log, err := openLog(c.LogPath)
	if err != nil {
		return err
	}
	defer log.Close()
	_, _, err = client.call(ctx, &api.Request{Op: api.OpReopenLog, ID: c.ID, Roles: []api.Role{api.RoleLog}}, log)
	return err
}
