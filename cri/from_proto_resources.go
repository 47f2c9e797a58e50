package cri

import (
	"strconv"
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// Bounds of the kernel: max_cfs_quota_period and min_cfs_quota_period in µs, and proc(5) oom_score_adj.
const (
	minCPUPeriod, maxCPUPeriod = 1_000, 1_000_000
	maxOOMScoreAdj             = 1000
)

func (f *fields) resources(at string, r *pb.LinuxContainerResources) *workload.Resources {
	if r == nil {
		return nil
	}
	out := &workload.Resources{
		CPUPeriod:       r.GetCpuPeriod(),
		CPUQuota:        r.GetCpuQuota(),
		CPUShares:       r.GetCpuShares(),
		MemoryLimit:     r.GetMemoryLimitInBytes(),
		MemorySwapLimit: r.GetMemorySwapLimitInBytes(),
		OOMScoreAdj:     r.GetOomScoreAdj(),
		CPUSetCPUs:      r.GetCpusetCpus(),
		CPUSetMems:      r.GetCpusetMems(),
		HugepageLimits:  f.hugepages(at+".hugepage_limits", r.GetHugepageLimits()),
		Unified:         r.GetUnified(),
	}
	if p := out.CPUPeriod; p != 0 && (p < minCPUPeriod || p > maxCPUPeriod) {
		f.add(at+".cpu_period", "%d is not in %d-%d µs", p, minCPUPeriod, maxCPUPeriod)
	}
	if q := out.CPUQuota; q < -1 || q > 0 && q < minCPUPeriod {
		f.add(at+".cpu_quota", "%d is neither -1, 0 nor at least %d µs", q, minCPUPeriod)
	}
	if out.CPUShares < 0 {
		f.add(at+".cpu_shares", "%d is negative", out.CPUShares)
	}
	if out.MemoryLimit < -1 {
		f.add(at+".memory_limit_in_bytes", "%d is neither -1 nor a size", out.MemoryLimit)
	}
	if s := out.MemorySwapLimit; s < -1 || s > 0 && s < out.MemoryLimit {
		f.add(at+".memory_swap_limit_in_bytes", "%d is neither -1 nor at least memory_limit_in_bytes (%d)", s, out.MemoryLimit)
	}
	if a := out.OOMScoreAdj; a < -maxOOMScoreAdj || a > maxOOMScoreAdj {
		f.add(at+".oom_score_adj", "%d is not in -%d-%d", a, maxOOMScoreAdj, maxOOMScoreAdj)
	}
	f.cpuset(at+".cpuset_cpus", out.CPUSetCPUs)
	f.cpuset(at+".cpuset_mems", out.CPUSetMems)
	for k, v := range out.Unified {
		if !strings.Contains(k, ".") || strings.ContainsAny(k, "/") || hasSpace(k) {
			f.add(at+".unified", "%q is not a file of a cgroup", k)
		}
		if strings.ContainsAny(v, "\r") {
			f.add(at+".unified["+k+"]", "the value has control characters")
		}
	}
	return out
}

func (f *fields) hugepages(at string, in []*pb.HugepageLimit) []workload.HugepageLimit {
	var out []workload.HugepageLimit
	for i, h := range in {
		n, unit := h.GetPageSize(), ""
		for _, u := range []string{"KB", "MB", "GB"} {
			if rest, ok := strings.CutSuffix(n, u); ok {
				n, unit = rest, u
			}
		}
		if size, err := strconv.ParseUint(n, 10, 32); err != nil || size == 0 || unit == "" {
			f.add(index(at, i)+".page_size", "%q is not a size like 2MB or 1GB", h.GetPageSize())
		}
		out = append(out, workload.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out
}

// cpuset checks a list of numbers and ranges (cpuset(7), List format).
func (f *fields) cpuset(at, list string) {
	if list == "" {
		return
	}
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 16)
		b, errB := a, error(nil)
		if isRange {
			b, errB = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || errB != nil || b < a {
			f.add(at, "%.64q is not a list like 0-3,7", list)
			return
		}
	}
}
