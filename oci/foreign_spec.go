package oci

import (
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci/cgroup"
)

// Specified is a container that another runtime is to make.
type Specified struct {
	Spec *specs.Spec
	User workload.User
	// Group is what the runtime will make. KillGroup is set where the end of the first process does not end the others.
	Group     cgroup.Expected
	KillGroup []string
	Warnings  []string
}

// containerType is an annotation by which runtimes of virtual machines tell a pod's first container from those that are
// to be put beside it. A pod has no container of its own here, so each is to be a sandbox of its own.
const containerType = "io.kubernetes.cri.container-type"

// specVersion is what a specification for another runtime says it follows. A field of a later version is ignored by a
// runtime that does not know it, but some (crun 1.8) refuse the version's number.
const specVersion = "1.0.2"

// Specify makes the specification of a container for another runtime, which makes everything else itself. p.RootPath and
// what p.ImageVolume gives must be paths that it can see.
func (r *Runtime) Specify(ctx context.Context, p Params) (*Specified, error) {
	s, err := r.specify(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("specify container %s: %w", p.ContainerID, err)
	}
	return s, nil
}

func (r *Runtime) specify(ctx context.Context, p Params) (*Specified, error) {
	b, err := Build(ctx, r.host, &p)
	if err != nil {
		return nil, err
	}
	b.Spec.Version = specVersion
	delete(b.Spec.Annotations, containerType)
	if err := r.relabel(ctx, b); err != nil {
		return nil, err
	}
	s := &Specified{Spec: b.Spec, User: b.User, Warnings: b.Warnings}
	if s.Group, err = r.cgroups.Expect(p.CgroupPath); err != nil {
		return nil, err
	}
	if p.Namespaces.PID != PIDOwn {
		s.KillGroup = []string{s.Group.Dir}
	}
	return s, nil
}

// CheckForeign finds what would make Specify fail without the image's files.
func (r *Runtime) CheckForeign(ctx context.Context, p Params) error {
	p.Root, p.RootPath, p.checkOnly = nil, "/", true
	_, err := Build(ctx, r.host, &p)
	return err
}

// Limits are a client's limits in the runtime specification's terms.
func (r *Runtime) Limits(res *workload.Resources) (*specs.LinuxResources, error) {
	return Resources(r.host, res)
}
