package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// v2 plans the limits for cgroup v2. r.Unified goes last, so that it overrides what the other fields were converted to.
func (p *plan) v2(r *specs.LinuxResources, cur current) error {
	if n := r.Network; n != nil && (n.ClassID != nil || len(n.Priorities) > 0) {
		return &UnsupportedError{Feature: "network", Needs: "cgroup v1"}
	}
	if r.Memory != nil {
		if err := p.memoryV2(r.Memory, cur); err != nil {
			return err
		}
	}
	if r.CPU != nil {
		if err := p.cpuV2(r.CPU, cur); err != nil {
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
		if err := p.ioV2(r.BlockIO); err != nil {
			return err
		}
	}
	if err := p.hugepages(r.HugepageLimits, "max"); err != nil {
		return err
	}
	if err := p.rdma(r.Rdma); err != nil {
		return err
	}
	return p.unified(r.Unified)
}

func (p *plan) memoryV2(m *specs.LinuxMemory, cur current) error {
	const c = "memory"
	for _, f := range []struct {
		field string
		set   bool
	}{
		{"memory.kernel", m.Kernel != nil && *m.Kernel != 0},
		{"memory.kernelTCP", m.KernelTCP != nil && *m.KernelTCP != 0},
		{"memory.swappiness", m.Swappiness != nil},
		{"memory.disableOOMKiller", m.DisableOOMKiller != nil && *m.DisableOOMKiller},
		{"memory.useHierarchy", m.UseHierarchy != nil && !*m.UseHierarchy},
	} {
		if f.set {
			return &UnsupportedError{Feature: f.field, Needs: "cgroup v1"}
		}
	}
	limit, limitSet, err := bytesOrMax("memory.limit", m.Limit)
	if err != nil {
		return err
	}
	if err := p.swapV2(m, limit, limitSet, cur); err != nil {
		return err
	}
	if limitSet {
		p.add("memory.limit", c, "memory.max", maxOr(limit))
		if m.CheckBeforeUpdate != nil && *m.CheckBeforeUpdate && limit > 0 {
			p.check = uint64(limit)
		}
	}
	reservation, set, err := bytesOrMax("memory.reservation", m.Reservation)
	if err != nil {
		return err
	}
	if set {
		p.add("memory.reservation", c, "memory.low", maxOr(reservation))
	}
	return nil
}

// swapV2 converts OCI's memory+swap to v2's swap alone, which takes the memory limit: the one that is being set or the
// one in force.
func (p *plan) swapV2(m *specs.LinuxMemory, limit int64, limitSet bool, cur current) error {
	swap, set, err := bytesOrMax("memory.swap", m.Swap)
	if err != nil {
		return err
	}
	if !set {
		if limitSet && limit == -1 {
			p.addNeutral("memory.swap", "memory", "memory.swap.max", "max")
		}
		return nil
	}
	if swap == -1 {
		p.addNeutral("memory.swap", "memory", "memory.swap.max", "max")
		return nil
	}
	if !limitSet {
		s, err := cur("memory", "memory.max")
		if err != nil {
			return err
		}
		if limit, err = strconv.ParseInt(s, 10, 64); err != nil {
			limit = -1
		}
	}
	switch {
	case limit == -1:
		return fmt.Errorf("memory.swap: %d (memory+swap) needs a memory.limit", swap)
	case swap < limit:
		return fmt.Errorf("memory.swap: %d (memory+swap) is below memory.limit %d", swap, limit)
	}
	p.add("memory.swap", "memory", "memory.swap.max", strconv.FormatInt(swap-limit, 10))
	p.settings[len(p.settings)-1].neutral = swap == limit
	return nil
}

func (p *plan) cpuV2(c *specs.LinuxCPU, cur current) error {
	if c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
		return &UnsupportedError{Feature: "cpu.realtimePeriod", Needs: "cgroup v1"}
	}
	if c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 {
		return &UnsupportedError{Feature: "cpu.realtimeRuntime", Needs: "cgroup v1"}
	}
	if err := p.cpuMax(c, cur); err != nil {
		return err
	}
	if c.Burst != nil {
		p.add("cpu.burst", "cpu", "cpu.max.burst", strconv.FormatUint(*c.Burst, 10))
		p.settings[len(p.settings)-1].neutral = *c.Burst == 0
	}
	weight := ""
	if c.Shares != nil && *c.Shares != 0 {
		weight = strconv.FormatUint(CPUWeight(*c.Shares), 10)
	}
	if err := p.idleAndWeight(c, "cpu.weight", weight); err != nil {
		return err
	}
	return p.cpusetLists(c)
}

