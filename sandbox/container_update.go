package sandbox

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// UpdateContainer changes limits of a container that was not started yet or runs (CRI UpdateContainerResources). What is
// zero stays as it is. A refused limit leaves the record as it was.
func (m *Manager) UpdateContainer(ctx context.Context, id string, change *workload.Resources) error {
	return m.updateContainerLimits(ctx, id, change, m.cfg.Plugins)
}

// updateContainerLimits asks plugins, if any, what they make of the change.
func (m *Manager) updateContainerLimits(ctx context.Context, id string, change *workload.Resources, plugins Plugins) error {
	c, err := m.container(id)
	if err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	free, err := m.locks.take(ctx, "container "+c.ID, "update")
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.ID, err)
	}
	defer free()
	if plugins != nil {
		p, err := m.pod(c.PodID)
		if err == nil {
			change, err = plugins.Update(ctx, m.snapshot(p), m.facts(c), change)
		}
		if err != nil {
			return fmt.Errorf("update container %s: %w", c.ID, err)
		}
	}
	if err := m.updateLimits(ctx, c, change); err != nil {
		return fmt.Errorf("update container %s: %w", c.ID, err)
	}
	if plugins != nil {
		m.tellPluginsOf(ctx, PluginUpdated, c)
	}
	return nil
}

func (m *Manager) updateLimits(ctx context.Context, c *ctr, change *workload.Resources) error {
	facts, err := m.Container(c.ID)
	if err != nil {
		return err
	}
	p, err := m.pod(facts.PodID)
	if err != nil {
		return err
	}
	old := facts.Limits()
	all := merge(old, change, facts.State() == ContainerRunning)
	switch facts.State() {
	case ContainerCreated:
		err = m.cfg.Limits.Check(all)
	case ContainerRunning:
		if err = m.cfg.Limits.Check(all); err != nil {
			break
		}
		pod := m.snapshot(p)
		if err = m.cfg.Limits.Update(ctx, pod, facts, complete(change, all)); err != nil && old != nil {
			// Some may have been applied before the refused one; what is on record is to be true.
			_ = m.cfg.Limits.Update(ctx, pod, facts, old)
		}
	default:
		err = fmt.Errorf("%w: the container is %s", ErrState, facts.State())
	}
	if err != nil {
		return err
	}
	return m.updateContainer(c, func(c *ctr) { c.Resources = all })
}

// merge is what stands after a change; neither argument is changed. A process got its OOM score when it was made.
func merge(old, change *workload.Resources, running bool) *workload.Resources {
	all := workload.Resources{}
	if old != nil {
		all = *old
	}
	for _, f := range []struct{ to, from *int64 }{
		{&all.CPUPeriod, &change.CPUPeriod}, {&all.CPUQuota, &change.CPUQuota}, {&all.CPUShares, &change.CPUShares},
	} {
		if *f.from != 0 {
			*f.to = *f.from
		}
	}
	mergeMemory(&all, change)
	for _, f := range []struct{ to, from *string }{
		{&all.CPUSetCPUs, &change.CPUSetCPUs}, {&all.CPUSetMems, &change.CPUSetMems},
	} {
		if *f.from != "" {
			*f.to = *f.from
		}
	}
	if change.OOMScoreAdj != 0 && !running {
		all.OOMScoreAdj = change.OOMScoreAdj
	}
	all.HugepageLimits = slices.Clone(all.HugepageLimits)
	for _, l := range change.HugepageLimits {
		same := func(o workload.HugepageLimit) bool { return o.PageSize == l.PageSize }
		all.HugepageLimits = append(slices.DeleteFunc(all.HugepageLimits, same), l)
	}
	if len(change.Unified) > 0 {
		all.Unified = maps.Clone(all.Unified)
		if all.Unified == nil {
			all.Unified = map[string]string{}
		}
		maps.Copy(all.Unified, change.Unified)
	}
	return &all
}

// mergeMemory keeps the amount of swap where only the memory limit changes: the CRI's swap limit is of both together.
func mergeMemory(all, change *workload.Resources) {
	swap := all.MemorySwapLimit
	if change.MemoryLimit > 0 && all.MemoryLimit > 0 && swap > 0 {
		swap += change.MemoryLimit - all.MemoryLimit
	}
	if change.MemoryLimit == -1 && swap > 0 {
		swap = 0
	}
	if change.MemorySwapLimit != 0 {
		swap = change.MemorySwapLimit
	}
	if change.MemoryLimit != 0 {
		all.MemoryLimit = change.MemoryLimit
	}
	all.MemorySwapLimit = swap
}

// complete adds to a change what the kernel has to be told together with it.
func complete(change, all *workload.Resources) *workload.Resources {
	with := *change
	if with.MemoryLimit != 0 || with.MemorySwapLimit != 0 {
		with.MemoryLimit, with.MemorySwapLimit = all.MemoryLimit, all.MemorySwapLimit
	}
	if with.CPUQuota != 0 || with.CPUPeriod != 0 {
		with.CPUQuota, with.CPUPeriod = all.CPUQuota, all.CPUPeriod
	}
	return &with
}
