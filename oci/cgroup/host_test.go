package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
)

func mustCreate(t *testing.T, h *Host, path string, r *specs.LinuxResources) *Group {
	t.Helper()
	g, err := h.Create(t.Context(), path, r)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestCreateMakesParentsAndRemoveKeepsThem(t *testing.T) {
	eachHost(t, nil, func(t *testing.T, h *Host) {
		top := testPath(t, h)
		g := mustCreate(t, h, top+"/pod/ctr", nil)
		for _, hi := range h.hierarchies {
			if _, err := os.Stat(hi.mount + top + "/pod/ctr/cgroup.procs"); err != nil {
				t.Error(err)
			}
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Errorf("second Remove = %v; want nil", err)
		}
		if _, err := h.Open(top + "/pod/ctr"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(removed) = %v; want not exist", err)
		}
		if _, err := h.Open(top + "/pod"); err != nil {
			t.Errorf("Open(parent) = %v", err)
		}
		if _, err := g.Stats(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stats(removed) = %v; want not exist", err)
		}
		if err := g.Kill(t.Context()); err != nil {
			t.Errorf("Kill(removed) = %v; want nil", err)
		}
	})
}

// Every step that can fail must leave nothing: no group, and no parent that this call made.
func TestFailedCreateLeavesNothing(t *testing.T) {
	for name, r := range map[string]*specs.LinuxResources{
		"bad input":    {CPU: &specs.LinuxCPU{Cpus: "0 1"}},
		"kernel says":  {CPU: &specs.LinuxCPU{Cpus: "9999"}},
		"last limit":   {Pids: &specs.LinuxPids{Limit: ptr(int64(5))}, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 1}}},
		"no interface": {Network: &specs.LinuxNetwork{Priorities: []specs.LinuxInterfacePriority{{Name: "nope", Priority: 1}}}},
	} {
		t.Run(name, func(t *testing.T) {
			eachHost(t, nil, func(t *testing.T, h *Host) {
				top := testPath(t, h)
				if _, err := h.Create(t.Context(), top+"/a/b", r); err == nil {
					t.Fatal("Create: want error")
				} else {
					t.Log(err)
				}
				if _, err := h.Open(top); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("Open(%s) after failed Create = %v; want not exist", top, err)
				}
				keep := mustCreate(t, h, top, nil)
				if _, err := h.Create(t.Context(), top+"/a/b", r); err == nil {
					t.Fatal("Create: want error")
				}
				if _, err := h.Open(top + "/a"); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("Open(a) after failed Create = %v; want not exist", err)
				}
				if _, err := h.Open(keep.Path()); err != nil {
					t.Errorf("a parent that was there is gone: %v", err)
				}
			})
		})
	}
}

func TestLimitsReadBackV1(t *testing.T) {
	eachHost(t, []string{"memory", "cpu", "cpuset", "pids"}, func(t *testing.T, h *Host) {
		if h.mode != V1 {
			t.Skip("cgroup v1 only")
		}
		r := &specs.LinuxResources{
			Memory: &specs.LinuxMemory{
				Limit: ptr(int64(64 << 20)), Reservation: ptr(int64(32 << 20)), Swappiness: ptr(uint64(7)),
				DisableOOMKiller: ptr(true), UseHierarchy: ptr(true),
			},
			CPU: &specs.LinuxCPU{
				Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(200000)), Cpus: "0", Mems: "0",
			},
			Pids: &specs.LinuxPids{Limit: ptr(int64(42))},
		}
		if h.SwapAccounting() {
			r.Memory.Swap = ptr(int64(96 << 20))
		}
		g := mustCreate(t, h, testPath(t, h)+"/c", r)
		type f struct{ controller, file string }
		want := map[f]string{
			{"memory", "memory.limit_in_bytes"}:      "67108864",
			{"memory", "memory.soft_limit_in_bytes"}: "33554432",
			{"memory", "memory.swappiness"}:          "7",
			{"cpu", "cpu.shares"}:                    "512",
			{"cpu", "cpu.cfs_quota_us"}:              "50000",
			{"cpu", "cpu.cfs_period_us"}:             "200000",
			{"cpuset", "cpuset.cpus"}:                "0",
			{"cpuset", "cpuset.mems"}:                "0",
			{"pids", "pids.max"}:                     "42",
		}
		if h.SwapAccounting() {
			want[f{"memory", "memory.memsw.limit_in_bytes"}] = "100663296"
		}
		for f, v := range want {
			if got := content(t, g, f.controller, f.file); got != v {
				t.Errorf("%s = %q; want %q", f.file, got, v)
			}
		}
		if got := content(t, g, "memory", "memory.oom_control"); !strings.HasPrefix(got, "oom_kill_disable 1\n") {
			t.Errorf("memory.oom_control = %q; want oom_kill_disable 1", got)
		}
	})
}

