package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// lines renders settings as "file=value|value", alternatives after " or ", neutral ones with "?".
func lines(ss []setting) []string {
	var out []string
	for _, s := range ss {
		l := s.file + "=" + strings.Join(s.values, "|")
		if s.neutral {
			l += "?"
		}
		if s.alt != nil {
			l += " or " + s.alt.file + "=" + strings.Join(s.alt.values, "|")
		}
		out = append(out, l)
	}
	return out
}

func throttleAt(rate uint64) []specs.LinuxThrottleDevice {
	d := specs.LinuxThrottleDevice{Rate: rate}
	d.Major, d.Minor = 254, 0
	return []specs.LinuxThrottleDevice{d}
}

func TestPlan(t *testing.T) {
	wd := specs.LinuxWeightDevice{Weight: ptr(uint16(300))}
	wd.Major, wd.Minor = 8, 16
	for _, tc := range []struct {
		name   string
		r      *specs.LinuxResources
		v1, v2 []string // nil: refused
	}{
		{"nil", nil, []string{}, []string{}},
		{"zeroes are not set", &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: ptr(int64(0)), Swap: ptr(int64(0))},
			CPU:    &specs.LinuxCPU{Shares: ptr(uint64(0)), Quota: ptr(int64(0)), Period: ptr(uint64(0))},
			Pids:   &specs.LinuxPids{}, BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(0))},
		}, []string{}, []string{}},
		{
			"memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(150)), Reservation: ptr(int64(50))}},
			[]string{"memory.limit_in_bytes=100", "memory.memsw.limit_in_bytes=150", "memory.soft_limit_in_bytes=50"},
			[]string{"memory.swap.max=50", "memory.max=100", "memory.low=50"},
		},
		{
			"no swap", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(100))}},
			[]string{"memory.limit_in_bytes=100", "memory.memsw.limit_in_bytes=100"},
			[]string{"memory.swap.max=0?", "memory.max=100"},
		},
		{
			"unlimited", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}, Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}},
			[]string{"memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1?", "pids.max=max"},
			[]string{"memory.swap.max=max?", "memory.max=max", "pids.max=max"},
		},
		{
			"swap alone counts from the limit in force", &specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(1500))}},
			[]string{"memory.memsw.limit_in_bytes=1500"}, []string{"memory.swap.max=500"},
		},
		{
			"swap below limit", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(50))}},
			[]string{"memory.limit_in_bytes=100", "memory.memsw.limit_in_bytes=50"}, nil,
		},
		{
			"kernel memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Kernel: ptr(int64(9)), KernelTCP: ptr(int64(8))}},
			[]string{"memory.kmem.limit_in_bytes=9", "memory.kmem.tcp.limit_in_bytes=8"}, nil,
		},
		{"swappiness too high", &specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(101))}}, nil, nil},
		{"negative", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-2))}}, nil, nil},
		{
			"cpu", &specs.LinuxResources{CPU: &specs.LinuxCPU{
				Shares: ptr(uint64(2048)), Quota: ptr(int64(20000)), Period: ptr(uint64(50000)), Burst: ptr(uint64(10000)), Cpus: "0-1", Mems: "0",
			}},
			[]string{"cpu.cfs_period_us=50000", "cpu.cfs_quota_us=20000", "cpu.cfs_burst_us=10000", "cpu.shares=2048", "cpuset.cpus=0-1", "cpuset.mems=0"},
			[]string{"cpu.max=20000 50000", "cpu.max.burst=10000", "cpu.weight=174", "cpuset.cpus=0-1", "cpuset.mems=0"},
		},
		{
			"period alone keeps the quota in force", &specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr(uint64(50000))}},
			[]string{"cpu.cfs_period_us=50000"}, []string{"cpu.max=7000 50000"},
		},
		{
			"no quota", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1)), Burst: ptr(uint64(0))}},
			[]string{"cpu.cfs_quota_us=-1", "cpu.cfs_burst_us=0?"}, []string{"cpu.max=max", "cpu.max.burst=0?"},
		},
		{
			"idle has no weight", &specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1)), Shares: ptr(uint64(100))}},
			[]string{"cpu.idle=1"}, []string{"cpu.idle=1"},
		},
		{
			"no longer idle", &specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(0)), Shares: ptr(uint64(1024))}},
			[]string{"cpu.idle=0?", "cpu.shares=1024"}, []string{"cpu.idle=0?", "cpu.weight=100"},
		},
		{
			"realtime", &specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimePeriod: ptr(uint64(5)), RealtimeRuntime: ptr(int64(4))}},
			[]string{"cpu.rt_period_us=5", "cpu.rt_runtime_us=4"}, nil,
		},
		{"idle 2", &specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(2))}}, nil, nil},
		{
			"pids 0 lets the first process in", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(0))}},
			[]string{"pids.max=1"}, []string{"pids.max=1"},
		},
		{
			"io", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
				Weight: ptr(uint16(500)), WeightDevice: []specs.LinuxWeightDevice{wd},
				ThrottleReadBpsDevice: throttleAt(1000), ThrottleWriteBpsDevice: throttleAt(2000),
				ThrottleReadIOPSDevice: throttleAt(30), ThrottleWriteIOPSDevice: throttleAt(0),
			}},
			[]string{
				"blkio.weight=500 or blkio.bfq.weight=500",
				"blkio.weight_device=8:16 300 or blkio.bfq.weight_device=8:16 300",
				"blkio.throttle.read_bps_device=254:0 1000", "blkio.throttle.write_bps_device=254:0 2000",
				"blkio.throttle.read_iops_device=254:0 30", "blkio.throttle.write_iops_device=254:0 0",
			},
			[]string{
				"io.bfq.weight=500 or io.weight=4950",
				"io.bfq.weight=8:16 300 or io.weight=8:16 2930",
				"io.max=254:0 rbps=1000", "io.max=254:0 wbps=2000", "io.max=254:0 riops=30", "io.max=254:0 wiops=max",
			},
		},
		{"io weight too high", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1001))}}, nil, nil},
		{
			"huge pages", &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4194304}}},
			[]string{"hugetlb.2MB.limit_in_bytes=4194304", "hugetlb.2MB.rsvd.limit_in_bytes=4194304?"},
			[]string{"hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304?"},
		},
		{"page size", &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB/../x"}}}, nil, nil},
		{
			"rdma", &specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{
				"mlx5_1": {HcaHandles: ptr(uint32(3)), HcaObjects: ptr(uint32(10000))}, "mlx4_0": {HcaObjects: ptr(uint32(0))}, "none": {},
			}},
			[]string{"rdma.max=mlx4_0 hca_object=0|mlx5_1 hca_handle=3 hca_object=10000"},
			[]string{"rdma.max=mlx4_0 hca_object=0|mlx5_1 hca_handle=3 hca_object=10000"},
		},
		{
			"network", &specs.LinuxResources{Network: &specs.LinuxNetwork{
				ClassID: ptr(uint32(1048577)), Priorities: []specs.LinuxInterfacePriority{{Name: "eth0", Priority: 5}},
			}},
			[]string{"net_cls.classid=1048577", "net_prio.ifpriomap=eth0 5"}, nil,
		},
		{
			"unified", &specs.LinuxResources{
				Memory:  &specs.LinuxMemory{Limit: ptr(int64(100))},
				Unified: map[string]string{"memory.high": "90", "cgroup.max.depth": "2", "io.max": "8:0 rbps=1\n8:16 rbps=2\n"},
			},
			nil, []string{"memory.max=100", "cgroup.max.depth=2", "io.max=8:0 rbps=1|8:16 rbps=2", "memory.high=90"},
		},
		{"unified path", &specs.LinuxResources{Unified: map[string]string{"../memory.high": "1"}}, nil, nil},
		{"unified procs", &specs.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}}, nil, nil},
		{"unified empty", &specs.LinuxResources{Unified: map[string]string{"memory.high": ""}}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cur := func(_, file string) (string, error) {
				return map[string]string{"memory.max": "1000", "cpu.max": "7000 100000"}[file], nil
			}
			for mode, want := range map[Mode][]string{V1: tc.v1, V2: tc.v2} {
				p, err := (&Host{mode: mode}).plan(tc.r, cur)
				if (err != nil) != (want == nil) {
					t.Errorf("plan on %s: error %v; want error %t", mode, err, want == nil)
					continue
				}
				if want == nil {
					t.Logf("%s: %v", mode, err)
					continue
				}
				if diff := cmp.Diff(strings.Join(want, "\n"), strings.Join(lines(p.settings), "\n")); diff != "" {
					t.Errorf("plan on %s:\n%s", mode, diff)
				}
			}
		})
	}
}

