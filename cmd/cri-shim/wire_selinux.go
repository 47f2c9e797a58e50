package main

import (
	"context"
	"fmt"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/oci/selinux"
	"github.com/cri-shim/cri-shim/sandbox"
)

// podLevels gives each pod on a node with SELinux a level of its own; nil without SELinux. The level becomes a part of the
// pod's recorded configuration and of its containers', as if the client had set it.
type podLevels struct{ *selinux.Levels }

// newPodLevels keeps the levels of the pods on record.
func newPodLevels(enabled bool, pods []*sandbox.Pod) *podLevels {
	if !enabled {
		return nil
	}
	l := &podLevels{selinux.NewLevels()}
	for _, p := range pods {
		if s := p.Config.Security.SELinux; s != nil {
			l.Keep(podKey(&p.Config), s.Level)
		}
	}
	return l
}

// podKey is the same for a retry of RunPodSandbox.
func podKey(p *workload.Pod) string {
	md := p.Metadata
	return fmt.Sprintf("%s/%s/%s/%d", md.Namespace, md.Name, md.UID, md.Attempt)
}

// pod is the configuration with a level; a privileged pod is not confined and needs none.
func (l *podLevels) pod(cfg *workload.Pod) (*workload.Pod, error) {
	if l == nil || cfg.Security.Privileged {
		return cfg, nil
	}
	s := workload.SELinux{}
	if cfg.Security.SELinux != nil {
		s = *cfg.Security.SELinux
	}
	if s.Level != "" {
		l.Keep(podKey(cfg), s.Level)
		return cfg, nil
	}
	var err error
	if s.Level, err = l.Take(podKey(cfg)); err != nil {
		return nil, err
	}
	with := *cfg
	with.Security.SELinux = &s
	return &with, nil
}

// released gives a pod's level back once there is no such pod.
func (l *podLevels) released(cfg *workload.Pod, pods []*sandbox.Pod) {
	if l == nil {
		return
	}
	for _, p := range pods {
		if p.Config.Metadata == cfg.Metadata {
			return
		}
	}
	l.Release(podKey(cfg))
}

// mountLabel is the label of a container's root file system; "" without SELinux.
func mountLabel(c *workload.Container) string {
	if !selinux.Enabled() || c.Security.Privileged {
		return ""
	}
	_, mount, err := selinux.Labels(c.Security.SELinux)
	if err != nil {
		return "" // Check has refused it
	}
	return mount
}

// CreateContainer gives a container its pod's SELinux options where it has none of its own.
func (d podDefaults) CreateContainer(ctx context.Context, podID string, cfg *workload.Container) (string, error) {
	if p, err := d.Pod(podID); err == nil {
		cfg = d.labelled(&p.Config, cfg)
	}
	return d.Manager.CreateContainer(ctx, podID, cfg)
}

func (d podDefaults) labelled(pod *workload.Pod, cfg *workload.Container) *workload.Container {
	if d.levels == nil {
		return cfg
	}
	with := *cfg
	with.Security.SELinux = oci.SELinuxOf(pod, cfg)
	return &with
}

// RemovePod lets others have the pod's level.
func (d podDefaults) RemovePod(ctx context.Context, id string) error {
	p, err := d.Pod(id)
	if err != nil || d.levels == nil {
		return d.Manager.RemovePod(ctx, id)
	}
	if err := d.Manager.RemovePod(ctx, id); err != nil {
		return err
	}
	d.levels.released(&p.Config, d.Pods())
	return nil
}