// cpuMax is "quota period": the kernel keeps the period where it is left out, but not the quota.
func (p *plan) cpuMax(c *specs.LinuxCPU, cur current) error {
	quota, set, err := bytesOrMax("cpu.quota", c.Quota)
	if err != nil {
		return err
	}
	havePeriod := c.Period != nil && *c.Period != 0
	v := maxOr(quota)
	switch {
	case !set && !havePeriod:
		return nil
	case !set:
		old, err := cur("cpu", "cpu.max")
		if err != nil {
			return err
		}
		v, _, _ = strings.Cut(old, " ")
		if v == "" {
			v = "max"
		}
	}
	field := "cpu.quota"
	if havePeriod {
		v += " " + strconv.FormatUint(*c.Period, 10)
		if !set {
			field = "cpu.period"
		}
	}
	p.add(field, "cpu", "cpu.max", v)
	return nil
}

// ioV2 prefers BFQ's weights, which are on blkio's own scale, to io.weight (which needs the iocost controller).
func (p *plan) ioV2(b *specs.LinuxBlockIO) error {
	const c = "io"
	weight := func(field string, w *uint16, dev string) error {
		set, err := checkIOWeight(field, w)
		if err != nil || !set {
			return err
		}
		p.settings = append(p.settings, setting{
			limit: field, controller: c, file: "io.bfq.weight", values: []string{dev + strconv.FormatUint(uint64(*w), 10)},
			alt: &setting{
				limit: field, controller: c, file: "io.weight", values: []string{dev + strconv.FormatUint(IOWeight(*w), 10)},
			},
		})
		return nil
	}
	if b.LeafWeight != nil && *b.LeafWeight != 0 {
		return &UnsupportedError{Feature: "blockIO.leafWeight", Needs: "cgroup v1"}
	}
	if err := weight("blockIO.weight", b.Weight, ""); err != nil {
		return err
	}
	for _, d := range b.WeightDevice {
		if d.LeafWeight != nil && *d.LeafWeight != 0 {
			return &UnsupportedError{Feature: "blockIO.weightDevice.leafWeight", Needs: "cgroup v1"}
		}
		if err := weight("blockIO.weightDevice", d.Weight, deviceNumber(d.LinuxBlockIODevice)+" "); err != nil {
			return err
		}
	}
	for _, t := range throttles(b) {
		for _, d := range t.devices {
			rate := "max" // v1's 0 lifts the throttle; v2 has a word for that
			if d.Rate > 0 {
				rate = strconv.FormatUint(d.Rate, 10)
			}
			p.add(t.field, c, "io.max", deviceNumber(d.LinuxBlockIODevice)+" "+t.v2+"="+rate)
		}
	}
	return nil
}

// notLimits are files that move, kill or regroup processes.
var notLimits = []string{
	"cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "cgroup.type", "cgroup.kill", "cgroup.freeze",
}

// unified plans linux.resources.unified: file name to content. Each line of the content is written by itself, as the
// kernel's nested keyed files demand.
func (p *plan) unified(files map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		field := "unified " + strconv.Quote(name)
		controller, rest, ok := strings.Cut(name, ".")
		switch {
		case !ok || controller == "" || rest == "" || strings.ContainsAny(name, "/\x00 \n"):
			return fmt.Errorf("%s: not the name of a cgroup file (controller.name)", field)
		case slices.Contains(notLimits, name):
			return fmt.Errorf("%s: not a limit", field)
		}
		var lines []string
		for l := range strings.SplitSeq(files[name], "\n") {
			if l != "" {
				lines = append(lines, l)
			}
		}
		if len(lines) == 0 {
			return errors.New(field + ": empty value")
		}
		p.add(field, controller, name, lines...)
	}
	return nil
}
