package main

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// RunPod lays the client's sysctls over the defaults.
func (d podDefaults) RunPod(ctx context.Context, cfg *workload.Pod) (string, error) {
	for _, err := range []error{d.oci.CheckCgroupParent(cfg.CgroupParent), d.foreign.usable(cfg.Handler)} {
		if err != nil {
			return "", fmt.Errorf("run pod sandbox %s/%s: %w", cfg.Metadata.Namespace, cfg.Metadata.Name, runtimeError(err))
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
	cfg, err := d.levels.pod(cfg)
	if err != nil {
		return "", err
	}
	id, err := d.Manager.RunPod(ctx, cfg)
	if err != nil && ctx.Err() == nil { // else it may go on
		d.levels.released(cfg, d.Pods())
	}
	return id, err
}