// The formula is made to map minimum, default and maximum onto each other; the rest is computed from it by hand.
func TestCPUWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{
		0: 0, 1: 1, 2: 1, 1024: 100, 262144: 10000, 1 << 20: 10000, 10: 4, 512: 59, 2048: 174, 102: 17,
	} {
		if got := CPUWeight(shares); got != want {
			t.Errorf("CPUWeight(%d) = %d; want %d", shares, got, want)
		}
	}
	for s := uint64(2); s < 262144; s++ {
		if a, b := CPUWeight(s), CPUWeight(s+1); b < a || b > 10000 {
			t.Fatalf("CPUWeight(%d) = %d, of the next %d: not monotone", s, a, b)
		}
	}
	for blkio, want := range map[uint16]uint64{0: 0, 10: 1, 500: 4950, 1000: 10000} {
		if got := IOWeight(blkio); got != want {
			t.Errorf("IOWeight(%d) = %d; want %d", blkio, got, want)
		}
	}
}

func TestValidatePath(t *testing.T) {
	for _, ok := range []string{"/a", "/kubepods/burstable/pod1/c", "/a/", "/kubepods.slice/x:y", "/..a"} {
		if err := ValidatePath(ok); err != nil {
			t.Errorf("ValidatePath(%q) = %v", ok, err)
		}
	}
	for _, bad := range []string{
		"", "/", "//", "a/b", "/a/../b", "/..", "/a//b", "/./a", "/a\x00b", "/a\nb", "/" + strings.Repeat("x", 256),
		strings.Repeat("/xx", 2000), "//a",
	} {
		if err := ValidatePath(bad); err == nil {
			t.Errorf("ValidatePath(%.20q) = nil; want error", bad)
		}
	}
}