func TestLimitsReadBackV2(t *testing.T) {
	eachHost(t, []string{"memory", "cpu", "cpuset", "pids"}, func(t *testing.T, h *Host) {
		if h.mode != V2 {
			t.Skip("cgroup v2 only")
		}
		r := &specs.LinuxResources{
			Memory: &specs.LinuxMemory{
				Limit: ptr(int64(64 << 20)), Reservation: ptr(int64(32 << 20)), Swap: ptr(int64(64 << 20)),
			},
			CPU: &specs.LinuxCPU{
				Shares: ptr(uint64(1024)), Quota: ptr(int64(50000)), Period: ptr(uint64(200000)), Cpus: "0", Mems: "0",
			},
			Pids:    &specs.LinuxPids{Limit: ptr(int64(42))},
			Unified: map[string]string{"memory.oom.group": "1", "memory.high": "50331648"},
		}
		g := mustCreate(t, h, testPath(t, h)+"/c", r)
		for file, v := range map[string]string{
			"memory.max": "67108864", "memory.low": "33554432", "memory.high": "50331648", "memory.oom.group": "1",
			"cpu.weight": "100", "cpu.max": "50000 200000", "cpuset.cpus": "0", "cpuset.mems": "0", "pids.max": "42",
		} {
			if got := content(t, g, "", file); got != v {
				t.Errorf("%s = %q; want %q", file, got, v)
			}
		}
		// Only the period: the quota stays. Only swap: it is counted from the limit in force.
		err := g.Update(t.Context(), &specs.LinuxResources{
			CPU: &specs.LinuxCPU{Period: ptr(uint64(100000))}, Memory: &specs.LinuxMemory{Swap: ptr(int64(80 << 20))},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, g, "", "cpu.max"); got != "50000 100000" {
			t.Errorf("cpu.max = %q; want 50000 100000", got)
		}
		if got := content(t, g, "", "memory.swap.max"); got != "16777216" && h.SwapAccounting() {
			t.Errorf("memory.swap.max = %q; want 16777216", got)
		}
	})
}

// Raising and lowering pairs of limits fails in one order or the other; Update must find the one that works.
func TestUpdateOrder(t *testing.T) {
	mem := func(limit, swap int64) *specs.LinuxMemory { return &specs.LinuxMemory{Limit: &limit, Swap: &swap} }
	cpu := func(quota int64, burst uint64) *specs.LinuxCPU {
		return &specs.LinuxCPU{Quota: &quota, Burst: &burst, Period: ptr(uint64(100000))}
	}
	eachHost(t, []string{"memory", "cpu"}, func(t *testing.T, h *Host) {
		if !h.SwapAccounting() {
			t.Skip("no swap accounting")
		}
		g := mustCreate(t, h, testPath(t, h)+"/c", &specs.LinuxResources{Memory: mem(64<<20, 64<<20), CPU: cpu(50000, 20000)})
		for _, step := range []*specs.LinuxResources{
			{Memory: mem(256<<20, 256<<20), CPU: cpu(90000, 80000)},
			{Memory: mem(32<<20, 48<<20), CPU: cpu(10000, 5000)},
			{Memory: mem(-1, -1), CPU: cpu(-1, 0)},
			{Memory: mem(64<<20, 64<<20), CPU: cpu(50000, 50000)},
		} {
			if err := g.Update(t.Context(), step); err != nil {
				t.Fatalf("Update(memory %d+%d, cpu %d burst %d) = %v", *step.Memory.Limit, *step.Memory.Swap,
					*step.CPU.Quota, *step.CPU.Burst, err)
			}
			s, err := g.Stats()
			if err != nil {
				t.Fatal(err)
			}
			want := uint64(*step.Memory.Limit)
			if *step.Memory.Limit == -1 {
				want = Unlimited
			}
			if s.Memory.Limit != want {
				t.Errorf("memory limit = %d; want %d", s.Memory.Limit, want)
			}
		}
		if err := g.Update(t.Context(), &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}); err != nil {
			t.Errorf("lifting the limit alone = %v", err)
		}
	})
}

