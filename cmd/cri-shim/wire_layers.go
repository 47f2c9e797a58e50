package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// Annotations that limit what a container may write: on a pod, for all of its containers or for one, as classes of RDT and
// block I/O are chosen; and on the container what containerd takes from there, bytes as a number.
const (
	layerSizeAnnotation      = "writable-layer.cri-shim.io/"
	layerInodesAnnotation    = "writable-layer-inodes.cri-shim.io/"
	containerdSizeAnnotation = "containerd.io/snapshot/max-size"
)

// podLayers is sandbox.Layers by project quotas.
type podLayers struct {
	quota  *image.Quota // nil: there are none, for why
	why    error
	size   config.Size // 0: no limit
	inodes int64       // 0: no limit
	copies bool
}

// newPodLayers finds out whether there are quotas. A limit that the administrator wants and that cannot be had is an error.
func newPodLayers(cfg *config.Config, copies bool, log *slog.Logger) (*podLayers, error) {
	l := &podLayers{size: cfg.WritableLayerSize, inodes: cfg.WritableLayerInodes, copies: copies}
	l.quota, l.why = image.OpenQuota(filepath.Join(cfg.Root, "layers"), filepath.Join(cfg.Root, "trash"))
	switch {
	case l.why == nil:
		log.Info("writable layers are counted by project quota", "dir", filepath.Join(cfg.Root, "layers"), "limit", l.size, "inodes", l.inodes)
	case !errors.Is(l.why, errors.ErrUnsupported):
		return nil, l.why
	case l.size > 0:
		return nil, fmt.Errorf("writable_layer_size: %w", l.why)
	case l.inodes > 0:
		return nil, fmt.Errorf("writable_layer_inodes: %w", l.why)
	}
	return l, nil
}

func (l *podLayers) close() error {
	if l == nil || l.quota == nil {
		return nil
	}
	return l.quota.Close()
}

// limitOf is what a container may write. Who may annotate a pod can take less than the administrator gives, not more.
func (l *podLayers) limitOf(p *sandbox.Pod, c *sandbox.Container) (image.Limit, error) {
	size, err := l.sizeOf(p, c)
	if err != nil {
		return image.Limit{}, err
	}
	inodes, err := l.inodesOf(p, c)
	return image.Limit{Bytes: uint64(size), Inodes: uint64(inodes)}, err
}

func (l *podLayers) sizeOf(p *sandbox.Pod, c *sandbox.Container) (config.Size, error) {
	name, text := podAnnotation(p, c, layerSizeAnnotation)
	if v, ok := c.Config.Annotations[containerdSizeAnnotation]; ok {
		name, text = fmt.Sprintf("config.annotations[%q]", containerdSizeAnnotation), v
	}
	if name == "" {
		return l.size, nil
	}
	var size config.Size
	if err := size.UnmarshalText([]byte(text)); err != nil {
		return 0, fmt.Errorf("%w: %s: %w", sandbox.ErrInvalid, name, err)
	}
	switch {
	case size == 0:
		return 0, fmt.Errorf("%w: %s: %q leaves no room at all", sandbox.ErrInvalid, name, text)
	case l.size > 0 && size > l.size:
		return 0, fmt.Errorf("%w: %s: %q is more than the node's writable_layer_size, %d bytes", sandbox.ErrInvalid, name, text, l.size)
	case l.quota == nil:
		return 0, fmt.Errorf("%s: %w", name, l.why)
	}
	return size, nil
}

func (l *podLayers) inodesOf(p *sandbox.Pod, c *sandbox.Container) (int64, error) {
	name, text := podAnnotation(p, c, layerInodesAnnotation)
	if name == "" {
		return l.inodes, nil
	}
	inodes, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w: %s: %q is no number", sandbox.ErrInvalid, name, text)
	case inodes < config.MinLayerInodes:
		return 0, fmt.Errorf("%w: %s: %d are too few to start with; at least %d", sandbox.ErrInvalid, name, inodes, config.MinLayerInodes)
	case l.inodes > 0 && inodes > l.inodes:
		return 0, fmt.Errorf("%w: %s: %d are more than the node's writable_layer_inodes, %d", sandbox.ErrInvalid, name, inodes, l.inodes)
	case l.quota == nil:
		return 0, fmt.Errorf("%s: %w", name, l.why)
	}
	return inodes, nil
}

// podAnnotation finds what a pod says of a container, or of all; the name is empty if it says nothing.
func podAnnotation(p *sandbox.Pod, c *sandbox.Container, prefix string) (name, text string) {
	for _, key := range []string{prefix + "container." + c.Config.Metadata.Name, prefix + "pod"} {
		if v, ok := p.Config.Annotations[key]; ok {
			return fmt.Sprintf("config.pod annotations[%q]", key), v
		}
	}
	return "", ""
}

// Check implements sandbox.Layers.
func (l *podLayers) Check(p *sandbox.Pod, c *sandbox.Container) error {
	_, err := l.limitOf(p, c)
	return err
}

// Prepare implements sandbox.Layers. Where the root is to be a copy, the limit is set when that is there.
func (l *podLayers) Prepare(p *sandbox.Pod, c *sandbox.Container, dir string) error {
	limit, err := l.limitOf(p, c)
	if err != nil || l.quota == nil {
		return err
	}
	if l.copies {
		limit = image.Limit{}
	}
	return l.quota.Assign(dir, limit)
}

// copied limits a container whose root is a copy to what that takes and what it may write.
func (l *podLayers) copied(p *sandbox.Pod, c *sandbox.Container, dir string) error {
	limit, err := l.limitOf(p, c)
	if err != nil || limit == (image.Limit{}) || !l.copies {
		return err
	}
	bytes, inodes, ok, err := l.quota.Usage(dir)
	if err != nil || !ok {
		return err
	}
	if limit.Bytes > 0 {
		limit.Bytes += bytes
	}
	if limit.Inodes > 0 {
		limit.Inodes += inodes
	}
	return l.quota.Limit(dir, limit)
}

// Remove implements sandbox.Layers.
func (l *podLayers) Remove(dir string) error {
	if l.quota == nil {
		return os.RemoveAll(dir)
	}
	return l.quota.Remove(dir)
}

// info is for the verbose status.
func (l *podLayers) info() map[string]any {
	if l.quota == nil {
		return map[string]any{"projectQuota": false, "missing": l.why.Error()}
	}
	return map[string]any{"projectQuota": true, "writableLayerSize": l.size, "writableLayerInodes": l.inodes}
}

// Layer implements sandbox.Meter.
func (m podMeter) Layer(ctx context.Context, dir string) (bytes, inodes uint64, err error) {
	return image.LayerUsage(ctx, m.layers.quota, dir)
}

// mappings are a container's user namespace, for image.RootfsOptions.
func mappings(c *sandbox.Container) (uids, gids []sys.IDMap) {
	u := c.Config.Security.Namespaces.User
	if u == nil {
		return nil, nil
	}
	convert := func(in []workload.IDMapping) []sys.IDMap {
		out := make([]sys.IDMap, len(in))
		for i, m := range in {
			out[i] = sys.IDMap{Inside: m.ContainerID, Outside: m.HostID, Size: m.Length}
		}
		return out
	}
	return convert(u.UIDs), convert(u.GIDs)
}
