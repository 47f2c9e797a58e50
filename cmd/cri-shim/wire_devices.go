package main

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

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