func TestErrorsNameLimitFileValue(t *testing.T) {
	eachHost(t, []string{"cpuset"}, func(t *testing.T, h *Host) {
		g := mustCreate(t, h, testPath(t, h), nil)
		err := g.Update(t.Context(), &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4000"}})
		var le *LimitError
		if !errors.As(err, &le) {
			t.Fatalf("Update(cpus 4000) = %v; want LimitError", err)
		}
		if le.Limit != "cpu.cpus" || le.Value != "4000" || !strings.HasSuffix(le.File, g.Path()+"/cpuset.cpus") {
			t.Errorf("LimitError = %+v", le)
		}
	})
	eachHost(t, nil, func(t *testing.T, h *Host) {
		if h.byName["hugetlb"] != nil {
			t.Skip("hugetlb is there")
		}
		_, err := h.Create(t.Context(), testPath(t, h), &specs.LinuxResources{
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1 << 21}},
		})
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "controller hugetlb") {
			t.Errorf("Create(hugepages) = %v; want unsupported that names the controller", err)
		}
	})
}

func TestCpusetIsCopiedDown(t *testing.T) {
	eachHost(t, []string{"cpuset"}, func(t *testing.T, h *Host) {
		if h.mode != V1 {
			t.Skip("cgroup v1 only: v2 inherits")
		}
		top := testPath(t, h)
		// A parent that another program made, empty.
		if err := os.Mkdir(h.byName["cpuset"].mount+top, 0o755); err != nil {
			t.Fatal(err)
		}
		g := mustCreate(t, h, top+"/a/b", nil)
		root, err := os.ReadFile(h.byName["cpuset"].mount + "/cpuset.cpus")
		if err != nil {
			t.Fatal(err)
		}
		if got, want := content(t, g, "cpuset", "cpuset.cpus"), strings.TrimSpace(string(root)); got != want || got == "" {
			t.Errorf("cpuset.cpus = %q; want the root's %q", got, want)
		}
		narrow := mustCreate(t, h, top+"/n", &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}})
		below := mustCreate(t, h, narrow.Path()+"/x", nil)
		if got := content(t, below, "cpuset", "cpuset.cpus"); got != "0" {
			t.Errorf("cpuset.cpus below a narrow group = %q; want 0", got)
		}
	})
}

func TestOOMKillIsCounted(t *testing.T) {
	eachHost(t, []string{"memory"}, func(t *testing.T, h *Host) {
		limit := int64(48 << 20)
		m := &specs.LinuxMemory{Limit: &limit}
		if h.SwapAccounting() {
			m.Swap = &limit
		}
		g := mustCreate(t, h, testPath(t, h), &specs.LinuxResources{Memory: m})
		if n, err := cgroupfile.ReadOOMKills(g.OOMFile()); n != 0 || err != nil {
			t.Fatalf("ReadOOMKills = %d, %v; want 0", n, err)
		}
		hog := start(t, g, "hog")
		if got := hog.ask("4096"); got != "survived 0" && got != "survived 1" {
			t.Fatalf("small allocation: %q", got)
		}
		s, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if s.Memory.Limit != uint64(limit) || s.Memory.Usage == 0 || s.Memory.WorkingSet == 0 || s.Pids.Current == 0 && h.byName["pids"] != nil {
			t.Errorf("Stats = %+v; want limit %d, usage and tasks", *s, limit)
		}
		if got := hog.ask(strconv.Itoa(128 << 20)); got != "" {
			t.Errorf("hog answered %q; want death", got)
		}
		if n, err := cgroupfile.ReadOOMKills(g.OOMFile()); n < 1 || err != nil {
			t.Errorf("ReadOOMKills = %d, %v; want at least 1", n, err)
		}
		if s, err := g.Stats(); err != nil || s.Memory.OOMKills < 1 {
			t.Errorf("Stats.OOMKills = %v, %v; want at least 1", s, err)
		}
	})
}

