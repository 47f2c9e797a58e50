package cgroup

import (
	"bytes"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
	"github.com/cri-shim/cri-shim/internal/usage"
)

func (r *reader) v2(s *Stats) {
	r.enter("")
	r.cpuV2(&s.CPU)
	r.memoryV2(&s.Memory)
	s.IOPressure = parsePressure(r.file("io", "io.pressure"))
	if !r.all {
		return
	}
	s.Pids.Current = r.number("pids", "pids.current", 0)
	s.Pids.Limit = r.number("pids", "pids.max", Unlimited)
	s.IO = parseIOStat(r.file("io", "io.stat"))
	for _, size := range r.g.host.pageSizes {
		usage := r.file("hugetlb", "hugetlb."+size+".current")
		if usage == nil {
			continue
		}
		h := HugetlbStats{PageSize: size, MaxUsage: Unlimited}
		h.Usage, _ = cgroupfile.Uint(usage)
		h.Limit = r.number("hugetlb", "hugetlb."+size+".max", Unlimited)
		h.Failures, _ = cgroupfile.Value(r.file("hugetlb", "hugetlb."+size+".events"), "max")
		s.Hugetlb = append(s.Hugetlb, h)
	}
}

func (r *reader) cpuV2(c *CPUStats) {
	cgroupfile.Each(r.file("cpu", "cpu.stat"), func(k []byte, v uint64) {
		switch string(k) {
		case "usage_usec":
			c.UsageNanos = v * 1000
		case "user_usec":
			c.UserNanos = v * 1000
		case "system_usec":
			c.SystemNanos = v * 1000
		case "nr_periods":
			c.Periods = v
		case "nr_throttled":
			c.ThrottledPeriods = v
		case "throttled_usec":
			c.ThrottledNanos = v * 1000
		case "nr_bursts":
			c.BurstPeriods = v
		case "burst_usec":
			c.BurstNanos = v * 1000
		}
	})
	c.Pressure = parsePressure(r.file("cpu", "cpu.pressure"))
}

func (r *reader) memoryV2(m *MemoryStats) {
	m.Usage = r.number("memory", "memory.current", 0)
	m.Limit = r.number("memory", "memory.max", Unlimited)
	m.SwapUsage = r.number("memory", "memory.swap.current", 0)
	m.SwapLimit = r.number("memory", "memory.swap.max", Unlimited)
	if r.all {
		m.MaxUsage = r.number("memory", "memory.peak", 0)
		cgroupfile.Each(r.file("memory", "memory.events"), func(k []byte, v uint64) {
			switch string(k) {
			case "oom_kill":
				m.OOMKills = v
			case "max":
				m.Failures = v
			}
		})
	}
	cgroupfile.Each(r.file("memory", "memory.stat"), func(k []byte, v uint64) {
		switch string(k) {
		case "inactive_file":
			m.InactiveFile = v
		case "active_file":
			m.ActiveFile = v
		case "anon":
			m.RSS = v
		case "file":
			m.Cache = v
		case "file_mapped":
			m.MappedFile = v
		case "kernel":
			m.Kernel = v
		case "pgfault":
			m.PageFaults = v
		case "pgmajfault":
			m.MajorFaults = v
		}
	})
	m.WorkingSet = less(m.Usage, m.InactiveFile)
	m.Pressure = parsePressure(r.file("memory", "memory.pressure"))
}

// parseIOStat reads io.stat: "major:minor key=value …" lines.
func parseIOStat(b []byte) (io []IOStats) {
	cgroupfile.Lines(b, func(line []byte) {
		name, rest, _ := bytes.Cut(line, []byte{' '})
		d := device(&io, name)
		if d == nil {
			return
		}
		for f := range bytes.SplitSeq(rest, []byte{' '}) {
			k, number, _ := bytes.Cut(f, []byte{'='})
			v, ok := cgroupfile.Uint(number)
			if !ok {
				continue
			}
			switch string(k) {
			case "rbytes":
				d.ReadBytes = v
			case "wbytes":
				d.WriteBytes = v
			case "rios":
				d.ReadOps = v
			case "wios":
				d.WriteOps = v
			case "dbytes":
				d.DiscardBytes = v
			case "dios":
				d.DiscardOps = v
			case "cost.usage":
				cost(d).UsageMicros = v
			case "cost.wait":
				cost(d).WaitMicros = v
			case "cost.indebt":
				cost(d).IndebtMicros = v
			case "cost.indelay":
				cost(d).IndelayMicros = v
			}
		}
	})
	return io
}

func cost(d *IOStats) *usage.IOCost {
	if d.Cost == nil {
		d.Cost = &usage.IOCost{}
	}
	return d.Cost
}
