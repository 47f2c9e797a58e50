package main

import (
	"context"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/usage"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/sandbox"
)

// podMeter is sandbox.Meter over the runtime's control groups and the image store's layers.
type podMeter struct {
	oci     *oci.Runtime
	foreign *foreignRuntimes
}

// Container implements sandbox.Meter.
func (m podMeter) Container(ctx context.Context, p *sandbox.Pod, c *sandbox.Container) (*usage.Stats, error) {
	return m.oci.Stats(ctx, m.foreign.group(p, c))
}

// Pod implements sandbox.Meter. All groups of a pod lie in one.
func (m podMeter) Pod(ctx context.Context, p *sandbox.Pod) (*usage.Stats, error) {
	return m.oci.Stats(ctx, m.oci.PodCgroup(&p.Config, p.ID))
}

// Processes implements sandbox.Meter.
func (m podMeter) Processes(ctx context.Context, p *sandbox.Pod, c *sandbox.Container, open bool) (usage.Processes, error) {
	return m.oci.Processes(ctx, m.foreign.group(p, c), open)
}

// Layer implements sandbox.Meter.
func (m podMeter) Layer(ctx context.Context, dir string) (bytes, inodes uint64, err error) {
	return image.DirUsage(ctx, dir)
}
