package cgroup

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestResolve(t *testing.T) {
	for name, want := range map[string]string{
		"/a/b":                             "/a/b",
		"/odd:name/x.slice":                "/odd:name/x.slice",
		"kubepods-burstable-podX.slice":    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice",
		"kubepods-podX_Y.slice:cri-shim:1": "/kubepods.slice/kubepods-podX_Y.slice/cri-shim-1.scope/container",
		"system.slice::x":                  "/system.slice/x.scope/container",
		":runc:x":                          "/system.slice/runc-x.scope/container",
		"-.slice:p:x":                      "/p-x.scope/container",
	} {
		if got, err := Resolve(name); got != want || err != nil {
			t.Errorf("Resolve(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]string{
		"a/b":                                   "not absolute",
		"a.slice:b":                             "want slice:prefix:name",
		"a.slice:b:c:d":                         "want slice:prefix:name",
		"a.slice:b:":                            "no name",
		"a:b:c":                                 ".slice",
		"-.slice":                               "no slice of its own",
		".slice:b:c":                            "empty part",
		"a--b.slice:b:c":                        "empty part",
		"-a.slice:b:c":                          "empty part",
		"a-.slice:b:c":                          "empty part",
		"a.slice:../x:c":                        "not allowed",
		"a/b.slice:x:c":                         "not allowed",
		"a.slice:b:c\n":                         "not allowed",
		"a.slice:b:c d":                         "not allowed",
		"a.slice:b:\x00":                        "not allowed",
		"a.slice:b:ü":                           "not allowed",
		"a.slice:b:@x":                          "not allowed",
		"a.slice:b:" + strings.Repeat("c", 300): "longer",
	} {
		if got, err := Resolve(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Resolve(%q) = %q, %v; want an error with %q", name, got, err, want)
		}
	}
}

func FuzzResolve(f *testing.F) {
	for _, s := range []string{"/a/b", "a-b.slice:p:n", "-.slice:p:n", "a.slice", "::", ":x:..", "a.slice:p:n/.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		p, err := Resolve(name)
		if err != nil {
			return
		}
		if err := ValidatePath(p); err != nil {
			t.Errorf("Resolve(%q) = %q: %v", name, p, err)
		}
		if IsUnit(name) && !strings.HasSuffix(p, sliceSuffix) && !strings.HasSuffix(p, scopeSuffix+"/"+innerGroup) {
			t.Errorf("Resolve(%q) = %q; want a slice or a scope", name, p)
		}
	})
}

func TestSystemdNeedsV2(t *testing.T) {
	h := &Host{mode: V1, systemd: newSystemd()}
	_, err := h.Create(t.Context(), "a.slice:p:n", nil)
	if err == nil || !strings.Contains(err.Error(), "needs cgroup v2") {
		t.Errorf("Create on v1 = %v; want an error that says that it needs v2", err)
	}
}

// A machine without systemd is told so at once, not after all retries.
func TestConnectSystemd(t *testing.T) {
	if _, err := os.Stat("/run/systemd/private"); err == nil {
		t.Skip("this machine has systemd")
	}
	h := &Host{mode: V2, systemd: newSystemd()}
	begun := time.Now()
	err := h.ConnectSystemd(t.Context())
	if err == nil || !strings.Contains(err.Error(), "/run/systemd/private") {
		t.Errorf("ConnectSystemd = %v; want an error that names systemd's socket", err)
	}
	if took := time.Since(begun); took > systemdTimeout/2 {
		t.Errorf("ConnectSystemd took %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
	defer cancel()
	err = h.systemd.stop(ctx, "none.scope")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stop none.scope") || !strings.Contains(err.Error(), "/run/systemd/private") {
		t.Errorf("stop = %v; want a deadline, and what was tried", err)
	}
	h.systemd.close()
}

func TestProperties(t *testing.T) {
	h := &Host{mode: V2}
	dev := func(kind string, major, minor int64, access string, allow bool) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: &major, Minor: &minor, Access: access}
	}
	for _, tc := range []struct {
		name string
		r    *specs.LinuxResources
		want map[string]any
	}{
		{"limits", &specs.LinuxResources{
			CPU: &specs.LinuxCPU{
				Shares: ptr(uint64(1024)), Quota: ptr(int64(12345)), Period: ptr(uint64(50000)), Burst: ptr(uint64(10)), Cpus: "0-2,9", Mems: "0",
			},
			Memory:         &specs.LinuxMemory{Limit: ptr(int64(1 << 20)), Swap: ptr(int64(3 << 20)), Reservation: ptr(int64(4096))},
			Pids:           &specs.LinuxPids{Limit: ptr(int64(7))},
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}},
			Unified:        map[string]string{"memory.high": "8192", "memory.min": "max", "memory.oom.group": "1"},
		}, map[string]any{
			"CPUWeight": uint64(100), "CPUQuotaPeriodUSec": uint64(50000),
			"CPUQuotaPerSecUSec": uint64(250000), // 24.69 %
			"AllowedCPUs":        []byte{0b111, 0b10}, "AllowedMemoryNodes": []byte{1},
			"MemoryMax": uint64(1 << 20), "MemorySwapMax": uint64(2 << 20), "MemoryLow": uint64(4096),
			"MemoryHigh": uint64(8192), "MemoryMin": infinity, "TasksMax": uint64(7),
		}},
		{"none", &specs.LinuxResources{
			CPU:    &specs.LinuxCPU{Quota: ptr(int64(-1)), Idle: ptr(int64(1))},
			Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}, Pids: &specs.LinuxPids{Limit: ptr(int64(-1))},
		}, map[string]any{
			"CPUWeight": uint64(0), "CPUQuotaPeriodUSec": uint64(defaultPeriod), "CPUQuotaPerSecUSec": infinity,
			"MemoryMax": infinity, "MemorySwapMax": infinity, "TasksMax": infinity,
		}},
		{"weight", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(10))}}, map[string]any{"IOWeight": uint64(1)}},
		{"devices", &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
			dev("c", 1, 3, "rwm", true), dev("c", -1, -1, "m", true), dev("b", 8, -1, "r", true), dev("b", 8, 1, "r", false),
		}}, map[string]any{
			"DevicePolicy": "strict",
			"DeviceAllow":  []pathAccess{{"/dev/char/1:3", "rwm"}, {"char-*", "m"}, {"block-8", "r"}},
		}},
		{"all devices", &specs.LinuxResources{Devices: AllDevices()}, map[string]any{
			"DevicePolicy": "auto", "DeviceAllow": []pathAccess{},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := h.plan(tc.r, freshGroup)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]any{}
			for _, x := range p.properties(defaultPeriod) {
				got[x.Name] = x.Value.Value()
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("properties (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseVersion(t *testing.T) {
	for s, want := range map[string]int{`"252.39-1~deb12u1"`: 252, "v257": 257, "244": 244, "": 0, `"x"`: 0} {
		if got := parseVersion(s); got != want {
			t.Errorf("parseVersion(%q) = %d; want %d", s, got, want)
		}
	}
}