func TestPidsLimit(t *testing.T) {
	eachHost(t, []string{"pids"}, func(t *testing.T, h *Host) {
		g := mustCreate(t, h, testPath(t, h), &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(1))}})
		script := `while read x; do (exit 0) || exit 3; echo forked; done`
		if got := startCmd(t, g, exec.Command("sh", "-c", script)).ask("go"); got != "" {
			t.Errorf("fork over the limit: %q; want none", got)
		}
		if got := content(t, g, "pids", "pids.events"); got == "max 0" {
			t.Errorf("pids.events = %q; want a refusal (EAGAIN) counted", got)
		}
		if err := g.Update(t.Context(), &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}}); err != nil {
			t.Fatal(err)
		}
		if got := startCmd(t, g, exec.Command("sh", "-c", script)).ask("go"); got != "forked" {
			t.Errorf("fork without limit: %q; want forked", got)
		}
	})
}

func TestDevices(t *testing.T) {
	kmsg := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(11)), Access: "r"}
	if _, err := os.Stat("/dev/kmsg"); err != nil {
		t.Skip("no /dev/kmsg")
	}
	eachHost(t, []string{"devices"}, func(t *testing.T, h *Host) {
		g := mustCreate(t, h, testPath(t, h)+"/c", &specs.LinuxResources{Devices: DefaultDevices()})
		node := filepath.Join(t.TempDir(), "node")
		open, mknod := start(t, g, "open"), start(t, g, "mknod")
		expect := func(when string, want map[string]string) {
			t.Helper()
			for _, q := range []string{"r /dev/kmsg", "w /dev/kmsg", "rw /dev/null", "r /dev/zero", "mknod"} {
				got := ""
				if q == "mknod" {
					got = mknod.ask("11 " + node)
				} else {
					got = open.ask(q)
				}
				w := want[q]
				if w == "" {
					w = "EPERM"
				}
				if got != w {
					t.Errorf("%s: %s = %s; want %s", when, q, got, w)
				}
			}
		}
		update := func(rules ...specs.LinuxDeviceCgroup) {
			t.Helper()
			for range 3 { // the same again must neither fail nor pile up
				if err := g.Update(t.Context(), &specs.LinuxResources{Devices: rules}); err != nil {
					t.Fatal(err)
				}
			}
			if h.mode == V2 {
				if n := programCount(t, g); n != 1 {
					t.Errorf("%d device programs attached; want 1", n)
				}
			}
		}
		expect("defaults", map[string]string{"rw /dev/null": "ok", "r /dev/zero": "ok", "mknod": "ok"})
		update(append(DefaultDevices(), kmsg)...)
		expect("with kmsg", map[string]string{"r /dev/kmsg": "ok", "rw /dev/null": "ok", "r /dev/zero": "ok", "mknod": "ok"})
		update(DefaultDevices()...)
		expect("without", map[string]string{"rw /dev/null": "ok", "r /dev/zero": "ok", "mknod": "ok"})
		update(kmsg)
		expect("only kmsg", map[string]string{"r /dev/kmsg": "ok"})
		update(AllDevices()...)
		expect("all", map[string]string{"r /dev/kmsg": "ok", "w /dev/kmsg": "ok", "rw /dev/null": "ok", "r /dev/zero": "ok", "mknod": "ok"})
		deny := kmsg
		deny.Allow, deny.Access = false, "rw"
		update(append(AllDevices(), deny)...)
		expect("all but kmsg", map[string]string{"rw /dev/null": "ok", "r /dev/zero": "ok", "mknod": "ok"})
		update([]specs.LinuxDeviceCgroup{}...)
		if err := g.Update(t.Context(), &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{}}); err != nil {
			t.Fatal(err)
		}
		expect("none", nil)
		if err := g.Update(t.Context(), &specs.LinuxResources{}); err != nil {
			t.Fatal(err)
		}
		expect("not mentioned", nil)
	})
}