func TestSelectMounts(t *testing.T) {
	m := func(fs, at, opts string) *mountinfo.Info {
		return &mountinfo.Info{FSType: fs, Mountpoint: at, VFSOptions: opts}
	}
	for _, tc := range []struct {
		name        string
		in          []*mountinfo.Info
		wantV1      []v1Mount
		wantUnified string
	}{
		{"v2", []*mountinfo.Info{m("cgroup2", "/sys/fs/cgroup", "rw,nsdelegate")}, nil, "/sys/fs/cgroup"},
		{
			"hybrid with copies elsewhere", []*mountinfo.Info{
				m("cgroup", "/var/x/cpu", "rw,cpu,cpuacct"),
				m("cgroup", "/sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct"),
				m("cgroup2", "/sys/fs/cgroup/unified", "rw"),
				m("cgroup", "/sys/fs/cgroup/systemd", "rw,xattr,name=systemd"),
			},
			[]v1Mount{
				{"/sys/fs/cgroup/cpu,cpuacct", []string{"cpu", "cpuacct"}}, {"/sys/fs/cgroup/systemd", []string{"name=systemd"}},
			},
			"/sys/fs/cgroup/unified",
		},
		{
			"only a named hierarchy beside v2",
			[]*mountinfo.Info{m("cgroup", "/sys/fs/cgroup/systemd", "rw,name=systemd"), m("cgroup2", "/sys/fs/cgroup", "rw")},
			nil, "/sys/fs/cgroup",
		},
		{"nothing", nil, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v1, unified := selectMounts(tc.in)
			if diff := cmp.Diff(tc.wantV1, v1, cmp.AllowUnexported(v1Mount{})); diff != "" || unified != tc.wantUnified {
				t.Errorf("unified %q; want %q\n%s", unified, tc.wantUnified, diff)
			}
		})
	}
	if _, err := hostOf(nil); err == nil {
		t.Error("hostOf(no mounts) = nil; want error")
	}
}

func TestHugePageSizes(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"hugepages-2048kB", "hugepages-1048576kB", "hugepages-64kB", "junk", "hugepages-0kB"} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"1GB", "2MB", "64KB"}, hugePageSizes(dir)); diff != "" {
		t.Error(diff)
	}
}

func TestUnsupportedErrorMatches(t *testing.T) {
	_, err := (&Host{mode: V1}).plan(&specs.LinuxResources{Unified: map[string]string{"memory.high": "1"}}, freshGroup)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "memory.high") {
		t.Errorf("unified on v1 = %v; want unsupported that names the key", err)
	}
}
