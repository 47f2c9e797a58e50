package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/cri-shim/cri-shim/internal/atomicfile"
	"github.com/cri-shim/cri-shim/internal/workload"
)

// UpdatePod records new resources of a pod as a whole (CRI UpdatePodSandboxResources), and limits the pod's group where
// that is the runtime's own. Nil leaves a part as it is.
func (m *Manager) UpdatePod(ctx context.Context, id string, overhead, resources *workload.Resources) error {
	p, err := m.pod(id)
	if err != nil {
		return fmt.Errorf("update pod sandbox: %w", err)
	}
	free, err := m.locks.take(ctx, "pod sandbox "+p.ID, "update")
	if err != nil {
		return fmt.Errorf("update pod sandbox %s: %w", p.ID, err)
	}
	defer free()
	if err := m.updatePodLimits(ctx, p, overhead, resources); err != nil {
		return fmt.Errorf("update pod sandbox %s: %w", p.ID, err)
	}
	return nil
}

func (m *Manager) updatePodLimits(ctx context.Context, p *pod, overhead, resources *workload.Resources) error {
	facts := m.snapshot(p)
	if facts.State() != PodReady {
		return fmt.Errorf("%w: the pod sandbox is %s", ErrState, facts.State())
	}
	wanted := *facts
	wanted.Resources, wanted.Overhead = firstResources(resources, facts.Resources), firstResources(overhead, facts.Overhead)
	if err := m.askPlugins(ctx, PluginUpdatePod, &wanted, nil); err != nil {
		return err
	}
	if resources != nil {
		resources = merge(firstResources(facts.Resources, facts.Config.Resources), resources, false)
		if err := m.cfg.Limits.UpdatePod(ctx, facts, resources); err != nil {
			return err
		}
	}
	err := m.updatePod(p, func(p *Pod) {
		if resources != nil {
			p.Resources = resources
		}
		if overhead != nil {
			p.Overhead = overhead
		}
	})
	if err == nil {
		m.tellPlugins(ctx, PluginPodUpdated, m.snapshot(p), nil)
	}
	return err
}

func firstResources(all ...*workload.Resources) *workload.Resources {
	for _, r := range all {
		if r != nil {
			return r
		}
	}
	return nil
}

func (m *Manager) podCIDRFile() string { return filepath.Join(m.cfg.Root, "pod-cidr") }

// SetPodCIDRs records the node's pod networks (CRI UpdateRuntimeConfig). The kubelet tells them once, so they outlive
// the daemon.
func (m *Manager) SetPodCIDRs(cidrs []netip.Prefix) error {
	text := make([]string, len(cidrs))
	for i, c := range cidrs {
		text[i] = c.String()
	}
	return atomicfile.Write(m.podCIDRFile(), []byte(strings.Join(text, ",")+"\n"), 0o644)
}

// PodCIDRs are the recorded pod networks as text, separated by commas; "" before they were told.
func (m *Manager) PodCIDRs() (string, error) {
	data, err := os.ReadFile(m.podCIDRFile())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(data)), err
}