// A program that was replaced must not stay beside the new one, however often that happens.
func TestDeviceProgramsDoNotPileUp(t *testing.T) {
	eachHost(t, []string{"devices"}, func(t *testing.T, h *Host) {
		if h.mode != V2 {
			t.Skip("cgroup v2 only: v1 has lists")
		}
		g := mustCreate(t, h, testPath(t, h)+"/c", &specs.LinuxResources{Devices: DefaultDevices()})
		for i := range 100 {
			extra := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(200)), Minor: ptr(int64(i)), Access: "rw"}
			if err := g.Update(t.Context(), &specs.LinuxResources{Devices: append(DefaultDevices(), extra)}); err != nil {
				t.Fatal(err)
			}
		}
		if n := programCount(t, g); n != 1 {
			t.Errorf("%d device programs after 100 updates; want 1", n)
		}
	})
}

func programCount(t *testing.T, g *Group) int {
	t.Helper()
	dir, err := g.host.primary.root.ReadableDir(g.rel)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	ps, err := attachedPrograms(dir)
	if err != nil {
		t.Fatal(err)
	}
	closeAll(ps)
	return len(ps)
}

func TestDirIsForClone(t *testing.T) {
	eachHost(t, nil, func(t *testing.T, h *Host) {
		g := mustCreate(t, h, testPath(t, h)+"/c", nil)
		dir, err := g.Dir()
		if h.mode == V1 {
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("Dir = %v; want unsupported", err)
			}
			if n := len(g.TaskFiles()); n != len(h.hierarchies) {
				t.Errorf("%d task files; want %d", n, len(h.hierarchies))
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if g.TaskFiles() != nil {
			t.Errorf("TaskFiles = %q; want none", g.TaskFiles())
		}
		cmd := exec.Command("sleep", "100")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		k := startCmd(t, g, cmd)
		if pids, err := g.Pids(); err != nil || !slices.Equal(pids, []int{k.cmd.Process.Pid}) {
			t.Errorf("Pids = %v, %v; want %d", pids, err, k.cmd.Process.Pid)
		}
	})
}

// A process enters by writing 0 to each tasks file itself.
func TestTaskFilesTakeZero(t *testing.T) {
	eachHost(t, nil, func(t *testing.T, h *Host) {
		if h.mode != V1 {
			t.Skip("cgroup v1 only")
		}
		g := mustCreate(t, h, testPath(t, h), nil)
		script := `for f; do echo 0 > "$f" || exit 1; done; echo in; read x`
		k := startCmd(t, g, exec.Command("sh", append([]string{"-c", script, "sh"}, g.TaskFiles()...)...))
		if s, _ := k.out.ReadString('\n'); s != "in\n" {
			t.Fatalf("sh: %q, %s", s, k.err.String())
		}
		for _, hi := range h.hierarchies {
			if pids, err := hi.pids(g.rel); err != nil || !slices.Equal(pids, []int{k.cmd.Process.Pid}) {
				t.Errorf("processes in %s = %v, %v; want %d", hi.mount, pids, err, k.cmd.Process.Pid)
			}
		}
	})
}

func TestFreezeThaw(t *testing.T) {
	eachHost(t, []string{"freezer"}, func(t *testing.T, h *Host) {
		g := mustCreate(t, h, testPath(t, h), nil)
		k := start(t, g, "open")
		if got := k.ask("r /dev/null"); got != "ok" {
			t.Fatal(got)
		}
		if err := g.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		answer := make(chan string, 1)
		go func() { answer <- k.ask("r /dev/null") }()
		select {
		case got := <-answer:
			t.Errorf("frozen process answered %q", got)
		case <-time.After(100 * time.Millisecond):
		}
		if err := g.Thaw(); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-answer:
			if got != "ok" {
				t.Errorf("thawed process answered %q", got)
			}
		case <-time.After(5 * time.Second):
			t.Error("thawed process does not answer")
		}
	})
}

