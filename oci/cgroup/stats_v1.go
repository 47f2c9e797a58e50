package cgroup

import (
	"bytes"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
	"github.com/cri-shim/cri-shim/internal/usage"
)

// v1NoLimit is what v1 rounds "no memory limit" to, whatever the page size: anything from here on means none.
const v1NoLimit = 1 << 62

func (r *reader) v1(s *Stats) {
	r.cpuV1(&s.CPU)
	r.memoryV1(&s.Memory)
	if !r.all {
		return
	}
	s.Pids.Current = r.number("pids", "pids.current", 0)
	s.Pids.Limit = r.number("pids", "pids.max", Unlimited)
	s.IO = parseBlkio(s.IO, r.file("blkio", "blkio.throttle.io_service_bytes_recursive"), true)
	s.IO = parseBlkio(s.IO, r.file("blkio", "blkio.throttle.io_serviced_recursive"), false)
	r.timesV1(&s.IO)
	for _, size := range r.g.host.pageSizes {
		usage := r.file("hugetlb", "hugetlb."+size+".usage_in_bytes")
		if usage == nil {
			continue
		}
		h := HugetlbStats{PageSize: size}
		h.Usage, _ = cgroupfile.Uint(usage)
		h.MaxUsage = r.number("hugetlb", "hugetlb."+size+".max_usage_in_bytes", Unlimited)
		h.Limit = unlimitedV1(r.number("hugetlb", "hugetlb."+size+".limit_in_bytes", Unlimited))
		h.Failures = r.number("hugetlb", "hugetlb."+size+".failcnt", 0)
		s.Hugetlb = append(s.Hugetlb, h)
	}
}

func (r *reader) cpuV1(c *CPUStats) {
	c.UsageNanos = r.number("cpuacct", "cpuacct.usage", 0)
	if !r.all {
		return
	}
	c.UserNanos = r.number("cpuacct", "cpuacct.usage_user", 0)
	c.SystemNanos = r.number("cpuacct", "cpuacct.usage_sys", 0)
	cgroupfile.Each(r.file("cpu", "cpu.stat"), func(k []byte, v uint64) {
		switch string(k) {
		case "nr_periods":
			c.Periods = v
		case "nr_throttled":
			c.ThrottledPeriods = v
		case "throttled_time":
			c.ThrottledNanos = v
		case "nr_bursts":
			c.BurstPeriods = v
		case "burst_time":
			c.BurstNanos = v
		}
	})
}

func (r *reader) memoryV1(m *MemoryStats) {
	r.enter("memory")
	m.Usage = r.number("memory", "memory.usage_in_bytes", 0)
	m.Limit = unlimitedV1(r.number("memory", "memory.limit_in_bytes", Unlimited))
	m.SwapLimit = Unlimited
	if total := unlimitedV1(r.number("memory", "memory.memsw.limit_in_bytes", Unlimited)); total != Unlimited {
		m.SwapLimit = less(total, m.Limit)
	}
	if r.all {
		m.OOMKills, _ = cgroupfile.Value(r.file("memory", "memory.oom_control"), "oom_kill")
		m.MaxUsage = r.number("memory", "memory.max_usage_in_bytes", 0)
		m.Failures = r.number("memory", "memory.failcnt", 0)
		m.Kernel = r.number("memory", "memory.kmem.usage_in_bytes", 0)
	}
	cgroupfile.Each(r.file("memory", "memory.stat"), func(k []byte, v uint64) {
		switch string(k) {
		case "total_inactive_file":
			m.InactiveFile = v
		case "total_active_file":
			m.ActiveFile = v
		case "total_rss":
			m.RSS = v
		case "total_cache":
			m.Cache = v
		case "total_mapped_file":
			m.MappedFile = v
		case "total_swap":
			m.SwapUsage = v
		case "total_pgfault":
			m.PageFaults = v
		case "total_pgmajfault":
			m.MajorFaults = v
		}
	})
	m.WorkingSet = less(m.Usage, m.InactiveFile)
}

func unlimitedV1(n uint64) uint64 {
	if n >= v1NoLimit {
		return Unlimited
	}
	return n
}

// timesV1 adds what BFQ counts.
func (r *reader) timesV1(io *[]IOStats) {
	if !r.g.host.bfqTimes {
		return
	}
	for _, name := range []string{"io_service_time", "io_merged", "io_queued"} {
		parseTimes(io, name, r.file("blkio", "blkio.bfq."+name+"_recursive"))
	}
}

func parseTimes(io *[]IOStats, name string, b []byte) {
	cgroupfile.Lines(b, func(line []byte) {
		dev, op, v, ok := blkioLine(line)
		if !ok {
			return
		}
		d := device(io, dev)
		if d == nil {
			return
		}
		if d.Times == nil {
			d.Times = &usage.IOTimes{}
		}
		switch name + " " + op {
		case "io_service_time Read":
			d.Times.ReadNanos = v
		case "io_service_time Write":
			d.Times.WriteNanos = v
		case "io_service_time Total":
			d.Times.TotalNanos = v
		case "io_merged Read":
			d.Times.ReadsMerged = v
		case "io_merged Write":
			d.Times.WritesMerged = v
		case "io_queued Total":
			d.Times.Queued = v
		}
	})
}

// blkioLine is "major:minor operation number".
func blkioLine(line []byte) (dev []byte, operation string, v uint64, ok bool) {
	dev, rest, _ := bytes.Cut(line, []byte{' '})
	op, number, ok := bytes.Cut(rest, []byte{' '})
	v, isNumber := cgroupfile.Uint(number)
	return dev, string(op), v, ok && isNumber
}

// parseBlkio adds a file of "major:minor operation number" lines, bytes or operations, to io.
func parseBlkio(io []IOStats, b []byte, isBytes bool) []IOStats {
	cgroupfile.Lines(b, func(line []byte) {
		dev, op, v, ok := blkioLine(line)
		if !ok {
			return
		}
		var to func(*IOStats) (bytes, ops *uint64)
		switch op {
		case "Read":
			to = func(d *IOStats) (*uint64, *uint64) { return &d.ReadBytes, &d.ReadOps }
		case "Write":
			to = func(d *IOStats) (*uint64, *uint64) { return &d.WriteBytes, &d.WriteOps }
		case "Discard":
			to = func(d *IOStats) (*uint64, *uint64) { return &d.DiscardBytes, &d.DiscardOps }
		default: // Sync, Async, Total: the same again
			return
		}
		if d := device(&io, dev); d != nil {
			byteCount, ops := to(d)
			if isBytes {
				*byteCount = v
			} else {
				*ops = v
			}
		}
	})
	return io
}
