package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/gpu"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/version"
	"github.com/cri-shim/cri-shim/nri"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/sandbox"
)

// newPlugins is nil where NRI is off.
func newPlugins(cfg *config.Config, r *podRuntime, log *slog.Logger) (*nri.Plugins, error) {
	switch cfg.NRIEnabled {
	case "off":
		return nil, nil
	case "auto":
		if fi, err := os.Stat(cfg.NRIPluginDir); err != nil || !fi.IsDir() {
			return nil, nil
		}
	}
	return nri.New(nri.Config{
		Socket: cfg.NRISocket, PluginDir: cfg.NRIPluginDir, ConfigDir: cfg.NRIConfigDir,
		RegistrationTimeout: cfg.NRIRegistrationTimeout.Duration, RequestTimeout: cfg.NRIRequestTimeout.Duration,
		Version: semantic(version.Version()), Spec: r.specOf, Log: log,
	})
}

// specOf is the specification that a container runs by or, before it does, would.
func (r *podRuntime) specOf(p *sandbox.Pod, c *sandbox.Container) (*specs.Spec, error) {
	if !c.LaunchedAt.IsZero() {
		spec, err := r.specs.load(c.ID)
		if !errors.Is(err, fs.ErrNotExist) {
			return spec, err
		}
	}
	if c.State() == sandbox.ContainerExited {
		return nil, errors.New("it has ended")
	}
	var spec *specs.Spec
	err := r.check(p, c, func(b *oci.Built) error {
		spec = b.Spec
		return nil
	})
	if spec != nil {
		spec.Linux.CgroupsPath = r.foreign.group(p, c)
	}
	return spec, err
}

// adjust changes a specification as plugins wanted it when the container was created.
func (r *podRuntime) adjust(b *oci.Built, c *sandbox.Container) error {
	if len(c.Adjustment) == 0 {
		return nil
	}
	return nri.Apply(b.Spec, c.Adjustment, nri.Resolvers{CDI: func(spec *specs.Spec, names []string) error {
		in, err := r.devices.Inject(spec, gpu.Request{Names: names})
		if in == nil || err != nil {
			return err
		}
		if b.HostNodes == nil {
			b.HostNodes = map[string]string{}
		}
		maps.Copy(b.HostNodes, in.HostNodes)
		b.Warnings = append(b.Warnings, in.Warnings...)
		return nil
	}})
}

// compose makes one edit of several, in their order.
func compose(edits ...func(*oci.Built) error) func(*oci.Built) error {
	return func(b *oci.Built) error {
		for _, edit := range edits {
			if edit == nil {
				continue
			}
			if err := edit(b); err != nil {
				return err
			}
		}
		return nil
	}
}