func TestKill(t *testing.T) {
	for _, frozen := range []bool{false, true} {
		eachHost(t, []string{"freezer"}, func(t *testing.T, h *Host) {
			g := mustCreate(t, h, testPath(t, h), nil)
			nested, deeper := mustCreate(t, h, g.Path()+"/a", nil), mustCreate(t, h, g.Path()+"/b/c", nil)
			// A process that makes others as fast as they die, one in a nested group, one that ignores SIGTERM.
			forker := startCmd(t, deeper, exec.Command("sh", "-c", `trap "" TERM; read x; while :; do sleep 1000 & sleep 0.01; done`))
			_, _ = forker.in.Write([]byte("go\n"))
			start(t, nested, "open")
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
				if pids, err := g.Pids(); err != nil || len(pids) >= 3 { // it has begun to fork
					break
				}
			}
			if frozen {
				if err := errors.Join(nested.Freeze(t.Context()), g.Freeze(t.Context())); err != nil {
					t.Fatal(err)
				}
			}
			before, err := g.Pids()
			if err != nil || len(before) < 3 {
				t.Fatalf("Pids = %v, %v; want at least 3", before, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			begin := time.Now()
			if err := g.Kill(ctx); err != nil {
				t.Fatal(err)
			}
			t.Logf("frozen %t: %d processes killed in %v", frozen, len(before), time.Since(begin))
			if left, err := g.allPids(); err != nil || len(left) > 0 {
				t.Errorf("after Kill: %v, %v", left, err)
			}
		})
	}
}

// Without cgroup.kill, v2 must do by freezing and signals.
func TestKillListed(t *testing.T) {
	eachHost(t, nil, func(t *testing.T, h *Host) {
		g := mustCreate(t, h, testPath(t, h), nil)
		k := start(t, g, "open")
		if err := g.setFrozen(true); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Fatal(err)
		}
		pids, err := g.killListed()
		if err != nil || !slices.Equal(pids, []int{k.cmd.Process.Pid}) {
			t.Fatalf("killListed = %v, %v", pids, err)
		}
		if err := g.thawAll(); err != nil {
			t.Fatal(err)
		}
		var ee *exec.ExitError
		if err := k.cmd.Wait(); !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("Wait = %v; want killed", err)
		}
	})
}

func TestRemove(t *testing.T) {
	eachHost(t, nil, func(t *testing.T, h *Host) {
		g := mustCreate(t, h, testPath(t, h), nil)
		for _, sub := range []string{"/a/b/c", "/a/d", "/e"} {
			mustCreate(t, h, g.Path()+sub, nil)
		}
		k := startCmd(t, mustCreate(t, h, g.Path()+"/a/d", nil), exec.Command("sleep", "100"))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err := g.Remove(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, syscall.EBUSY) {
			t.Fatalf("Remove(busy) = %v; want EBUSY and deadline", err)
		}
		for _, want := range []string{h.primary.mount + g.Path(), strconv.Itoa(k.cmd.Process.Pid), "sleep"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("Remove(busy) = %v; want it to name %s", err, want)
			}
		}
		if err := g.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, hi := range h.hierarchies {
			if _, err := os.Stat(hi.mount + g.Path()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("left: %s%s: %v", hi.mount, g.Path(), err)
			}
		}
	})
}

