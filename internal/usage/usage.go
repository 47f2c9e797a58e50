// Package usage says in plain data what pods and containers use: what control groups count, networks move and writable
// layers take.
package usage

// Unlimited is the value of a limit that is not set.
const Unlimited = ^uint64(0)

// Stats is what a group and the groups nested in it have used. A controller that the group has not leaves its part zero.
type Stats struct {
	CPU        CPU
	Memory     Memory
	Pids       Pids
	IO         []IO      // a line for each device, in the kernel's order
	IOPressure *Pressure // nil on v1 and without PSI
	Hugetlb    []Hugetlb // a line for each page size of the machine
}

// CPU counts since the group was made.
type CPU struct {
	UsageNanos, UserNanos, SystemNanos uint64
	Periods, ThrottledPeriods          uint64 // enforcement periods of the quota
	ThrottledNanos                     uint64
	BurstPeriods, BurstNanos           uint64    // in which, and for how long, more than the quota was used
	Pressure                           *Pressure // nil on v1 and without PSI
}

// Memory is in bytes but for the faults.
type Memory struct {
	Usage      uint64
	WorkingSet uint64 // usage less inactive file cache, as the kubelet defines it
	RSS        uint64 // anonymous memory
	Cache      uint64 // page cache, tmpfs included
	Limit      uint64 // Unlimited if none
	SwapUsage  uint64
	SwapLimit  uint64 // swap alone, Unlimited if none
	PageFaults uint64
	MajorFaults,
	OOMKills uint64
	Pressure   *Pressure
	Kernel     uint64
	MappedFile uint64
	// ActiveFile and InactiveFile are what of the page cache was used of late, and what may go first.
	ActiveFile, InactiveFile uint64
	MaxUsage                 uint64 // the highest usage so far; 0 where the kernel does not keep it (v2 before Linux 5.19)
	Failures                 uint64 // how often the limit was hit
}

// Pids counts tasks, threads included.
type Pids struct {
	Current uint64
	Limit   uint64 // Unlimited if none
}

// IO is the traffic with one block device.
type IO struct {
	Major, Minor                             uint64
	ReadBytes, WriteBytes, ReadOps, WriteOps uint64
	DiscardBytes, DiscardOps                 uint64
	Cost                                     *IOCost  // nil where blk-iocost does not control the device
	Times                                    *IOTimes // nil where the kernel does not keep them
}

// IOCost is what blk-iocost counts for a device (cgroup v2).
type IOCost struct{ UsageMicros, WaitMicros, IndebtMicros, IndelayMicros uint64 }

// IOTimes is what the scheduler BFQ counts for a device (cgroup v1, CONFIG_BFQ_CGROUP_DEBUG).
type IOTimes struct {
	ReadNanos, WriteNanos, TotalNanos uint64
	ReadsMerged, WritesMerged         uint64
	Queued                            uint64 // now
}

// Hugetlb is for one page size ("2MB"), in bytes.
type Hugetlb struct {
	PageSize string
	Usage    uint64
	MaxUsage uint64 // the highest so far; Unlimited where it is not kept (v2)
	Limit    uint64 // Unlimited if none
	Failures uint64 // allocations refused by the limit
}

// Pressure is a PSI file: how much of the time tasks waited for the resource.
type Pressure struct {
	Some, Full Line
}

// Line holds percentages over the last 10, 60 and 300 seconds and the total in microseconds.
type Line struct {
	Avg10, Avg60, Avg300 float64
	TotalMicros          uint64
}

// Interface is the traffic of one network interface since it was made.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Processes is what the processes of a group have open.
type Processes struct {
	Count, Files, Sockets uint64
	// MaxFiles is the soft limit of open files of the first process, Unlimited if it has none.
	MaxFiles uint64
	// Tasks are the threads by what they do, where that was asked for.
	Tasks TaskStates
}

// TaskStates counts threads by state.
type TaskStates struct {
	Running, Sleeping, Stopped, Uninterruptible uint64
}

// Add adds what another group has used. Limits and averages stay as they are: they do not add up.
func (s *Stats) Add(o *Stats) {
	c, m := &s.CPU, &s.Memory
	c.UsageNanos += o.CPU.UsageNanos
	c.UserNanos += o.CPU.UserNanos
	c.SystemNanos += o.CPU.SystemNanos
	c.Periods += o.CPU.Periods
	c.ThrottledPeriods += o.CPU.ThrottledPeriods
	c.ThrottledNanos += o.CPU.ThrottledNanos
	m.Usage += o.Memory.Usage
	m.WorkingSet += o.Memory.WorkingSet
	m.RSS += o.Memory.RSS
	m.Cache += o.Memory.Cache
	m.SwapUsage += o.Memory.SwapUsage
	m.PageFaults += o.Memory.PageFaults
	m.MajorFaults += o.Memory.MajorFaults
	m.OOMKills += o.Memory.OOMKills
	m.Kernel += o.Memory.Kernel
	m.MappedFile += o.Memory.MappedFile
	m.ActiveFile += o.Memory.ActiveFile
	m.InactiveFile += o.Memory.InactiveFile
	m.Failures += o.Memory.Failures
	s.Pids.Current += o.Pids.Current
}
