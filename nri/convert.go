package nri

import (
	"maps"
	"slices"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func podOf(p *sandbox.Pod) *api.PodSandbox {
	md := p.Config.Metadata
	out := &api.PodSandbox{
		Id: p.ID, Name: md.Name, Uid: md.UID, Namespace: md.Namespace, RuntimeHandler: p.Config.Handler,
		Labels: p.Config.Labels, Annotations: p.Config.Annotations,
		Linux: &api.LinuxPodSandbox{
			CgroupParent: p.Config.CgroupParent, PodOverhead: resourcesOf(p.Overhead), PodResources: resourcesOf(p.Resources),
		},
	}
	if p.Netns != "" {
		out.Linux.Namespaces = []*api.LinuxNamespace{{Type: string(specs.NetworkNamespace), Path: p.Netns}}
	}
	for _, ip := range p.IPs {
		out.Ips = append(out.Ips, ip.String())
	}
	return out
}

// containerOf is what plugins know of a container. Where its specification cannot be had any more, that is left out.
func (p *Plugins) containerOf(pod *sandbox.Pod, c *sandbox.Container) *api.Container {
	out := &api.Container{
		Id: c.ID, PodSandboxId: c.PodID, Name: c.Config.Metadata.Name, State: states[c.State()], Labels: c.Config.Labels,
		Annotations: maps.Clone(c.Config.Annotations), Pid: uint32(c.PID), StatusReason: c.Reason, StatusMessage: c.Message,
		ExitCode: int32(c.ExitCode), Linux: &api.LinuxContainer{},
	}
	for to, at := range map[*int64]int64{
		&out.CreatedAt: c.CreatedAt.UnixNano(), &out.StartedAt: c.StartedAt.UnixNano(), &out.FinishedAt: c.FinishedAt.UnixNano(),
	} {
		*to = max(at, 0)
	}
	for _, name := range c.Config.CDIDevices {
		out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: name})
	}
	spec, err := p.cfg.Spec(pod, c)
	if err != nil {
		p.cfg.Log.Debug("nri: a container without its specification", "ctr", c.ID, "err", err)
		return out
	}
	fillSpec(out, spec)
	return out
}

var states = map[sandbox.State]api.ContainerState{
	sandbox.ContainerCreated: api.ContainerState_CONTAINER_CREATED,
	sandbox.ContainerRunning: api.ContainerState_CONTAINER_RUNNING,
	sandbox.ContainerExited:  api.ContainerState_CONTAINER_STOPPED,
}

func fillSpec(out *api.Container, spec *specs.Spec) {
	if len(spec.Annotations) > 0 {
		all := maps.Clone(spec.Annotations)
		maps.Copy(all, out.Annotations)
		out.Annotations = all
	}
	out.Mounts, out.Hooks = api.FromOCIMounts(spec.Mounts), api.FromOCIHooks(spec.Hooks)
	if pr := spec.Process; pr != nil {
		out.Args, out.Env = slices.Clone(pr.Args), slices.Clone(pr.Env)
		out.User = &api.User{Uid: pr.User.UID, Gid: pr.User.GID, AdditionalGids: pr.User.AdditionalGids}
		out.Linux.OomScoreAdj = api.Int(pr.OOMScoreAdj)
		out.Linux.IoPriority = api.FromOCILinuxIOPriority(pr.IOPriority)
		out.Linux.Scheduler = api.FromOCILinuxScheduler(pr.Scheduler)
		for _, l := range pr.Rlimits {
			out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
	}
	if l := spec.Linux; l != nil {
		out.Linux.Namespaces, out.Linux.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
		out.Linux.Resources = api.FromOCILinuxResources(l.Resources, nil)
		out.Linux.CgroupsPath, out.Linux.Sysctl = l.CgroupsPath, l.Sysctl
		out.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
		out.Linux.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
	}
}

// resourcesOf are the limits of the CRI as NRI has them.
func resourcesOf(r *workload.Resources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	out := &api.LinuxResources{Cpu: &api.LinuxCPU{Cpus: r.CPUSetCPUs, Mems: r.CPUSetMems}, Memory: &api.LinuxMemory{}, Unified: r.Unified}
	if r.CPUPeriod > 0 {
		out.Cpu.Period = api.UInt64(uint64(r.CPUPeriod))
	}
	if r.CPUQuota != 0 {
		out.Cpu.Quota = api.Int64(r.CPUQuota)
	}
	if r.CPUShares > 0 {
		out.Cpu.Shares = api.UInt64(uint64(r.CPUShares))
	}
	if r.MemoryLimit != 0 {
		out.Memory.Limit = api.Int64(r.MemoryLimit)
	}
	if r.MemorySwapLimit != 0 {
		out.Memory.Swap = api.Int64(r.MemorySwapLimit)
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: h.PageSize, Limit: h.Limit})
	}
	return out
}

// resourcesFrom are those of NRI's limits that the CRI has too; never nil.
func resourcesFrom(r *api.LinuxResources) *workload.Resources {
	out := &workload.Resources{}
	if r == nil {
		return out
	}
	if c := r.GetCpu(); c != nil {
		out.CPUPeriod, out.CPUQuota, out.CPUShares = int64(c.GetPeriod().GetValue()), c.GetQuota().GetValue(), int64(c.GetShares().GetValue())
		out.CPUSetCPUs, out.CPUSetMems = c.GetCpus(), c.GetMems()
	}
	out.MemoryLimit, out.MemorySwapLimit = r.GetMemory().GetLimit().GetValue(), r.GetMemory().GetSwap().GetValue()
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, workload.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	if len(r.GetUnified()) > 0 {
		out.Unified = maps.Clone(r.GetUnified())
	}
	return out
}

// takeLimits moves those limits of an adjustment that the CRI has too out of it: they are recorded as the container's own,
// so that a status tells them and later changes start from them. nil where there are none.
func takeLimits(r *api.LinuxResources) *workload.Resources {
	if r.GetCpu() == nil && r.GetMemory() == nil && len(r.GetHugepageLimits()) == 0 && len(r.GetUnified()) == 0 {
		return nil
	}
	out := resourcesFrom(r)
	if c := r.GetCpu(); c != nil {
		r.Cpu = nil
		if c.GetRealtimePeriod() != nil || c.GetRealtimeRuntime() != nil {
			r.Cpu = &api.LinuxCPU{RealtimePeriod: c.GetRealtimePeriod(), RealtimeRuntime: c.GetRealtimeRuntime()}
		}
	}
	r.Memory, r.HugepageLimits, r.Unified = nil, nil, nil
	return out
}
