package nri

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/nri/pkg/api"
	nrigen "github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
	"google.golang.org/protobuf/proto"
)

// Resolvers find what an adjustment names.
type Resolvers struct {
	// CDI gives a specification devices.
	CDI func(spec *specs.Spec, names []string) error
}

// Apply changes a specification as plugins want it. Parts that other containers' specifications share are not changed.
func Apply(spec *specs.Spec, adjustment []byte, r Resolvers) error {
	var a api.ContainerAdjustment
	if err := proto.Unmarshal(adjustment, &a); err != nil {
		return fmt.Errorf("nri: recorded adjustment: %w", err)
	}
	own(spec)
	gen := generate.NewFromSpec(spec)
	err := nrigen.SpecGenerator(&gen, nrigen.WithCDIDeviceInjector(r.CDI)).Adjust(&a)
	if err != nil {
		return fmt.Errorf("nri: %w", err)
	}
	if p := spec.Process; p != nil {
		p.Rlimits = lastOfEach(p.Rlimits)
	}
	return nil
}

// lastOfEach has one limit of each type, as the runtime specification demands: the generator adds those of plugins.
func lastOfEach(all []specs.POSIXRlimit) (out []specs.POSIXRlimit) {
	for i, l := range all {
		if !slices.ContainsFunc(all[i+1:], func(later specs.POSIXRlimit) bool { return later.Type == l.Type }) {
			out = append(out, l)
		}
	}
	return out
}

// own copies what the generator changes in place.
func own(spec *specs.Spec) {
	if p := spec.Process; p != nil {
		p.Rlimits, p.Env, p.Args = slices.Clone(p.Rlimits), slices.Clone(p.Env), slices.Clone(p.Args)
	}
	spec.Mounts, spec.Annotations = slices.Clone(spec.Mounts), maps.Clone(spec.Annotations)
	if l := spec.Linux; l != nil {
		l.Sysctl, l.Devices, l.Namespaces = maps.Clone(l.Sysctl), slices.Clone(l.Devices), slices.Clone(l.Namespaces)
		if res := l.Resources; res != nil {
			res.Devices = slices.Clone(res.Devices)
		}
	}
}
