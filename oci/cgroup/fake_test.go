package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/usage"
)

// TestV1Times: what BFQ counts where the kernel was built to.
func TestV1Times(t *testing.T) {
	var got []IOStats
	for name, text := range map[string]string{
		"io_service_time": "8:0 Read 5\n8:0 Write 6\n8:0 Sync 1\n8:0 Total 11\nTotal 11\n", "io_merged": "8:0 Read 7\n8:0 Write 8\n8:0 Total 15\n",
		"io_queued": "8:0 Read 1\n8:0 Total 2\n",
	} {
		parseTimes(&got, name, []byte(text))
	}
	want := []IOStats{{Major: 8, Times: &usage.IOTimes{ReadNanos: 5, WriteNanos: 6, TotalNanos: 11, ReadsMerged: 7, WritesMerged: 8, Queued: 2}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// fakeV2 is a directory tree that looks like cgroupfs; each file keeps what was written to it, appended.
func fakeV2(t *testing.T, groups map[string]map[string]string) (h *Host, root string) {
	t.Helper()
	root = t.TempDir()
	for group, files := range groups {
		dir := filepath.Join(root, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, v := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(v), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	h, err := hostOf([]*mountinfo.Info{{FSType: "cgroup2", Mountpoint: root}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h, root
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestV2ControllersAreEnabledDownThePath(t *testing.T) {
	subtree := map[string]string{"cgroup.controllers": "", "cgroup.subtree_control": ""}
	h, root := fakeV2(t, map[string]map[string]string{
		"":    {"cgroup.controllers": "cpuset cpu io memory pids perf_event", "cgroup.subtree_control": ""},
		"a":   subtree,
		"a/b": subtree,
		"a/b/c": {
			"cgroup.controllers": "memory", "cgroup.subtree_control": "", "memory.max": "", "memory.swap.max": "", "memory.low": "",
		},
	})
	_, err := h.Create(t.Context(), "/a/b/c", &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(4096)), Swap: ptr(int64(8192)), Reservation: ptr(int64(1024))},
	})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"cgroup.subtree_control":       "+cpuset +cpu +io +pids", // what the group lacks, perf_event apart: it needs no enabling
		"a/cgroup.subtree_control":     "+cpuset +cpu +io +pids",
		"a/b/cgroup.subtree_control":   "+cpuset +cpu +io +pids",
		"a/b/c/cgroup.subtree_control": "",
		"a/b/c/memory.max":             "4096",
		"a/b/c/memory.swap.max":        "4096",
		"a/b/c/memory.low":             "1024",
	} {
		if got := read(t, filepath.Join(root, file)); got != want {
			t.Errorf("%s = %q; want %q", file, got, want)
		}
	}
}

func TestV2GroupWithProcessesKeepsItsControllers(t *testing.T) {
	for kind, want := range map[string]string{"domain": "", "domain threaded": "+cpu +memory"} {
		h, root := fakeV2(t, map[string]map[string]string{
			"":    {"cgroup.controllers": "cpu memory", "cgroup.subtree_control": ""},
			"a":   {"cgroup.controllers": "", "cgroup.subtree_control": "", "cgroup.type": kind + "\n", "cgroup.procs": "7\n"},
			"a/b": {"cgroup.controllers": "", "memory.max": ""},
		})
		_, err := h.Create(t.Context(), "/a/b", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(4096))}})
		if errors.Is(err, syscall.EBUSY) != (want == "") {
			t.Errorf("%s: Create with a limit = %v", kind, err)
		}
		for file, want := range map[string]string{"cgroup.subtree_control": "+cpu +memory", "a/cgroup.subtree_control": want} {
			if got := read(t, filepath.Join(root, file)); got != want {
				t.Errorf("%s: %s = %q; want %q", kind, file, got, want)
			}
		}
	}
}

func TestV2MissingControllerAndFile(t *testing.T) {
	h, root := fakeV2(t, map[string]map[string]string{
		"": {"cgroup.controllers": "memory io", "cgroup.subtree_control": ""},
		"g": {
			"cgroup.controllers": "memory io", "memory.max": "", "io.weight": "", "cgroup.max.depth": "",
		},
	})
	g, err := h.Open("/g")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		r    *specs.LinuxResources
		want string
	}{
		"controller": {&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(3))}}, "pids.limit: unsupported: needs cgroup controller pids"},
		"file": {
			&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(3)), Swap: ptr(int64(5))}},
			"memory.swap: unsupported: needs a kernel that has " + root + "/g/memory.swap.max",
		},
		"unified controller": {&specs.LinuxResources{Unified: map[string]string{"misc.max": "1"}}, "controller misc"},
		"unified file":       {&specs.LinuxResources{Unified: map[string]string{"memory.zswap.max": "1"}}, "g/memory.zswap.max"},
	} {
		err := g.Update(t.Context(), tc.r)
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Update = %v; want unsupported with %q", name, err, tc.want)
		}
	}
	// No swap file and no swap wanted; weight by the file that is there.
	err = g.Update(t.Context(), &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(4096)), Swap: ptr(int64(4096))},
		BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1000))},
		Unified: map[string]string{"cgroup.max.depth": "3"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"memory.max": "4096", "io.weight": "10000", "cgroup.max.depth": "3"} {
		if got := read(t, filepath.Join(root, "g", file)); got != want {
			t.Errorf("%s = %q; want %q", file, got, want)
		}
	}
}

