package oci

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

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
	// Files are for the root file system, as in Built.
	Files map[string][]byte
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
	if err := checkJSON(b.Spec); err != nil {
		return nil, err
	}
	s := &Specified{Spec: b.Spec, User: b.User, Warnings: b.Warnings, Files: b.Files}
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
	b, err := Build(ctx, r.host, &p)
	if err != nil {
		return err
	}
	return checkJSON(b.Spec)
}

// checkJSON refuses what a config.json cannot say: encoded, bytes that are no UTF-8 become others. And what runtimes older
// than it would ignore without a word.
func checkJSON(s *specs.Spec) error {
	if len(s.Linux.NetDevices) > 0 {
		return fieldf("linux.netDevices", "network devices are moved for containers of the built-in runtime only")
	}
	text := map[string][]string{"process.args": s.Process.Args, "process.env": s.Process.Env, "process.cwd": {s.Process.Cwd}}
	for i, m := range s.Mounts {
		text[index("mounts", i)] = []string{m.Source, m.Destination}
	}
	for _, field := range slices.Sorted(maps.Keys(text)) {
		for _, v := range text[field] {
			if !utf8.ValidString(v) {
				return fieldf(field, "%q is not UTF-8, which another runtime cannot be given", v)
			}
		}
	}
	return nil
}

// Limits are a client's limits, for the update of a running container, in the runtime specification's terms.
func (r *Runtime) Limits(res *workload.Resources) (*specs.LinuxResources, error) {
	lr, err := Resources(r.host, res)
	if err == nil && lr.Memory != nil {
		check := true
		lr.Memory.CheckBeforeUpdate = &check
	}
	return lr, err
}
