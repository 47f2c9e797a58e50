package cgroup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
)

// systemdHost is a machine whose PID 1 is systemd on cgroup v2.
func systemdHost(t *testing.T) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/run/systemd/private"); err != nil {
		t.Skip("needs systemd as PID 1")
	}
	h := detect(t)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	if h.mode != V2 {
		t.Skip("needs cgroup v2 alone")
	}
	return h
}

// testScope is the name of a scope in a slice like a pod's, both removed when the test ends.
func testScope(t *testing.T, h *Host) string {
	t.Helper()
	slice := "crishimtest-pod" + strings.ToLower(rand.Text()[:8]) + ".slice"
	t.Cleanup(func() {
		for _, name := range []string{slice, "crishimtest.slice"} {
			if err := h.Remove(context.Background(), name); err != nil {
				t.Error(err)
			}
		}
	})
	return slice + ":test:" + strings.ToLower(rand.Text()[:8])
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// everyLimit sets all that a kubelet or a user of runc may.
func everyLimit(h *Host) *specs.LinuxResources {
	r := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{
			Shares: ptr(uint64(512)), Quota: ptr(int64(23456)), Period: ptr(uint64(100000)), Burst: ptr(uint64(5000)), Cpus: "0", Mems: "0",
		},
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(80 << 20)), Reservation: ptr(int64(8 << 20))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(77))},
		Unified: map[string]string{
			"memory.high": fmt.Sprint(48 << 20), "memory.min": "4096", "memory.oom.group": "1", "cgroup.max.descendants": "5",
		},
		Devices: DefaultDevices(),
	}
	for _, size := range h.pageSizes {
		if size == "2MB" && h.byName["hugetlb"] != nil {
			r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: size, Limit: 4 << 20}}
		}
	}
	return r
}

func wantLimits(h *Host) map[string]string {
	want := map[string]string{
		"cpu.weight": fmt.Sprint(CPUWeight(512)), "cpu.max": "23456 100000", "cpu.max.burst": "5000",
		"cpuset.cpus": "0", "cpuset.mems": "0",
		"memory.max": fmt.Sprint(64 << 20), "memory.swap.max": fmt.Sprint(16 << 20), "memory.low": fmt.Sprint(8 << 20),
		"memory.high": fmt.Sprint(48 << 20), "memory.min": "4096", "memory.oom.group": "1",
		"pids.max": "77", "cgroup.max.descendants": "5",
	}
	if slices.Contains(h.pageSizes, "2MB") && h.byName["hugetlb"] != nil {
		want["hugetlb.2MB.max"], want["hugetlb.2MB.rsvd.max"] = fmt.Sprint(4<<20), fmt.Sprint(4<<20)
	}
	return want
}

func checkFiles(t *testing.T, g *Group, when string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for _, f := range slices.Sorted(maps.Keys(want)) {
		b, err := os.ReadFile(g.host.primary.file(g.rel, f))
		if err != nil {
			t.Errorf("%s: %v", when, err)
		}
		got[f] = strings.TrimSpace(string(b))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: limits (-want +got):\n%s", when, diff)
	}
}

