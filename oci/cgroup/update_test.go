package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// limitUpdate is one limit: how it is set, and what the group's file then has.
type limitUpdate struct {
	name       string
	controller string
	file, want string // of v1 and v2, by limitsV1 and limitsV2
	r          specs.LinuxResources
}

func limitsV1() []limitUpdate {
	return []limitUpdate{
		{"memory", "memory", "memory.limit_in_bytes", "134217728", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20))}}},
		{"reservation", "memory", "memory.soft_limit_in_bytes", "67108864", specs.LinuxResources{Memory: &specs.LinuxMemory{Reservation: ptr(int64(64 << 20))}}},
		{"swappiness", "memory", "memory.swappiness", "3", specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(3))}}},
		{"shares", "cpu", "cpu.shares", "333", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(333))}}},
		{"period", "cpu", "cpu.cfs_period_us", "20000", specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr(uint64(20000))}}},
		{"quota", "cpu", "cpu.cfs_quota_us", "7000", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(7000))}}},
		{"burst", "cpu", "cpu.cfs_burst_us", "3000", specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: ptr(uint64(3000))}}},
		{"cpus", "cpuset", "cpuset.cpus", "0", specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}},
		{"mems", "cpuset", "cpuset.mems", "0", specs.LinuxResources{CPU: &specs.LinuxCPU{Mems: "0"}}},
		{"idle", "cpu", "cpu.idle", "1", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1))}}},
		{"pids", "pids", "pids.max", "55", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(55))}}},
		{"io weight", "blkio", "blkio.bfq.weight", "300", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(300))}}},
		{"hugetlb", "hugetlb", "hugetlb.2MB.limit_in_bytes", "4194304", hugetlb(4 << 20)},
		{"rdma", "rdma", "rdma.max", "", specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{rdmaDevice(): {HcaHandles: ptr(uint32(3))}}}},
		{"class", "net_cls", "net_cls.classid", "77", specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: ptr(uint32(77))}}},
	}
}

func limitsV2() []limitUpdate {
	return []limitUpdate{
		{"memory", "memory", "memory.max", "134217728", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20))}}},
		{"reservation", "memory", "memory.low", "67108864", specs.LinuxResources{Memory: &specs.LinuxMemory{Reservation: ptr(int64(64 << 20))}}},
		{"swap", "memory", "memory.swap.max", "16777216", specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(144 << 20))}}},
		{"shares", "cpu", "cpu.weight", fmt.Sprint(CPUWeight(333)), specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(333))}}},
		{"quota and period", "cpu", "cpu.max", "7000 20000", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(7000)), Period: ptr(uint64(20000))}}},
		{"burst", "cpu", "cpu.max.burst", "3000", specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: ptr(uint64(3000))}}},
		{"cpus", "cpuset", "cpuset.cpus", "0", specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}},
		{"mems", "cpuset", "cpuset.mems", "0", specs.LinuxResources{CPU: &specs.LinuxCPU{Mems: "0"}}},
		{"idle", "cpu", "cpu.idle", "1", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1))}}},
		{"pids", "pids", "pids.max", "55", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(55))}}},
		{"io weight", "io", "io.bfq.weight", "default 300", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(300))}}},
		{"hugetlb", "hugetlb", "hugetlb.2MB.max", "4194304", hugetlb(4 << 20)},
		{"rdma", "rdma", "rdma.max", "", specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{rdmaDevice(): {HcaHandles: ptr(uint32(3))}}}},
		{"unified", "memory", "memory.high", "100663296", specs.LinuxResources{Unified: map[string]string{"memory.high": "100663296"}}},
		{"unified group", "memory", "memory.oom.group", "1", specs.LinuxResources{Unified: map[string]string{"memory.oom.group": "1"}}},
	}
}

func hugetlb(n uint64) specs.LinuxResources {
	return specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: n}}}
}

// rdmaDevice is an adapter of this machine, "none" without.
func rdmaDevice() string {
	entries, _ := os.ReadDir("/sys/class/infiniband")
	for _, e := range entries {
		return e.Name()
	}
	return "none"
}

