package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/usage"
)

// Whose a metric is.
const (
	ofPod = 1 << iota
	ofContainer
	ofBoth = ofPod | ofContainer
)

// metric is one line of the table: its descriptor, and how its values are found. Descriptors and values cannot
// differ, both are made from it.
type metric struct {
	name, help string
	kind       pb.MetricType
	of         int
	labels     []string // beside baseLabels
	values     func(*sample) []value
}

const (
	counter = pb.MetricType_COUNTER
	gauge   = pb.MetricType_GAUGE
)

// metrics have the names that cAdvisor gave them, so that dashboards and alerts go on working. Times are whole seconds:
// the CRI's values are integers.
var metrics = []metric{
	{"container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", counter, ofBoth, []string{"cpu"},
		func(s *sample) []value { return []value{{[]string{"total"}, wholeSeconds(s.usage.CPU.UsageNanos)}} }},
	{"container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", counter, ofBoth, nil,
		one(func(s *sample) uint64 { return wholeSeconds(s.usage.CPU.UserNanos) })},
	{"container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", counter, ofBoth, nil,
		one(func(s *sample) uint64 { return wholeSeconds(s.usage.CPU.SystemNanos) })},
	{"container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", counter, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.CPU.Periods })},
	{"container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", counter, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.CPU.ThrottledPeriods })},
	{"container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", counter, ofBoth, nil,
		one(func(s *sample) uint64 { return wholeSeconds(s.usage.CPU.ThrottledNanos) })},

	{"container_cpu_cfs_burst_periods_total", "Number of periods in which a burst occurred.", counter, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.CPU.BurstPeriods })},
	{"container_cpu_cfs_burst_seconds_total", "Total time duration the container has burst.", counter, ofBoth, nil,
		one(func(s *sample) uint64 { return wholeSeconds(s.usage.CPU.BurstNanos) })},

	{"container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.Usage })},
	{"container_memory_working_set_bytes", "Current working set in bytes.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.WorkingSet })},
	{"container_memory_rss", "Size of anonymous memory in bytes.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.RSS })},
	{"container_memory_cache", "Number of bytes of page cache memory.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.Cache })},
	{"container_memory_swap", "Swap usage in bytes.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.SwapUsage })},
	{"container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.Kernel })},
	{"container_memory_mapped_file", "Size of memory mapped files in bytes.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.MappedFile })},
	{"container_memory_total_active_file_bytes", "Size of page cache that was used of late, in bytes.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.ActiveFile })},
	{"container_memory_total_inactive_file_bytes", "Size of page cache that was not used of late, in bytes.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.InactiveFile })},
	{"container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.MaxUsage })},
	{"container_memory_failcnt", "Number of memory usage hits limits.", counter, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.Failures })},
	{"container_memory_failures_total", "Cumulative count of page faults.", counter, ofBoth, []string{"failure_type", "scope"},
		func(s *sample) []value {
			m := &s.usage.Memory
			return []value{
				{[]string{"pgfault", "hierarchy"}, m.PageFaults},
				{[]string{"pgmajfault", "hierarchy"}, m.MajorFaults},
			}
		}},
	{"container_oom_events_total", "Count of processes that the kernel killed for want of memory.", counter, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Memory.OOMKills })},
	{"container_hugetlb_usage_bytes", "Current hugepage usage in bytes.", gauge, ofBoth, []string{"pagesize"},
		hugepages(func(h *usage.Hugetlb) uint64 { return h.Usage })},
	{"container_hugetlb_max_usage_bytes", "Maximum hugepage usage recorded in bytes; cgroup v1 alone keeps it.", gauge, ofBoth, []string{"pagesize"},
		maxHugepages},
	{"container_hugetlb_failcnt", "Number of hugepage usage hits limits.", counter, ofBoth, []string{"pagesize"},
		hugepages(func(h *usage.Hugetlb) uint64 { return h.Failures })},

	{"container_pressure_cpu_waiting_seconds_total", "Time in which some tasks waited for the cpu, in seconds.", counter, ofBoth, nil,
		pressure(cpuPressure, func(p *usage.Pressure) uint64 { return p.Some.TotalMicros })},
	{"container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for the cpu, in seconds.", counter, ofBoth, nil,
		pressure(cpuPressure, func(p *usage.Pressure) uint64 { return p.Full.TotalMicros })},
	{"container_pressure_memory_waiting_seconds_total", "Time in which some tasks waited for memory, in seconds.", counter, ofBoth, nil,
		pressure(memoryPressure, func(p *usage.Pressure) uint64 { return p.Some.TotalMicros })},
	{"container_pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory, in seconds.", counter, ofBoth, nil,
		pressure(memoryPressure, func(p *usage.Pressure) uint64 { return p.Full.TotalMicros })},
	{"container_pressure_io_waiting_seconds_total", "Time in which some tasks waited for input or output, in seconds.", counter, ofBoth, nil,
		pressure(ioPressure, func(p *usage.Pressure) uint64 { return p.Some.TotalMicros })},
	{"container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for input or output, in seconds.", counter, ofBoth, nil,
		pressure(ioPressure, func(p *usage.Pressure) uint64 { return p.Full.TotalMicros })},

	{"container_fs_usage_bytes", "Number of bytes that the writable layer takes.", gauge, ofContainer, []string{"device"},
		layer(func(s *sample) uint64 { return s.layer.Bytes })},
	{"container_fs_limit_bytes", "Number of bytes that the file system of the writable layer has.", gauge, ofContainer, []string{"device"},
		filesystem(func(s *sample) uint64 { return s.fs.Blocks * uint64(s.fs.Bsize) })},
	{"container_fs_inodes_total", "Number of inodes of the file system of the writable layer.", gauge, ofContainer, []string{"device"},
		filesystem(func(s *sample) uint64 { return s.fs.Files })},
	{"container_fs_inodes_free", "Number of free inodes of the file system of the writable layer.", gauge, ofContainer, []string{"device"},
		filesystem(func(s *sample) uint64 { return s.fs.Ffree })},
	{"container_fs_reads_total", "Cumulative count of reads completed.", counter, ofContainer, []string{"device"},
		perDisk(func(d *usage.IO) uint64 { return d.ReadOps })},
	{"container_fs_writes_total", "Cumulative count of writes completed.", counter, ofContainer, []string{"device"},
		perDisk(func(d *usage.IO) uint64 { return d.WriteOps })},
	{"container_fs_reads_bytes_total", "Cumulative count of bytes read.", counter, ofContainer, []string{"device"},
		perDisk(func(d *usage.IO) uint64 { return d.ReadBytes })},
	{"container_fs_writes_bytes_total", "Cumulative count of bytes written.", counter, ofContainer, []string{"device"},
		perDisk(func(d *usage.IO) uint64 { return d.WriteBytes })},
	{"container_fs_sector_reads_total", "Cumulative count of sectors of 512 bytes read.", counter, ofContainer, []string{"device"},
		perDisk(func(d *usage.IO) uint64 { return d.ReadBytes / sector })},
	{"container_fs_sector_writes_total", "Cumulative count of sectors of 512 bytes written.", counter, ofContainer, []string{"device"},
		perDisk(func(d *usage.IO) uint64 { return d.WriteBytes / sector })},
	{"container_fs_reads_merged_total", "Cumulative count of reads merged; BFQ alone counts it, on cgroup v1.", counter, ofContainer, []string{"device"},
		ioTimes(func(t *usage.IOTimes) uint64 { return t.ReadsMerged })},
	{"container_fs_writes_merged_total", "Cumulative count of writes merged; BFQ alone counts it, on cgroup v1.", counter, ofContainer, []string{"device"},
		ioTimes(func(t *usage.IOTimes) uint64 { return t.WritesMerged })},
	{"container_fs_read_seconds_total", "Cumulative count of seconds spent reading; BFQ alone counts it, on cgroup v1.", counter, ofContainer, []string{"device"},
		ioTimes(func(t *usage.IOTimes) uint64 { return wholeSeconds(t.ReadNanos) })},
	{"container_fs_write_seconds_total", "Cumulative count of seconds spent writing; BFQ alone counts it, on cgroup v1.", counter, ofContainer, []string{"device"},
		ioTimes(func(t *usage.IOTimes) uint64 { return wholeSeconds(t.WriteNanos) })},
	{"container_fs_io_time_seconds_total", "Cumulative count of seconds spent doing I/Os; BFQ alone counts it, on cgroup v1.", counter, ofContainer, []string{"device"},
		ioTimes(func(t *usage.IOTimes) uint64 { return wholeSeconds(t.TotalNanos) })},
	{"container_fs_io_current", "Number of I/Os currently in progress; BFQ alone counts it, on cgroup v1.", gauge, ofContainer, []string{"device"},
		ioTimes(func(t *usage.IOTimes) uint64 { return t.Queued })},
	{"container_fs_io_cost_usage_seconds_total", "Cumulative IOCost usage in seconds, on cgroup v2.", counter, ofContainer, []string{"device"},
		ioCost(func(c *usage.IOCost) uint64 { return c.UsageMicros })},
	{"container_fs_io_cost_wait_seconds_total", "Cumulative IOCost wait in seconds, on cgroup v2.", counter, ofContainer, []string{"device"},
		ioCost(func(c *usage.IOCost) uint64 { return c.WaitMicros })},
	{"container_fs_io_cost_indebt_seconds_total", "Cumulative IOCost debt in seconds, on cgroup v2.", counter, ofContainer, []string{"device"},
		ioCost(func(c *usage.IOCost) uint64 { return c.IndebtMicros })},
	{"container_fs_io_cost_indelay_seconds_total", "Cumulative IOCost delay in seconds, on cgroup v2.", counter, ofContainer, []string{"device"},
		ioCost(func(c *usage.IOCost) uint64 { return c.IndelayMicros })},
	{"container_blkio_device_usage_total", "Bytes moved from and to block devices.", counter, ofContainer,
		[]string{"device", "major", "minor", "operation"}, blkio},

	{"container_network_receive_bytes_total", "Cumulative count of bytes received.", counter, ofPod, []string{"interface"},
		perInterface(func(n *usage.Interface) uint64 { return n.RxBytes })},
	{"container_network_receive_packets_total", "Cumulative count of packets received.", counter, ofPod, []string{"interface"},
		perInterface(func(n *usage.Interface) uint64 { return n.RxPackets })},
	{"container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving.", counter, ofPod, []string{"interface"},
		perInterface(func(n *usage.Interface) uint64 { return n.RxDropped })},
	{"container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.", counter, ofPod, []string{"interface"},
		perInterface(func(n *usage.Interface) uint64 { return n.RxErrors })},
	{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", counter, ofPod, []string{"interface"},
		perInterface(func(n *usage.Interface) uint64 { return n.TxBytes })},
	{"container_network_transmit_packets_total", "Cumulative count of packets transmitted.", counter, ofPod, []string{"interface"},
		perInterface(func(n *usage.Interface) uint64 { return n.TxPackets })},
	{"container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting.", counter, ofPod, []string{"interface"},
		perInterface(func(n *usage.Interface) uint64 { return n.TxDropped })},
	{"container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.", counter, ofPod, []string{"interface"},
		perInterface(func(n *usage.Interface) uint64 { return n.TxErrors })},

	{"container_processes", "Number of processes running inside the container.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.processes.Count })},
	{"container_threads", "Number of threads running inside the container.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return s.usage.Pids.Current })},
	{"container_threads_max", "Maximum number of threads allowed inside the container, infinity if value is zero.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return unlessUnlimited(s.usage.Pids.Limit) })},
	{"container_tasks_state", "Number of tasks in given state; the kernel does not tell who of the uninterruptible waits for a disk.", gauge, ofContainer, []string{"state"},
		func(s *sample) []value {
			n := &s.processes.Tasks
			return []value{
				{[]string{"sleeping"}, n.Sleeping}, {[]string{"running"}, n.Running},
				{[]string{"stopped"}, n.Stopped}, {[]string{"uninterruptible"}, n.Uninterruptible},
			}
		}},
	{"container_file_descriptors", "Number of open file descriptors for the container.", gauge, ofContainer, nil,
		one(func(s *sample) uint64 { return s.processes.Files })},
	{"container_sockets", "Number of open sockets for the container.", gauge, ofContainer, nil,
		one(func(s *sample) uint64 { return s.processes.Sockets })},
	{"container_ulimits_soft", "Soft ulimit values for the container root process.", gauge, ofContainer, []string{"ulimit"},
		func(s *sample) []value {
			if s.processes.MaxFiles == usage.Unlimited {
				return nil
			}
			return []value{{[]string{"max_open_files"}, s.processes.MaxFiles}}
		}},
	{"container_last_seen", "Last time a container was seen by the exporter, in seconds since the epoch.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 { return uint64(s.at.Unix()) })},
	{scrapeError, "1 if the pod could not be measured, 0 otherwise.", gauge, ofPod, nil,
		one(func(s *sample) uint64 {
			if s.err != nil {
				return 1
			}
			return 0
		})},
	{"container_start_time_seconds", "Start time of the container since the epoch in seconds.", gauge, ofBoth, nil,
		one(func(s *sample) uint64 {
			if s.container == nil {
				return uint64(s.pod.CreatedAt.Unix())
			}
			return uint64(s.container.StartedAt.Unix())
		})},
	{"container_spec_cpu_period", "CPU period of the container in microseconds.", gauge, ofContainer, nil,
		spec(func(s *sample) int64 { return s.container.Config.Resources.CPUPeriod })},
	{"container_spec_cpu_quota", "CPU quota of the container in microseconds a period.", gauge, ofContainer, nil,
		spec(func(s *sample) int64 { return s.container.Config.Resources.CPUQuota })},
	{"container_spec_cpu_shares", "CPU share of the container.", gauge, ofContainer, nil,
		spec(func(s *sample) int64 { return s.container.Config.Resources.CPUShares })},
	{"container_spec_memory_limit_bytes", "Memory limit for the container, 0 if there is none.", gauge, ofContainer, nil,
		one(func(s *sample) uint64 { return unlessUnlimited(s.usage.Memory.Limit) })},
	{"container_spec_memory_swap_limit_bytes", "Limit of memory and swap together, 0 if there is none.", gauge, ofContainer, nil,
		one(func(s *sample) uint64 {
			m := &s.usage.Memory
			if m.Limit == usage.Unlimited || m.SwapLimit == usage.Unlimited {
				return 0
			}
			return m.Limit + m.SwapLimit
		})},
	{"container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container; the CRI has none.", gauge, ofContainer, nil,
		one(func(*sample) uint64 { return 0 })},
}

// scrapeError is the one metric of a pod that could not be measured.
const scrapeError = "container_scrape_error"

// sector is the kernel's unit of block devices, whatever theirs is.
const sector = 512

func wholeSeconds(nanos uint64) uint64 { return nanos / uint64(time.Second) }

func unlessUnlimited(n uint64) uint64 {
	if n == usage.Unlimited {
		return 0
	}
	return n
}

// one is a metric with one value.
func one(of func(*sample) uint64) func(*sample) []value {
	return func(s *sample) []value { return []value{{nil, of(s)}} }
}

// spec is a limit that the client set; one that it did not set is left out, as cAdvisor does.
func spec(of func(*sample) int64) func(*sample) []value {
	return func(s *sample) []value {
		if s.container.Config.Resources == nil {
			return nil
		}
		v := of(s)
		if v <= 0 {
			return nil
		}
		return []value{{nil, uint64(v)}}
	}
}

func hugepages(of func(*usage.Hugetlb) uint64) func(*sample) []value {
	return func(s *sample) (out []value) {
		for i := range s.usage.Hugetlb {
			h := &s.usage.Hugetlb[i]
			out = append(out, value{[]string{h.PageSize}, of(h)})
		}
		return out
	}
}

// maxHugepages has no value where the kernel keeps none.
func maxHugepages(s *sample) (out []value) {
	for i := range s.usage.Hugetlb {
		if h := &s.usage.Hugetlb[i]; h.MaxUsage != usage.Unlimited {
			out = append(out, value{[]string{h.PageSize}, h.MaxUsage})
		}
	}
	return out
}

func cpuPressure(s *usage.Stats) *usage.Pressure    { return s.CPU.Pressure }
func memoryPressure(s *usage.Stats) *usage.Pressure { return s.Memory.Pressure }
func ioPressure(s *usage.Stats) *usage.Pressure     { return s.IOPressure }

// pressure has no value where the kernel does not measure it.
func pressure(which func(*usage.Stats) *usage.Pressure, micros func(*usage.Pressure) uint64) func(*sample) []value {
	return func(s *sample) []value {
		p := which(s.usage)
		if p == nil {
			return nil
		}
		return []value{{nil, micros(p) / 1e6}}
	}
}

// layer has no value until the layer was measured.
func layer(of func(*sample) uint64) func(*sample) []value {
	return func(s *sample) []value {
		if !s.layer.Known {
			return nil
		}
		return filesystem(of)(s)
	}
}

func filesystem(of func(*sample) uint64) func(*sample) []value {
	return func(s *sample) []value { return []value{{[]string{""}, of(s)}} }
}

func perDisk(of func(*usage.IO) uint64) func(*sample) []value {
	return func(s *sample) (out []value) {
		for i := range s.usage.IO {
			d := &s.usage.IO[i]
			out = append(out, value{[]string{s.disks.name(d)}, of(d)})
		}
		return out
	}
}

// ioTimes has no value where the kernel keeps none.
func ioTimes(of func(*usage.IOTimes) uint64) func(*sample) []value {
	return func(s *sample) (out []value) {
		for i := range s.usage.IO {
			if d := &s.usage.IO[i]; d.Times != nil {
				out = append(out, value{[]string{s.disks.name(d)}, of(d.Times)})
			}
		}
		return out
	}
}

// ioCost has no value for a device that blk-iocost does not control.
func ioCost(micros func(*usage.IOCost) uint64) func(*sample) []value {
	return func(s *sample) (out []value) {
		for i := range s.usage.IO {
			if d := &s.usage.IO[i]; d.Cost != nil {
				out = append(out, value{[]string{s.disks.name(d)}, micros(d.Cost) / 1e6})
			}
		}
		return out
	}
}

func blkio(s *sample) (out []value) {
	for i := range s.usage.IO {
		d := &s.usage.IO[i]
		at := []string{s.disks.name(d), fmt.Sprint(d.Major), fmt.Sprint(d.Minor)}
		for _, op := range []struct {
			name  string
			bytes uint64
		}{{"Read", d.ReadBytes}, {"Write", d.WriteBytes}, {"Discard", d.DiscardBytes}} {
			out = append(out, value{append(at[:3:3], op.name), op.bytes})
		}
	}
	return out
}

func perInterface(of func(*usage.Interface) uint64) func(*sample) []value {
	return func(s *sample) (out []value) {
		for i := range s.network {
			n := &s.network[i]
			out = append(out, value{[]string{n.Name}, of(n)})
		}
		return out
	}
}

// diskNames remembers the names of block devices for the length of a call.
type diskNames map[[2]uint64]string

func (d diskNames) name(io *usage.IO) string {
	key := [2]uint64{io.Major, io.Minor}
	name, ok := d[key]
	if !ok {
		name = fmt.Sprintf("%d:%d", io.Major, io.Minor)
		if to, err := os.Readlink("/sys/dev/block/" + name); err == nil {
			name = "/dev/" + filepath.Base(to)
		}
		d[key] = name
	}
	return name
}