func TestSystemdScope(t *testing.T) {
	h := systemdHost(t)
	name := testScope(t, h)
	begun := time.Now()
	g, err := h.Create(t.Context(), name, everyLimit(h))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Create took %v", time.Since(begun))
	path, _ := Resolve(name)
	if g.Path() != path {
		t.Errorf("Path() = %q; want %q", g.Path(), path)
	}
	checkFiles(t, g, "created", wantLimits(h))
	k := start(t, g, "open")
	g.Release()
	if pids, err := g.Pids(); err != nil || len(pids) != 1 || pids[0] != k.cmd.Process.Pid {
		t.Errorf("Pids() after Release = %v, %v; want the container's %d alone", pids, err, k.cmd.Process.Pid)
	}
	devices := func(when string) {
		t.Helper()
		for ask, want := range map[string]string{"rw /dev/null": "ok", "r /dev/urandom": "ok", "r /dev/kmsg": "EPERM", "r /dev/vda": "EPERM"} {
			if _, err := os.Stat(strings.Fields(ask)[1]); err != nil {
				continue
			}
			if got := k.ask(ask); got != want {
				t.Errorf("%s: open %s = %s; want %s", when, ask, got, want)
			}
		}
	}
	devices("created")
	unit := g.unit
	for _, p := range []string{"Delegate=yes", "MemoryMax=67108864", "TasksMax=77", "DevicePolicy=strict", "CPUQuotaPerSecUSec=240ms"} {
		key, _, _ := strings.Cut(p, "=")
		if got := systemctl(t, "show", "-p", key, unit); got != p {
			t.Errorf("systemctl show = %q; want %q", got, p)
		}
	}

	// The weight needs a write of systemd's to prove anything: a change of one property makes it apply its others.
	systemctl(t, "daemon-reload")
	checkFiles(t, g, "after daemon-reload", wantLimits(h))
	devices("after daemon-reload")
	for _, p := range []string{"MemoryMax=67108864", "TasksMax=77", "DevicePolicy=strict", "MemoryHigh=50331648", "AllowedCPUs=0"} {
		key, _, _ := strings.Cut(p, "=")
		if got := systemctl(t, "show", "-p", key, unit); got != p {
			t.Errorf("after daemon-reload: systemctl show = %q; want %q", got, p)
		}
	}

	// The connection breaks here, and the next calls make another.
	systemctl(t, "daemon-reexec")
	checkFiles(t, g, "after daemon-reexec", wantLimits(h))
	devices("after daemon-reexec")

	update := &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Quota: ptr(int64(34567)), Shares: ptr(uint64(2048)), Burst: ptr(uint64(0)), Cpus: "0-1"},
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(96 << 20)), Swap: ptr(int64(96 << 20)), Reservation: ptr(int64(16 << 20))},
		Pids:    &specs.LinuxPids{Limit: ptr(int64(99))},
		Unified: map[string]string{"memory.high": "max", "memory.min": "0"},
		Devices: append(DefaultDevices(), specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(11)), Access: "r"}),
	}
	if _, err := os.Stat("/sys/devices/system/cpu/cpu1"); err != nil {
		update.CPU.Cpus = "0"
	}
	if err := g.Update(t.Context(), update); err != nil {
		t.Fatal(err)
	}
	want := wantLimits(h)
	maps.Copy(want, map[string]string{
		"cpu.max": "34567 100000", "cpu.weight": fmt.Sprint(CPUWeight(2048)), "cpu.max.burst": "0", "cpuset.cpus": update.CPU.Cpus,
		"memory.max": fmt.Sprint(96 << 20), "memory.swap.max": "0", "memory.low": fmt.Sprint(16 << 20), "pids.max": "99",
		"memory.high": "max", "memory.min": "0",
	})
	checkFiles(t, g, "updated", want)
	if got := k.ask("r /dev/kmsg"); got != "ok" {
		t.Errorf("open /dev/kmsg once allowed = %s; want ok", got)
	}
	systemctl(t, "daemon-reload")
	systemctl(t, "set-property", "--runtime", unit, "IOWeight=50") // has systemd write the rest again
	checkFiles(t, g, "updated, after daemon-reload", want)
	if got := k.ask("r /dev/kmsg"); got != "ok" {
		t.Errorf("open /dev/kmsg after daemon-reload = %s; want ok", got)
	}
	if n := programCount(t, g); n != 1 {
		t.Errorf("%d device programs of ours; want 1", n)
	}

	if err := h.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open(removed) = %v; want not exist", err)
	}
	if out := systemctl(t, "list-units", "--all", "--no-legend", "--plain", unit); out != "" {
		t.Errorf("the unit is still there: %s", out)
	}
	if err := h.Remove(t.Context(), name); err != nil {
		t.Errorf("second Remove = %v; want nil", err)
	}
}

// What a caller that died has left is in nobody's way.
func TestSystemdLeftovers(t *testing.T) {
	h := systemdHost(t)
	name := testScope(t, h)
	g, err := h.Create(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := h.Create(t.Context(), name, nil)
	if err != nil {
		t.Fatalf("Create over a leftover scope: %v", err)
	}
	g.Release()
	again.Release()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		if _, err := h.Open(name); errors.Is(err, fs.ErrNotExist) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if _, err := h.Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of a scope that nothing is in = %v; want that systemd has removed it", err)
	}
	if err := h.Remove(t.Context(), name); err != nil {
		t.Error(err)
	}
	_, err = h.Create(t.Context(), name, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4000"}})
	if err == nil || !strings.Contains(err.Error(), "cpu") {
		t.Errorf("Create with CPU 4000 = %v; want an error that names the limit", err)
	}
	if _, err := h.Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open after a failed Create = %v; want not exist", err)
	}
}

// systemd removes the group as soon as it is empty; until then the counter must tell.
func TestSystemdOOM(t *testing.T) {
	h := systemdHost(t)
	g, err := h.Create(t.Context(), testScope(t, h), &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(32 << 20))},
	})
	if err != nil {
		t.Fatal(err)
	}
	k := start(t, g, "hog")
	if got := k.ask(fmt.Sprint(128 << 20)); got != "" {
		t.Fatalf("hog says %q; want it killed", got)
	}
	n, err := cgroupfile.ReadOOMKills(g.OOMFile())
	if err != nil || n == 0 {
		t.Errorf("ReadOOMKills = %d, %v; want at least 1", n, err)
	}
	g.Release()
}
