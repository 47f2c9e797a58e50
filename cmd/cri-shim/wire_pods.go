package main

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// withDefaults lays the client's sysctls over the defaults, and refuses what no pod can have.
func (d podDefaults) withDefaults(cfg *workload.Pod) (*workload.Pod, error) {
	for _, err := range []error{d.oci.CheckCgroupParent(cfg.CgroupParent), d.foreign.usable(cfg.Handler)} {
		if err != nil {
			return nil, fmt.Errorf("run pod sandbox %s/%s: %w", cfg.Metadata.Namespace, cfg.Metadata.Name, runtimeError(err))
		}
	}
	if cfg.Security.Namespaces.Network != workload.ModeNode {
		sysctls := maps.Clone(d.sysctls)
		for name, value := range cfg.Sysctls {
			delete(sysctls, strings.ReplaceAll(name, "/", "."))
			sysctls[name] = value
		}
		with := *cfg
		with.Sysctls = sysctls
		cfg = &with
	}
	return d.levels.pod(cfg)
}

// RunPod is the manager's with the defaults.
func (d podDefaults) RunPod(ctx context.Context, cfg *workload.Pod) (string, error) {
	cfg, err := d.withDefaults(cfg)
	if err != nil {
		return "", err
	}
	id, err := d.Manager.RunPod(ctx, cfg)
	if err != nil && ctx.Err() == nil { // else it may go on
		d.levels.released(cfg, d.Pods())
	}
	return id, err
}

// RestorePod is the manager's with the defaults.
func (d podDefaults) RestorePod(ctx context.Context, dir string, cfg *workload.Pod, containers []*workload.Container) (string, []sandbox.RestoredContainer, error) {
	cfg, err := d.withDefaults(cfg)
	if err != nil {
		return "", nil, err
	}
	all := make([]*workload.Container, len(containers))
	for i, c := range containers {
		all[i] = d.labelled(cfg, c)
	}
	id, restored, err := d.Manager.RestorePod(ctx, dir, cfg, all)
	if err != nil {
		d.levels.released(cfg, d.Pods())
	}
	return id, restored, err
}
