package main

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/gpu"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/sandbox"
)

// newRegistry costs nothing until a container or the administrator asks for a device.
func newRegistry(cfg *config.Config) *gpu.Registry {
	return gpu.New(gpu.Config{
		SpecDirs: cfg.CDISpecDirs, DeviceRoot: cfg.GPUDeviceRoot, DriverRoot: cfg.GPUDriverRoot,
		State: filepath.Join(cfg.State, "gpu"), Capabilities: cfg.GPUDriverCapabilities, TrustEnvironment: cfg.GPUFromEnvironment,
	})
}

// edit gives a container the devices and the classes that it asks for. root is its root file system, nil where the
// container is only looked at.
func (r *podRuntime) edit(p *sandbox.Pod, c *sandbox.Container, root *os.File) func(*oci.Built) error {
	return func(b *oci.Built) error {
		if err := r.classes.apply(b.Spec, p, c); err != nil {
			return err
		}
		in, err := r.devices.Inject(b.Spec, gpu.Request{Names: c.Config.CDIDevices, Annotations: c.Config.Annotations})
		if in == nil || err != nil {
			return err
		}
		if b.HostNodes == nil {
			b.HostNodes = map[string]string{}
		}
		maps.Copy(b.HostNodes, in.HostNodes)
		b.Warnings = append(b.Warnings, in.Warnings...)
		if root == nil {
			return nil
		}
		cache, err := sys.ReadInRoot(root, gpu.LDCachePath, gpu.LDCacheMax)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			b.Files, err = in.Files(cache)
		}
		if err != nil {
			// The loader would not read it either; it looks in its own directories for what is not in the new one.
			b.Warnings = append(b.Warnings, "the image's "+gpu.LDCachePath+": "+err.Error())
			b.Files, err = in.Files(nil)
		}
		return err
	}
}

// watchDevices tells the log what comes and goes, and who had it, until ctx ends.
func (r *podRuntime) watchDevices(ctx context.Context, m *sandbox.Manager) {
	report := func(c gpu.Change) {
		if c.Err != nil {
			r.log.Warn("devices", "err", c.Err)
			return
		}
		if c.Driver != "" {
			r.log.Info("NVIDIA driver", "version", c.Driver)
		}
		if len(c.Added) > 0 {
			r.log.Info("devices found", "devices", c.Added)
		}
		for _, p := range c.Problems {
			r.log.Warn("devices", "err", p)
		}
		if len(c.Removed) == 0 {
			return
		}
		inUse, err := r.devicesInUse(m)
		if err != nil {
			r.log.Warn("who has the devices that have gone is not known", "err", err)
		}
		for _, name := range slices.Sorted(maps.Keys(c.Removed)) {
			var holders []string
			for _, u := range inUse {
				if holdsAll(u, c.Removed[name]) {
					holders = append(holders, u.Pod+":"+u.Container)
				}
			}
			r.log.Warn("a device has gone", "device", name, "containers", holders)
		}
	}
	warn := func(err error) {
		r.log.Warn("devices are looked for when a container asks, and not before", "err", err)
	}
	if err := r.devices.Watch(ctx, report, warn); err != nil {
		warn(err)
	}
}

// holdsAll: the container has all of the nodes.
func holdsAll(u cri.DeviceUse, nodes []gpu.Node) bool {
	return len(nodes) > 0 && !slices.ContainsFunc(nodes, func(n gpu.Node) bool {
		return !slices.ContainsFunc(u.Devices, func(d cri.Device) bool {
			return d.Type == n.Type && d.Major == int64(n.Major) && d.Minor == int64(n.Minor)
		})
	})
}

// devicesInUse tells what the running containers have.
func (r *podRuntime) devicesInUse(m *sandbox.Manager) ([]cri.DeviceUse, error) {
	var out []cri.DeviceUse
	for _, c := range m.Containers() {
		if c.State() != sandbox.ContainerRunning {
			continue
		}
		spec, err := r.specs.load(c.ID)
		if errors.Is(err, fs.ErrNotExist) { // it has just been removed
			continue
		}
		if err != nil {
			return nil, err
		}
		u := cri.DeviceUse{ContainerID: c.ID, Container: c.Config.Metadata.Name, PodID: c.PodID, Privileged: c.Config.Security.Privileged}
		if p, err := m.Pod(c.PodID); err == nil {
			u.Pod = p.Config.Metadata.Namespace + "/" + p.Config.Metadata.Name
		}
		if u.Names, err = r.devices.Names(gpu.Request{Names: c.Config.CDIDevices, Annotations: c.Config.Annotations}); err != nil {
			return nil, err
		}
		if spec.Linux != nil {
			for _, d := range spec.Linux.Devices {
				u.Devices = append(u.Devices, cri.Device{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor})
			}
		}
		out = append(out, u)
	}
	return out, nil
}