func TestCPUStats(t *testing.T) {
	eachHost(t, []string{"cpu"}, func(t *testing.T, h *Host) {
		g := mustCreate(t, h, testPath(t, h), &specs.LinuxResources{
			CPU: &specs.LinuxCPU{Quota: ptr(int64(5000)), Period: ptr(uint64(20000))},
		})
		k := start(t, g, "spin")
		_, _ = k.in.Write([]byte("go\n"))
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			s, err := g.Stats()
			if err != nil {
				t.Fatal(err)
			}
			// A busy machine throttles by itself, and the group only once it gets its share.
			if s.CPU.UsageNanos > 0 && s.CPU.UserNanos > 0 && s.CPU.Periods > 0 && s.CPU.ThrottledPeriods > 0 && s.CPU.ThrottledNanos > 0 {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("CPU stats = %+v; want usage and throttling", s.CPU)
			}
		}
	})
}

func TestDetectMatchesKernel(t *testing.T) {
	h := detect(t)
	defer h.Close()
	for _, hi := range h.hierarchies {
		if _, err := os.Stat(filepath.Join(hi.mount, "cgroup.procs")); err != nil {
			t.Error(err)
		}
	}
	t.Logf("mode %s, controllers %v, swap accounting %t, page sizes %v", h.Mode(), h.Controllers(), h.SwapAccounting(), h.pageSizes)
	if diff := cmp.Diff(slices.Sorted(slices.Values(h.Controllers())), h.Controllers()); diff != "" {
		t.Error(diff)
	}
}

func TestHugepages(t *testing.T) {
	eachHost(t, []string{"hugetlb"}, func(t *testing.T, h *Host) {
		r := &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 8 << 20}}}
		if sizes := hugePageSizes("/sys/kernel/mm/hugepages"); !slices.Contains(sizes, "2MB") {
			t.Skip("no 2MB pages")
		}
		g := mustCreate(t, h, testPath(t, h)+"/pod/ctr", r)
		file := "hugetlb.2MB.max"
		if h.mode == V1 {
			file = "hugetlb.2MB.limit_in_bytes"
		}
		if got := content(t, g, "hugetlb", file); got != "8388608" {
			t.Errorf("%s = %s; want 8388608", file, got)
		}
		h.pageSizes = []string{"2MB"}
		if s, err := g.Stats(); err != nil || len(s.Hugetlb) != 1 || s.Hugetlb[0].Limit != 8<<20 {
			t.Errorf("Stats = %+v, %v; want a limit of 8388608", s, err)
		}
	})
}

// Groups of one pod are made and removed at the same time as others', as on a node that starts many pods.
func TestConcurrentPods(t *testing.T) {
	eachHost(t, nil, func(t *testing.T, h *Host) {
		top := testPath(t, h)
		errs := make(chan error, 8)
		for i := range cap(errs) {
			go func() {
				errs <- func() error {
					for j := range 5 {
						path := top + "/pod" + strconv.Itoa(i) + "/c" + strconv.Itoa(j)
						g, err := h.Create(t.Context(), path, &specs.LinuxResources{Devices: DefaultDevices()[:i+1]})
						if err != nil {
							return err
						}
						if _, err = g.Stats(); err != nil {
							return err
						}
						if err := g.Remove(context.Background()); err != nil {
							return err
						}
					}
					return nil
				}()
			}()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

// A v2 group that holds processes cannot give controllers to its children: no error for a child without limits, and one
// that says why for a child with one.
func TestRefusedController(t *testing.T) {
	eachHost(t, []string{"hugetlb"}, func(t *testing.T, h *Host) {
		if h.mode != V2 {
			t.Skip("cgroup v2 only")
		}
		g := mustCreate(t, h, testPath(t, h)+"/pod", nil)
		startCmd(t, g, exec.Command("sleep", "100"))
		// A group below takes processes all the same: its parent did not become a threaded domain.
		startCmd(t, mustCreate(t, h, g.Path()+"/without", nil), exec.Command("sleep", "100"))
		_, err := h.Create(t.Context(), g.Path()+"/with", &specs.LinuxResources{
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1 << 21}},
		})
		if !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, syscall.EBUSY) {
			t.Fatalf("Create = %v; want unsupported because of EBUSY", err)
		}
		for _, want := range []string{"controller hugetlb", h.primary.mount + g.Path() + "/cgroup.subtree_control"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("Create = %v; want it to name %s", err, want)
			}
		}
	})
}