func TestV2CheckBeforeUpdate(t *testing.T) {
	h, root := fakeV2(t, map[string]map[string]string{
		"":  {"cgroup.controllers": "memory", "cgroup.subtree_control": ""},
		"g": {"cgroup.controllers": "memory", "memory.max": "", "memory.current": "5000\n"},
	})
	g, err := h.Open("/g")
	if err != nil {
		t.Fatal(err)
	}
	m := &specs.LinuxMemory{Limit: ptr(int64(4096)), CheckBeforeUpdate: ptr(true)}
	if err := g.Update(t.Context(), &specs.LinuxResources{Memory: m}); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("Update below usage = %v; want EBUSY", err)
	}
	if got := read(t, root+"/g/memory.max"); got != "" {
		t.Errorf("memory.max = %q; want untouched", got)
	}
	m.Limit = ptr(int64(8192))
	if err := g.Update(t.Context(), &specs.LinuxResources{Memory: m}); err != nil {
		t.Error(err)
	}
}

func TestV2Stats(t *testing.T) {
	h, _ := fakeV2(t, map[string]map[string]string{
		"": {"cgroup.controllers": "cpu memory io pids hugetlb"},
		"g": {
			"cpu.stat":            "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\nthrottled_usec 7\nnr_bursts 5\nburst_usec 8\n",
			"cpu.pressure":        "some avg10=1.50 avg60=2.00 avg300=0.10 total=123\nfull avg10=0.00 avg60=0.25 avg300=0.00 total=9\n",
			"memory.current":      "1000\n",
			"memory.max":          "max\n",
			"memory.peak":         "1500\n",
			"memory.swap.current": "5\n",
			"memory.swap.max":     "50\n",
			"memory.events":       "low 0\nhigh 0\nmax 1\noom 1\noom_kill 3\n",
			"memory.stat":         "anon 300\nfile 600\nkernel 90\nfile_mapped 30\ninactive_file 400\nactive_file 100\npgfault 77\npgmajfault 6\n",
			"pids.current":        "3\n",
			"pids.max":            "100\n",
			"io.stat":             "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 rbytes=9 cost.usage=11 cost.wait=12 cost.indebt=13 cost.indelay=14\n",
			"io.pressure":         "some avg10=0.00 avg60=0.00 avg300=0.00 total=17\n",
			"hugetlb.2MB.current": "2097152\n",
			"hugetlb.2MB.max":     "max\n",
			"hugetlb.2MB.events":  "max 8\n",
		},
		"empty": {},
	})
	h.pageSizes = []string{"1GB", "2MB"}
	g, err := h.Open("/g")
	if err != nil {
		t.Fatal(err)
	}
	got, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	want := &Stats{
		CPU: CPUStats{
			UsageNanos: 30000, UserNanos: 20000, SystemNanos: 10000, Periods: 4, ThrottledPeriods: 2, ThrottledNanos: 7000, BurstPeriods: 5, BurstNanos: 8000,
			Pressure: &Pressure{Some: PressureLine{Avg10: 1.5, Avg60: 2, Avg300: 0.1, TotalMicros: 123}, Full: PressureLine{Avg60: 0.25, TotalMicros: 9}},
		},
		Memory: MemoryStats{
			Usage: 1000, WorkingSet: 600, RSS: 300, Cache: 600, Limit: Unlimited, SwapUsage: 5, SwapLimit: 50,
			PageFaults: 77, MajorFaults: 6, OOMKills: 3, Kernel: 90, MappedFile: 30, ActiveFile: 100, InactiveFile: 400, MaxUsage: 1500, Failures: 1,
		},
		Pids: PidsStats{Current: 3, Limit: 100},
		IO: []IOStats{
			{Major: 254, ReadBytes: 1, WriteBytes: 2, ReadOps: 3, WriteOps: 4, DiscardBytes: 5, DiscardOps: 6},
			{Major: 8, Minor: 16, ReadBytes: 9, Cost: &usage.IOCost{UsageMicros: 11, WaitMicros: 12, IndebtMicros: 13, IndelayMicros: 14}},
		},
		IOPressure: &Pressure{Some: PressureLine{TotalMicros: 17}},
		Hugetlb:    []HugetlbStats{{PageSize: "2MB", Usage: 2 << 20, MaxUsage: Unlimited, Limit: Unlimited, Failures: 8}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// What Kubernetes polls is the same, less what that does not show.
	want.IO, want.Hugetlb, want.Pids = nil, nil, PidsStats{}
	want.Memory.MaxUsage, want.Memory.OOMKills, want.Memory.Failures = 0, 0, 0
	if got, err = g.MainStats(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if g, err = h.Open("/empty"); err != nil {
		t.Fatal(err)
	}
	if s, err := g.Stats(); err != nil || s.Memory.Limit != Unlimited {
		t.Errorf("Stats of a group without controllers = %+v, %v", s, err)
	}
}

// Removal never goes through a symbolic link, and says what is in the way.
func TestRemoveDoesNotFollowLinks(t *testing.T) {
	outside := t.TempDir()
	if err := os.Mkdir(outside+"/precious", 0o755); err != nil {
		t.Fatal(err)
	}
	h, root := fakeV2(t, map[string]map[string]string{"": {"cgroup.controllers": ""}, "g/a/b": {}})
	if err := os.Symlink(outside, root+"/g/a/link"); err != nil {
		t.Fatal(err)
	}
	g, err := h.Open("/g")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.Remove(ctx); err == nil || !strings.Contains(err.Error(), root+"/g") {
		t.Errorf("Remove = %v; want an error that names the group", err)
	}
	if _, err := os.Stat(outside + "/precious"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(root + "/g/a/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nested group: %v; want removed", err)
	}
}
