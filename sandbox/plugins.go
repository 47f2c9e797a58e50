package sandbox

import (
	"context"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// PluginEvent is a step of a pod's or a container's life that plugins hear of, by NRI's names.
type PluginEvent string

// Events. An error refuses RunPod, UpdatePod and StartContainer; the others have happened.
const (
	PluginRunPod        PluginEvent = "RunPodSandbox"
	PluginUpdatePod     PluginEvent = "UpdatePodSandbox"
	PluginPodUpdated    PluginEvent = "PostUpdatePodSandbox"
	PluginStopPod       PluginEvent = "StopPodSandbox"
	PluginRemovePod     PluginEvent = "RemovePodSandbox"
	PluginCreated       PluginEvent = "PostCreateContainer"
	PluginStart         PluginEvent = "StartContainer"
	PluginStarted       PluginEvent = "PostStartContainer"
	PluginUpdated       PluginEvent = "PostUpdateContainer"
	PluginStopContainer PluginEvent = "StopContainer"
	PluginRemove        PluginEvent = "RemoveContainer"
)

// holdPlugins keeps new plugins from being told of all pods and containers meanwhile: what one is told of is then known
// to it by either way, and by one alone.
func (m *Manager) holdPlugins() (release func()) {
	if m.cfg.Plugins == nil {
		return func() {}
	}
	return m.cfg.Plugins.Hold()
}

// askPlugins tells plugins of what is about to happen; they may refuse it.
func (m *Manager) askPlugins(ctx context.Context, e PluginEvent, p *Pod, c *Container) error {
	if m.cfg.Plugins == nil {
		return nil
	}
	return m.cfg.Plugins.Tell(ctx, e, p, c)
}

// tellPlugins tells plugins of what has happened.
func (m *Manager) tellPlugins(ctx context.Context, e PluginEvent, p *Pod, c *Container) {
	if m.cfg.Plugins == nil {
		return
	}
	if err := m.cfg.Plugins.Tell(ctx, e, p, c); err != nil {
		m.cfg.Log.Warn("plugins", "event", e, "pod", p.ID, "err", err)
	}
}

// tellPluginsOf is tellPlugins for a container whose pod is looked up.
func (m *Manager) tellPluginsOf(ctx context.Context, e PluginEvent, c *ctr) {
	if m.cfg.Plugins == nil {
		return
	}
	if p, err := m.pod(c.PodID); err == nil {
		m.tellPlugins(ctx, e, m.snapshot(p), m.facts(c))
	}
}

// adjust asks plugins what a container that is being created should be like.
func (m *Manager) adjust(ctx context.Context, p *Pod, c *ctr) error {
	if m.cfg.Plugins == nil {
		return nil
	}
	adjustment, limits, err := m.cfg.Plugins.Create(ctx, p, m.facts(c))
	if err != nil {
		return err
	}
	facts := m.facts(c)
	facts.Adjustment = adjustment
	if limits != nil {
		facts.Resources = merge(facts.Limits(), limits, false)
	}
	if len(adjustment) > 0 || limits != nil { // a mistake of a plugin is found now and not at the start
		if err := m.cfg.Runtime.Check(p, facts); err != nil {
			return err
		}
	}
	return m.updateContainer(c, func(c *ctr) { c.Adjustment, c.Resources = facts.Adjustment, facts.Resources })
}

// UpdateForPlugin changes limits of a container because a plugin wants it; plugins are not asked about it.
func (m *Manager) UpdateForPlugin(ctx context.Context, id string, change *workload.Resources) error {
	return m.updateContainerLimits(ctx, id, change, nil)
}
