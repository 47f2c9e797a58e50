package cgroup

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// v1 plans the limits for cgroup v1.
func (p *plan) v1(r *specs.LinuxResources) error {
	if len(r.Unified) > 0 {
		keys := slices.Sorted(maps.Keys(r.Unified))
		return &UnsupportedError{Feature: "unified " + strings.Join(keys, ", "), Needs: "cgroup v2"}
	}
	if r.Memory != nil {
		if err := p.memoryV1(r.Memory); err != nil {
			return err
		}
	}
	if r.CPU != nil {
		if err := p.cpuV1(r.CPU); err != nil {
			return err
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		v, err := pidsMax(*r.Pids.Limit)
		if err != nil {
			return err
		}
		p.add("pids.limit", "pids", "pids.max", v)
	}
	if r.BlockIO != nil {
		if err := p.blkioV1(r.BlockIO); err != nil {
			return err
		}
	}
	if err := p.hugepages(r.HugepageLimits, "limit_in_bytes"); err != nil {
		return err
	}
	if err := p.rdma(r.Rdma); err != nil {
		return err
	}
	return p.networkV1(r.Network)
}

func (p *plan) memoryV1(m *specs.LinuxMemory) error {
	const c = "memory"
	for _, f := range []struct {
		field, file string
		v           *int64
	}{
		{"memory.limit", "memory.limit_in_bytes", m.Limit},
		{"memory.swap", "memory.memsw.limit_in_bytes", m.Swap},
		{"memory.reservation", "memory.soft_limit_in_bytes", m.Reservation},
		{"memory.kernel", "memory.kmem.limit_in_bytes", m.Kernel},
		{"memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", m.KernelTCP},
	} {
		n, set, err := bytesOrMax(f.field, f.v)
		if err != nil {
			return err
		}
		if set {
			p.add(f.field, c, f.file, strconv.FormatInt(n, 10))
		}
	}
	if m.Limit != nil && *m.Limit == -1 && (m.Swap == nil || *m.Swap == 0) {
		// A memory+swap limit in force would keep the memory limit from being lifted.
		p.addNeutral("memory.swap", c, "memory.memsw.limit_in_bytes", "-1")
	}
	if m.Swappiness != nil {
		if *m.Swappiness > 100 {
			return fmt.Errorf("memory.swappiness: %d is not between 0 and 100", *m.Swappiness)
		}
		p.add("memory.swappiness", c, "memory.swappiness", strconv.FormatUint(*m.Swappiness, 10))
	}
	if m.DisableOOMKiller != nil {
		p.add("memory.disableOOMKiller", c, "memory.oom_control", bit(*m.DisableOOMKiller))
	}
	if m.UseHierarchy != nil {
		p.add("memory.useHierarchy", c, "memory.use_hierarchy", bit(*m.UseHierarchy))
	}
	return nil
}

func (p *plan) cpuV1(c *specs.LinuxCPU) error {
	if c.Period != nil && *c.Period != 0 {
		p.add("cpu.period", "cpu", "cpu.cfs_period_us", strconv.FormatUint(*c.Period, 10))
	}
	quota, set, err := bytesOrMax("cpu.quota", c.Quota)
	if err != nil {
		return err
	}
	if set {
		p.add("cpu.quota", "cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10))
	}
	if c.Burst != nil {
		p.add("cpu.burst", "cpu", "cpu.cfs_burst_us", strconv.FormatUint(*c.Burst, 10))
		p.settings[len(p.settings)-1].neutral = *c.Burst == 0
	}
	if c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
		p.add("cpu.realtimePeriod", "cpu", "cpu.rt_period_us", strconv.FormatUint(*c.RealtimePeriod, 10))
	}
	if c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 {
		p.add("cpu.realtimeRuntime", "cpu", "cpu.rt_runtime_us", strconv.FormatInt(*c.RealtimeRuntime, 10))
	}
	shares := ""
	if c.Shares != nil && *c.Shares != 0 {
		shares = strconv.FormatUint(*c.Shares, 10)
	}
	if err := p.idleAndWeight(c, "cpu.shares", shares); err != nil {
		return err
	}
	return p.cpusetLists(c)
}

// blkioV1 covers the weights of the CFQ scheduler, gone since Linux 5.0, of which BFQ took over the common one, and the
// throttles.
func (p *plan) blkioV1(b *specs.LinuxBlockIO) error {
	const c = "blkio"
	weight := func(field, file, alt string, w *uint16, dev string) error {
		set, err := checkIOWeight(field, w)
		if err != nil || !set {
			return err
		}
		v := strings.TrimSpace(dev + " " + strconv.FormatUint(uint64(*w), 10))
		s := setting{limit: field, controller: c, file: file, values: []string{v}}
		if alt != "" {
			s.alt = &setting{limit: field, controller: c, file: alt, values: s.values}
		}
		p.settings = append(p.settings, s)
		return nil
	}
	if err := weight("blockIO.weight", "blkio.weight", "blkio.bfq.weight", b.Weight, ""); err != nil {
		return err
	}
	if err := weight("blockIO.leafWeight", "blkio.leaf_weight", "", b.LeafWeight, ""); err != nil {
		return err
	}
	for _, d := range b.WeightDevice {
		dev := deviceNumber(d.LinuxBlockIODevice)
		if err := weight("blockIO.weightDevice", "blkio.weight_device", "blkio.bfq.weight_device", d.Weight, dev); err != nil {
			return err
		}
		if err := weight("blockIO.weightDevice.leafWeight", "blkio.leaf_weight_device", "", d.LeafWeight, dev); err != nil {
			return err
		}
	}
	for _, t := range throttles(b) {
		for _, d := range t.devices {
			p.add(t.field, c, "blkio.throttle."+t.v1, deviceNumber(d.LinuxBlockIODevice)+" "+strconv.FormatUint(d.Rate, 10))
		}
	}
	return nil
}

type throttle struct {
	field, v1, v2 string
	devices       []specs.LinuxThrottleDevice
}

func throttles(b *specs.LinuxBlockIO) []throttle {
	return []throttle{
		{"blockIO.throttleReadBpsDevice", "read_bps_device", "rbps", b.ThrottleReadBpsDevice},
		{"blockIO.throttleWriteBpsDevice", "write_bps_device", "wbps", b.ThrottleWriteBpsDevice},
		{"blockIO.throttleReadIOPSDevice", "read_iops_device", "riops", b.ThrottleReadIOPSDevice},
		{"blockIO.throttleWriteIOPSDevice", "write_iops_device", "wiops", b.ThrottleWriteIOPSDevice},
	}
}

func (p *plan) networkV1(n *specs.LinuxNetwork) error {
	if n == nil {
		return nil
	}
	if n.ClassID != nil {
		p.add("network.classID", "net_cls", "net_cls.classid", strconv.FormatUint(uint64(*n.ClassID), 10))
	}
	for _, pr := range n.Priorities {
		if err := word("network.priorities.name", pr.Name); err != nil {
			return err
		}
		p.add("network.priorities", "net_prio", "net_prio.ifpriomap", pr.Name+" "+strconv.FormatUint(uint64(pr.Priority), 10))
	}
	return nil
}

func bit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}