// ioMax is a throttle of a disk of this machine, if there is one.
func ioMax(h *Host) (limitUpdate, bool) {
	entries, _ := os.ReadDir("/sys/block")
	for _, e := range entries {
		b, err := os.ReadFile("/sys/block/" + e.Name() + "/dev")
		var major, minor int64
		if _, scan := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err != nil || scan != nil || strings.HasPrefix(e.Name(), "loop") {
			continue
		}
		d := specs.LinuxThrottleDevice{Rate: 1 << 20}
		d.Major, d.Minor = major, minor
		dev := fmt.Sprintf("%d:%d", major, minor)
		u := limitUpdate{"throttle", "io", "io.max", dev + " rbps=1048576 wbps=max riops=max wiops=max",
			specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{d}}}}
		if h.mode == V1 {
			u.controller, u.file, u.want = "blkio", "blkio.throttle.read_bps_device", dev+" 1048576"
		}
		return u, true
	}
	return limitUpdate{}, false
}

// TestUpdateEveryLimit changes each limit of a group with a process in it.
func TestUpdateEveryLimit(t *testing.T) {
	eachHost(t, []string{"memory"}, func(t *testing.T, h *Host) {
		g := mustCreate(t, h, testPath(t, h)+"/c", &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}, CPU: &specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000))},
		})
		updateEvery(t, h, g)
	})
}

func TestSystemdUpdateEveryLimit(t *testing.T) {
	h := systemdHost(t)
	g, err := h.Create(t.Context(), testScope(t, h), &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}, CPU: &specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000))},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Release)
	updateEvery(t, h, g)
}

func updateEvery(t *testing.T, h *Host, g *Group) {
	k := start(t, g, "open")
	g.Release()
	limits := limitsV2()
	if h.mode == V1 {
		limits = limitsV1()
	}
	if u, ok := ioMax(h); ok {
		limits = append(limits, u)
	}
	for _, l := range limits {
		t.Run(l.name, func(t *testing.T) {
			hi := h.byName[l.controller]
			if hi == nil {
				t.Skipf("this machine's cgroup %s has no controller %s", h.mode, l.controller)
			}
			if l.name == "rdma" && rdmaDevice() == "none" {
				t.Skip("this machine has no RDMA adapter")
			}
			if ok, _ := hi.root.Exists(g.rel + "/" + l.file); !ok {
				t.Skipf("this kernel has no %s", l.file)
			}
			if err := g.Update(t.Context(), &l.r); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(hi.file(g.rel, l.file))
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			if l.name == "rdma" {
				l.want = rdmaDevice() + " hca_handle=3 hca_object=max"
			}
			if !slices.Contains(lines, l.want) {
				t.Errorf("%s = %q; want %q", l.file, b, l.want)
			}
		})
	}
	// An idle group with a small quota gets next to nothing of a busy machine.
	if h.byName["cpu"] != nil {
		for _, c := range []*specs.LinuxCPU{{Idle: ptr(int64(0))}, {Burst: ptr(uint64(0))}, {Quota: ptr(int64(-1)), Shares: ptr(uint64(1024))}} {
			if err := g.Update(t.Context(), &specs.LinuxResources{CPU: c}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := k.ask("r /dev/null"); got != "ok" {
		t.Errorf("the process in the group says %q; want it well", got)
	}
}

// What is in use cannot be taken away; the error says which limit and why.
func TestUpdateBelowUsage(t *testing.T) {
	eachHost(t, []string{"memory"}, func(t *testing.T, h *Host) {
		g := mustCreate(t, h, testPath(t, h)+"/c", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20))}})
		hog := start(t, g, "hog")
		if got := hog.ask(fmt.Sprint(32 << 20)); !strings.HasPrefix(got, "survived") {
			t.Fatalf("hog says %q", got)
		}
		err := g.Update(t.Context(), &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 20)), CheckBeforeUpdate: ptr(true)}})
		var limit *LimitError
		if !errors.As(err, &limit) || !strings.HasPrefix(limit.Limit, "memory.") || !errors.Is(err, syscall.EBUSY) {
			t.Errorf("Update to 1 MiB with 32 in use = %v; want EBUSY that names memory.limit", err)
		}
		if got := hog.ask("4096"); !strings.HasPrefix(got, "survived") {
			t.Errorf("hog says %q; want it alive", got)
		}
	})
}
