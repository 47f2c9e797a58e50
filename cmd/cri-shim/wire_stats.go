package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/cri-shim/cri-shim/cri"
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
func (m podMeter) Container(ctx context.Context, p *sandbox.Pod, c *sandbox.Container, all bool) (*usage.Stats, error) {
	return m.oci.Stats(ctx, m.foreign.group(p, c), all)
}

// Pod implements sandbox.Meter. All groups of a pod lie in one.
func (m podMeter) Pod(ctx context.Context, p *sandbox.Pod, all bool) (*usage.Stats, error) {
	return m.oci.Stats(ctx, m.oci.PodCgroup(&p.Config, p.ID), all)
}

// Processes implements sandbox.Meter.
func (m podMeter) Processes(ctx context.Context, p *sandbox.Pod, c *sandbox.Container, open bool) (usage.Processes, error) {
	return m.oci.Processes(ctx, m.foreign.group(p, c), open)
}

// writableLayers tells what containers have written. On the images' file system, as they are unless the administrator
// mounts another one below the root, they have the images' mount point.
func writableLayers(ctx context.Context, store *image.Store, m *sandbox.Manager) ([]cri.FilesystemUsage, error) {
	images, err := store.FSInfo(ctx)
	if err != nil {
		return nil, err
	}
	layers := m.LayersUsage(ctx)
	u := cri.FilesystemUsage{Mountpoint: layers.Dir, UsedBytes: layers.Bytes, Inodes: layers.Inodes}
	same, err := sameFilesystem(images.Mountpoint, layers.Dir)
	if same {
		u.Mountpoint = images.Mountpoint
	}
	return []cri.FilesystemUsage{u}, err
}

func sameFilesystem(a, b string) (bool, error) {
	var x, y syscall.Stat_t
	if err := errors.Join(syscall.Stat(a, &x), syscall.Stat(b, &y)); err != nil {
		return false, fmt.Errorf("file systems of %s and %s: %w", a, b, err)
	}
	return x.Dev == y.Dev, nil
}

// Layer implements sandbox.Meter.
func (m podMeter) Layer(ctx context.Context, dir string) (bytes, inodes uint64, err error) {
	return image.DirUsage(ctx, dir)
}
