package container

import (
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
	"github.com/cri-shim/cri-shim/oci/cgroup"
)

// Pause freezes every process of a container.
func (c *Container) Pause(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	status, err := c.Status()
	if err != nil {
		return err
	}
	if status != specs.StateRunning && status != specs.StateCreated {
		return fmt.Errorf("container not running or created: %s", status)
	}
	g, err := c.group()
	if err != nil {
		return err
	}
	return g.Freeze(ctx)
}

// Resume lets the processes of a paused container run again.
func (c *Container) Resume() error {
	status, err := c.Status()
	if err != nil {
		return err
	}
	if status != StatusPaused {
		return fmt.Errorf("container not paused: %s", status)
	}
	return c.thaw()
}

// Update changes limits; what r leaves out stays as it is.
func (c *Container) Update(r *specs.LinuxResources) error {
	g, err := c.live()
	if err != nil {
		return err
	}
	return g.Update(context.Background(), r)
}

// Stats measures.
func (c *Container) Stats() (*cgroup.Stats, error) {
	g, err := c.live()
	if err != nil {
		return nil, err
	}
	return g.Stats()
}

// OOMKills counts the processes that the kernel's OOM killer has ended.
func (c *Container) OOMKills() (uint64, error) {
	g, err := c.live()
	if err != nil {
		return 0, err
	}
	file := g.OOMFile()
	if file == "" {
		return 0, nil
	}
	return cgroupfile.ReadOOMKills(file)
}

// live is the group of a container that has not stopped.
func (c *Container) live() (*cgroup.Group, error) {
	status, err := c.Status()
	if err != nil {
		return nil, err
	}
	if status == specs.StateStopped {
		return nil, ErrNotRunning
	}
	return c.group()
}
