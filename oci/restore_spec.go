package oci

import (
	"context"
	"path"
)

// PrepareRestore makes the specification and the group of a container whose processes criu brings back: there is no
// message for the init, and what the init would do criu does. p.RootPath must be where the root file system is mounted, and
// what p.ImageVolume gives paths that criu can see. On an error nothing is left.
func (r *Runtime) PrepareRestore(ctx context.Context, p Params) (_ *Prepared, err error) {
	out := &Prepared{}
	defer out.undoOn(ctx, "container "+p.ContainerID, &err)
	b, err := r.describe(ctx, &p, out)
	if err != nil {
		return nil, err
	}
	if out.Group, err = r.cgroups.Create(ctx, p.CgroupPath, b.Spec.Linux.Resources); err != nil {
		return nil, err
	}
	if err := r.attachGroup(out); err != nil {
		return nil, err
	}
	if err := MakeResctrl(b.Spec, r.cfg.ResctrlRoot, p.ContainerID); err != nil {
		return nil, err
	}
	return out, nil
}

// Procs are the files by which a process enters the container's groups.
func (p *Prepared) Procs() []string {
	var out []string
	for _, tasks := range p.Group.TaskFiles() { // cgroup v1
		out = append(out, path.Join(path.Dir(tasks), "cgroup.procs"))
	}
	if len(out) == 0 && len(p.KillGroup) > 0 {
		out = append(out, path.Join(p.KillGroup[0], "cgroup.procs"))
	}
	return out
}

// Describe makes the specification of a container without a look at the image's files: nothing is made.
func (r *Runtime) Describe(ctx context.Context, p Params) (*Built, error) {
	p.Root, p.RootPath, p.checkOnly = nil, "/", true
	return Build(ctx, r.host, &p)
}
