package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/version"
	"github.com/cri-shim/cri-shim/oci/cgroup"
)

// What verbose answers tell beyond the CRI's fields. Where containerd has a name for the same fact it is taken:
// scripts and tools read .info.pid, .info.runtimeSpec and the like from crictl inspect.

// PodVerbose adds the pod's control group and a specification of what all its containers share.
func (d podDefaults) PodVerbose(id string) (map[string]any, error) {
	values, err := d.Manager.PodVerbose(id)
	if err != nil {
		return nil, err
	}
	p, err := d.Pod(id)
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{
		Version: specs.Version, Hostname: p.Config.Hostname, Annotations: p.Config.Annotations,
		Linux: &specs.Linux{CgroupsPath: d.oci.PodCgroup(&p.Config, p.ID), Sysctl: p.Config.Sysctls},
	}
	namespaces, _ := values["namespaces"].(map[string]string)
	for _, kind := range slices.Sorted(maps.Keys(namespaces)) {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{
			Type: specs.LinuxNamespaceType(kind), Path: namespaces[kind],
		})
	}
	values["runtimeSpec"] = spec
	values["cgroupPath"] = groupPath(spec.Linux.CgroupsPath)
	return values, nil
}

// ContainerVerbose adds the container's control group and, while it runs, its specification.
func (d podDefaults) ContainerVerbose(id string) (map[string]any, error) {
	values, err := d.Manager.ContainerVerbose(id)
	if err != nil {
		return nil, err
	}
	c, err := d.Container(id)
	if err != nil {
		return nil, err
	}
	if p, err := d.Pod(c.PodID); err == nil {
		values["cgroupPath"] = groupPath(d.oci.CgroupPath(&p.Config, p.ID, c.ID))
	}
	switch spec, err := d.specs.load(c.ID); {
	case err == nil:
		values["runtimeSpec"] = spec
	case !errors.Is(err, fs.ErrNotExist): // it has not been started, or has ended
		values["problem"] = err.Error()
	}
	return values, nil
}

// groupPath is where a group is, from the root of the hierarchy; its name where that cannot be told.
func groupPath(name string) string {
	if at, err := cgroup.Resolve(name); err == nil {
		return at
	}
	return name
}

func imageVerbose(img *image.Image) map[string]any {
	if img.Artifact != nil {
		return map[string]any{"artifact": img.Artifact, "manifestDigest": img.ManifestDigest, "pulledAt": img.PulledAt}
	}
	out := map[string]any{
		"chainID": identity.ChainID(img.Layers), "imageSpec": img.Config,
		"manifestDigest": img.ManifestDigest, "layers": img.Layers, "pulledAt": img.PulledAt,
	}
	if len(img.Platforms) > 0 {
		out["platforms"] = img.Platforms
	}
	return out
}

// info is what a verbose Status tells beyond the CRI's fields: texts and objects, for crictl shows a list as text.
func (p *parts) info(cfg *config.Config, runtime *podRuntime) func() map[string]any {
	return func() map[string]any {
		cidrs, err := p.manager.PodCIDRs()
		if err != nil {
			cidrs = err.Error()
		}
		return map[string]any{
			"podCIDR":      cidrs,
			"config":       configByKey(cfg),
			"commit":       version.Commit(),
			"kernel":       kernelRelease(),
			"cgroups":      p.groups.Mode().String(),
			"cgroupDriver": cfg.CgroupDriver,
			"network":      p.networkInfo(cfg),
			"supervisors":  p.manager.Supervisors(),
			"checkpoint":   p.checkpoints.status(),
			"snapshotter":  p.store.Snapshotter(),
			"layerFormat":  p.store.LayerFormat(),
			"layers":       p.layers.info(),
			"problems": map[string][]string{
				"runtime": runtime.problems(), "network": texts(p.networks.Problems()), "images": texts(p.store.Problems()),
				"records": badRecords(p.manager.BadRecords()),
			},
		}
	}
}

// networkInfo is the CNI configuration in use, as it was read, and where it and its plugins are looked for.
func (p *parts) networkInfo(cfg *config.Config) map[string]any {
	file, name, plugins := p.networks.Loaded()
	return map[string]any{
		"file": file, "name": name, "plugins": plugins, "config": json.RawMessage(p.networks.LoadedConfig()),
		"confDir": cfg.CNIConfDir, "binDirs": cfg.CNIBinDirs, "attachments": filepath.Join(cfg.Root, "cni"),
	}
}

func kernelRelease() string {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// configByKey has the configuration under the keys of its file.
func configByKey(cfg *config.Config) map[string]any {
	v := reflect.ValueOf(*cfg)
	out := make(map[string]any, v.NumField())
	for i := range v.NumField() {
		out[v.Type().Field(i).Tag.Get("toml")] = v.Field(i).Interface()
	}
	return out
}
