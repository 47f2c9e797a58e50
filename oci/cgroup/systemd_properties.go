package cgroup

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// infinity is how systemd's properties say that there is no limit.
const infinity = uint64(math.MaxUint64)

// defaultPeriod is the kernel's period of cpu.max, in µs.
const defaultPeriod = 100000

func property(name string, v any) dbus.Property {
	return dbus.Property{Name: name, Value: godbus.MakeVariant(v)}
}

// pathLimit and pathRate are the (ss) and (st) of systemd.resource-control(5)'s lists.
type (
	pathAccess struct{ Path, Access string }
	pathValue  struct {
		Path  string
		Value uint64
	}
)

// properties says to systemd what the plan says to the kernel, as far as systemd has words for it: when it next applies
// a unit's settings (daemon-reload, a change of any property) it writes these. Of what it has no words for (burst,
// hugetlb, rdma) it writes nothing. period is the one in force, for a quota that comes without.
func (p *plan) properties(period uint64) []dbus.Property {
	m := propertyList{}
	for _, s := range p.settings {
		if len(s.values) > 0 {
			m.add(s, period)
		}
	}
	out := m.list
	for _, name := range ioLists {
		if l := m.io[name]; len(l) > 0 {
			out = append(out, property(name, l))
		}
	}
	if p.devices != nil {
		out = append(out, p.devices.properties()...)
	}
	return out
}

type propertyList struct {
	list []dbus.Property
	io   map[string][]pathValue
}

var ioLists = []string{"IODeviceWeight", "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax"}

// numbers are the files whose value is one number or "max".
var numbers = map[string]string{
	"memory.max": "MemoryMax", "memory.high": "MemoryHigh", "memory.low": "MemoryLow", "memory.min": "MemoryMin",
	"memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax", "cpu.weight": "CPUWeight",
}

func (m *propertyList) add(s setting, period uint64) {
	v := s.values[0]
	switch s.file {
	case "cpu.idle":
		if v == "1" {
			m.list = append(m.list, property("CPUWeight", uint64(0))) // CGROUP_WEIGHT_IDLE, systemd 252
		}
	case "cpu.max":
		m.list = append(m.list, cpuProperties(v, period)...)
	case "cpuset.cpus", "cpuset.mems":
		name := map[string]string{"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}[s.file]
		if mask, ok := cpuMask(v); ok {
			m.list = append(m.list, property(name, mask))
		}
	case "io.weight", "io.bfq.weight":
		m.ioWeight(s)
	case "io.max":
		for _, line := range s.values {
			m.ioMax(line)
		}
	default:
		if name, ok := numbers[s.file]; ok {
			if n, ok := number(v); ok {
				m.list = append(m.list, property(name, n))
			}
		}
	}
}

func number(v string) (uint64, bool) {
	if v == "max" {
		return infinity, true
	}
	n, err := strconv.ParseUint(v, 10, 64)
	return n, err == nil
}

// cpuProperties reads cpu.max. systemd keeps a quota in a file as a whole percentage of a CPU and cuts the rest off, so
// it is told the next percent: what it may apply later must not be less than what was asked for.
func cpuProperties(v string, period uint64) []dbus.Property {
	const percent = 10000 // µs a second
	quota, p, ok := strings.Cut(v, " ")
	if n, err := strconv.ParseUint(p, 10, 64); ok && err == nil {
		period = n
	}
	if period == 0 {
		period = defaultPeriod
	}
	out := []dbus.Property{property("CPUQuotaPeriodUSec", period)}
	if quota == "max" {
		return append(out, property("CPUQuotaPerSecUSec", infinity))
	}
	n, err := strconv.ParseUint(quota, 10, 64)
	if err != nil {
		return nil
	}
	perSecond := uint64(math.Ceil(float64(n) * 1e6 / float64(period) / percent))
	return append(out, property("CPUQuotaPerSecUSec", max(perSecond, 1)*percent))
}

// cpuMask is a list like 0-3,7 as systemd's bytes, the lowest bit first.
func cpuMask(list string) ([]byte, bool) {
	const most = 1 << 13 // more CPUs than the kernel can have
	var mask []byte
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, errA := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
		b, errB := a, error(nil)
		if isRange {
			b, errB = strconv.ParseUint(strings.TrimSpace(last), 10, 16)
		}
		if errA != nil || errB != nil || b < a || b >= most {
			return nil, false
		}
		for i := a; i <= b; i++ {
			for uint64(len(mask)) <= i/8 {
				mask = append(mask, 0)
			}
			mask[i/8] |= 1 << (i % 8)
		}
	}
	return mask, true
}

// ioWeight takes io.weight's scale (1 to 10000); BFQ's own file has blkio's, and its setting carries the other as well.
func (m *propertyList) ioWeight(s setting) {
	if s.alt != nil {
		s = *s.alt
	}
	dev, v, ok := strings.Cut(s.values[0], " ")
	if !ok {
		dev, v = "default", dev
	}
	n, err := strconv.ParseUint(v, 10, 64)
	switch {
	case err != nil:
	case dev == "default":
		m.list = append(m.list, property("IOWeight", n))
	default:
		m.device("IODeviceWeight", dev, n)
	}
}

// ioMax takes a line of io.max: "8:0 rbps=1048576 wiops=max".
func (m *propertyList) ioMax(line string) {
	names := map[string]string{
		"rbps": "IOReadBandwidthMax", "wbps": "IOWriteBandwidthMax", "riops": "IOReadIOPSMax", "wiops": "IOWriteIOPSMax",
	}
	words := strings.Fields(line)
	for i, w := range words {
		if i == 0 {
			continue
		}
		key, v, _ := strings.Cut(w, "=")
		if n, ok := number(v); ok && names[key] != "" {
			m.device(names[key], words[0], n)
		}
	}
}

// device adds to a list by device. systemd wants a node's path; without one (no udev) only the kernel is told.
func (m *propertyList) device(name, number string, v uint64) {
	path := "/dev/block/" + number
	if _, err := os.Stat(path); err != nil {
		return
	}
	if m.io == nil {
		m.io = map[string][]pathValue{}
	}
	m.io[name] = append(m.io[name], pathValue{path, v})
}

// properties gives systemd a list of its own that allows at least what ours does. Its program and ours must both agree,
// so ours alone has the exact rules. A list that allows by default needs none of systemd's.
func (l *deviceList) properties() []dbus.Property {
	if l.allowAll {
		return []dbus.Property{property("DevicePolicy", "auto"), property("DeviceAllow", []pathAccess{})}
	}
	var allow []pathAccess
	for _, r := range l.rules {
		if !r.allow {
			continue
		}
		a := pathAccess{r.key.systemd(), r.perm.String()}
		if !slices.Contains(allow, a) {
			allow = append(allow, a)
		}
	}
	out := []dbus.Property{property("DevicePolicy", "strict"), property("DeviceAllow", []pathAccess{})} // empty: forget the old ones
	if len(allow) > 0 {
		out = append(out, property("DeviceAllow", allow))
	}
	return out
}

// systemd names devices as systemd.resource-control(5), DeviceAllow=, has it. Paths in /dev/char and /dev/block are taken
// apart by systemd without a look at them.
func (k deviceKey) systemd() string {
	class := "char"
	if k.kind == 'b' {
		class = "block"
	}
	switch {
	case k.major == anyNumber:
		return class + "-*"
	case k.minor == anyNumber:
		return class + "-" + strconv.FormatInt(k.major, 10)
	}
	return fmt.Sprintf("/dev/%s/%d:%d", class, k.major, k.minor)
}
