package oci

import (
	"fmt"
	"maps"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// resources sets limits and the OOM score. Without any from the client the score is 0, not the runtime's own.
func (b *builder) resources() error {
	r := b.ctr.Resources
	if r == nil {
		r = &workload.Resources{}
	}
	lr, err := Resources(b.host, r)
	if err != nil {
		return err
	}
	lr.Devices = b.deviceRules
	if b.host.PidsLimit > 0 {
		limit := b.host.PidsLimit
		lr.Pids = &specs.LinuxPids{Limit: &limit}
	}
	b.spec.Linux.Resources = lr
	return b.oomScore(r.OOMScoreAdj)
}

// oomScore raises a score that this process has no right to give, with a warning: the container is then only a
// little more likely to be killed than was asked for.
func (b *builder) oomScore(adj int64) error {
	if adj < -1000 || adj > 1000 {
		return fieldf("resources.oom_score_adj", "%d is not between -1000 and 1000", adj)
	}
	score := int(adj)
	if score < b.host.OOMScoreFloor {
		b.warn("oom_score_adj %d is raised to %d: lowering it needs CAP_SYS_RESOURCE", score, b.host.OOMScoreFloor)
		score = b.host.OOMScoreFloor
	}
	b.spec.Process.OOMScoreAdj = &score
	return nil
}

// Resources turns a client's limits into those of the OCI, for a new container and for UpdateContainerResources. A zero
// value is no limit and is left out.
func Resources(h *Host, r *workload.Resources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	var err error
	if out.CPU, err = cpuResources(r); err != nil {
		return nil, err
	}
	if out.Memory, err = memoryResources(h, r); err != nil {
		return nil, err
	}
	for i, l := range r.HugepageLimits {
		if !h.Hugetlb {
			if l.Limit == 0 { // the kubelet sends a zero limit for every page size
				continue
			}
			return nil, fieldf(index("resources.hugepage_limits", i),
				"%s: the node has no hugetlb cgroup controller", l.PageSize)
		}
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: l.PageSize, Limit: l.Limit})
	}
	if len(r.Unified) > 0 {
		out.Unified = maps.Clone(r.Unified)
	}
	return out, nil
}

func cpuResources(r *workload.Resources) (*specs.LinuxCPU, error) {
	switch {
	case r.CPUPeriod < 0:
		return nil, fieldf("resources.cpu_period", "%d is negative", r.CPUPeriod)
	case r.CPUQuota < -1:
		return nil, fieldf("resources.cpu_quota", "%d is negative", r.CPUQuota)
	case r.CPUShares < 0:
		return nil, fieldf("resources.cpu_shares", "%d is negative", r.CPUShares)
	}
	c := specs.LinuxCPU{Cpus: r.CPUSetCPUs, Mems: r.CPUSetMems}
	if r.CPUPeriod != 0 {
		v := uint64(r.CPUPeriod)
		c.Period = &v
	}
	if r.CPUQuota != 0 {
		v := r.CPUQuota
		c.Quota = &v
	}
	if r.CPUShares != 0 {
		v := uint64(r.CPUShares)
		c.Shares = &v
	}
	if c == (specs.LinuxCPU{}) {
		return nil, nil
	}
	return &c, nil
}

func memoryResources(h *Host, r *workload.Resources) (*specs.LinuxMemory, error) {
	limit, swap := r.MemoryLimit, r.MemorySwapLimit
	switch {
	case limit < -1:
		return nil, fieldf("resources.memory_limit_in_bytes", "%d is negative", limit)
	case swap < -1:
		return nil, fieldf("resources.memory_swap_limit_in_bytes", "%d is negative", swap)
	case limit > 0 && swap > 0 && swap < limit:
		return nil, fieldf("resources.memory_swap_limit_in_bytes", "%d is less than the memory limit %d", swap, limit)
	}
	if limit == 0 && swap == 0 {
		return nil, nil
	}
	m := &specs.LinuxMemory{}
	if limit != 0 {
		m.Limit = &limit
		if swap == 0 {
			swap = limit // no swap unless it is asked for, as the kubelet expects
		}
	}
	if swap != 0 && h.Swap {
		m.Swap = &swap
	}
	return m, nil
}

func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

func indexf(field string, i int, sub string) string { return fmt.Sprintf("%s[%d].%s", field, i, sub) }
