package oci

import (
	"context"
	"errors"
	"io/fs"
	"path"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci/cgroup"
)

// CgroupPath names a container's control group: below the parent that the client named, which the kubelet sizes and
// removes, else below a group of the pod's own. With systemd it is a scope of that slice (see cgroup.Unit).
func (r *Runtime) CgroupPath(pod *workload.Pod, podID, containerID string) string {
	parent := r.PodCgroup(pod, podID)
	if cgroup.IsUnit(parent) {
		return parent + ":cri-shim:" + containerID
	}
	return path.Join(parent, containerID)
}

// PodCgroup names the group of a pod's groups. A pod keeps the one it has when cgroup_driver is changed: its parent's form
// says whose it is, and without a parent what is there.
func (r *Runtime) PodCgroup(pod *workload.Pod, podID string) string {
	switch {
	case cgroup.IsUnit(pod.CgroupParent): // the kubelet names the slice; its path follows from that
		return pod.CgroupParent
	case pod.CgroupParent != "":
		return path.Join("/", pod.CgroupParent)
	}
	name, other := path.Join("/cri-shim", podID), "crishim-"+podID+".slice" // a dash more would be a slice more
	if r.cfg.SystemdCgroup {
		name, other = other, name
	}
	if _, err := r.cgroups.Open(other); err == nil {
		return other
	}
	return name
}

// PodInitCgroup is the group of a pod's init, beside those of its containers.
func (r *Runtime) PodInitCgroup(pod *workload.Pod, podID string) string {
	return r.CgroupPath(pod, podID, "init-"+podID)
}

// Update changes a running container's limits (CRI UpdateContainerResources). What is zero stays as it is. A memory limit
// below what is in use is refused, on cgroup v2 too, where the kernel would kill.
func (r *Runtime) Update(ctx context.Context, cgroupPath string, res *workload.Resources) error {
	lr, err := r.Limits(res)
	if err != nil {
		return err
	}
	g, err := r.cgroups.Open(cgroupPath)
	if err != nil {
		return err
	}
	return g.Update(ctx, lr)
}

// UpdatePod changes the limits of a pod's own group, and makes it if no container has been there yet. The parent
// that a client named is the client's: its limits stay as they are.
func (r *Runtime) UpdatePod(ctx context.Context, pod *workload.Pod, podID string, res *workload.Resources) error {
	lr, err := Resources(r.host, res)
	if err != nil || pod.CgroupParent != "" {
		return err
	}
	name := r.PodCgroup(pod, podID)
	g, err := r.cgroups.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = r.cgroups.Create(ctx, name, lr)
		return err
	}
	if err != nil {
		return err
	}
	return g.Update(ctx, lr)
}

// CheckResources finds what Update would refuse without a look at the kernel.
func (r *Runtime) CheckResources(res *workload.Resources) error {
	_, err := Resources(r.host, res)
	return err
}

// CheckCgroupParent says why a pod cannot have the parent that its client named: mostly that the two disagree about who
// makes groups.
func (r *Runtime) CheckCgroupParent(parent string) error {
	if parent == "" {
		return nil
	}
	u, err := cgroup.ParseUnit(parent)
	slice := err == nil && u.Name == ""
	switch {
	case r.cfg.SystemdCgroup && !slice:
		return fieldf("cgroup_parent", "%q is no slice, but cgroup_driver is systemd: the kubelet's cgroupDriver must be systemd too", parent)
	case !r.cfg.SystemdCgroup && cgroup.IsUnit(parent):
		return fieldf("cgroup_parent", "%q is a slice of systemd's, but cgroup_driver is cgroupfs: the kubelet's cgroupDriver must be cgroupfs too", parent)
	}
	return nil
}

// Pause stops every process of a group; Resume lets them go on.
func (r *Runtime) Pause(ctx context.Context, cgroupPath string) error {
	g, err := r.cgroups.Open(cgroupPath)
	if err != nil {
		return err
	}
	return g.Freeze(ctx)
}

// Resume lets the processes of a paused group run again.
func (r *Runtime) Resume(_ context.Context, cgroupPath string) error {
	g, err := r.cgroups.Open(cgroupPath)
	if err != nil {
		return err
	}
	return g.Thaw()
}

// Kill ends every process of a group; nil when it is gone.
func (r *Runtime) Kill(ctx context.Context, cgroupPath string) error {
	g, err := r.cgroups.Open(cgroupPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return g.Kill(ctx)
}

// Remove kills what is left in a group and removes it; nil when it is gone.
func (r *Runtime) Remove(ctx context.Context, cgroupPath string) error {
	return r.cgroups.Remove(ctx, cgroupPath)
}
