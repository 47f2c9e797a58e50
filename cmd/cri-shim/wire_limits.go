package main

import (
	"context"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/sandbox"
)

// podLimits is sandbox.Limits over the runtimes.
type podLimits struct {
	oci     *oci.Runtime
	foreign *foreignRuntimes
}

// Check implements sandbox.Limits.
func (l podLimits) Check(r *workload.Resources) error { return runtimeError(l.oci.CheckResources(r)) }

// Update implements sandbox.Limits.
func (l podLimits) Update(ctx context.Context, p *sandbox.Pod, c *sandbox.Container, r *workload.Resources) error {
	return runtimeError(l.foreign.update(ctx, p, c, r))
}

// UpdatePod implements sandbox.Limits.
func (l podLimits) UpdatePod(ctx context.Context, p *sandbox.Pod, r *workload.Resources) error {
	return runtimeError(l.oci.UpdatePod(ctx, &p.Config, p.ID, r))
}
