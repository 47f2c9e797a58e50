package cgroup

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// typical is what the kubelet asks for a burstable container.
func typical() *specs.LinuxResources {
	return &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(102)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(1000))}, Devices: DefaultDevices(),
	}
}

func benchHost(b *testing.B) (*Host, string) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	h := detect(b)
	b.Cleanup(func() { _ = h.Close() })
	path := testPath(b, h)
	// A neighbour with a quota: the first one on a machine makes the kernel patch itself (0.6 ms), which no node pays twice.
	if _, err := h.Create(b.Context(), path+"/pod/neighbour", typical()); err != nil {
		b.Skipf("limits: %v", err)
	}
	return h, path + "/pod/ctr"
}

func BenchmarkCreateRemove(b *testing.B) {
	h, path := benchHost(b)
	var create, remove time.Duration
	r := typical()
	for b.Loop() {
		t0 := time.Now()
		g, err := h.Create(b.Context(), path, r)
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := g.Remove(context.Background()); err != nil {
			b.Fatal(err)
		}
		create, remove = create+t1.Sub(t0), remove+time.Since(t1)
	}
	b.ReportMetric(float64(create.Microseconds())/float64(b.N), "create-µs")
	b.ReportMetric(float64(remove.Microseconds())/float64(b.N), "remove-µs")
}

func BenchmarkStats(b *testing.B) {
	h, path := benchHost(b)
	g, err := h.Create(b.Context(), path, typical())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Stats(); err != nil {
			b.Fatal(err)
		}
	}
}

// The library's way, for comparison.
func BenchmarkLibraryV1(b *testing.B) {
	h, path := benchHost(b)
	if h.mode != V1 {
		b.Skip("cgroup v1 only")
	}
	r := typical()
	var create, remove, stat time.Duration
	for b.Loop() {
		t0 := time.Now()
		cg, err := cgroup1.New(cgroup1.StaticPath(path), r)
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if _, err := cg.Stat(cgroup1.IgnoreNotExist); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		if err := cg.Delete(); err != nil {
			b.Fatal(err)
		}
		create, stat, remove = create+t1.Sub(t0), stat+t2.Sub(t1), remove+time.Since(t2)
	}
	b.ReportMetric(float64(create.Microseconds())/float64(b.N), "create-µs")
	b.ReportMetric(float64(stat.Microseconds())/float64(b.N), "stat-µs")
	b.ReportMetric(float64(remove.Microseconds())/float64(b.N), "remove-µs")
}

func BenchmarkDeviceProgramV2(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	h := unifiedOnly(b)
	if h == nil {
		b.Skip("no cgroup2 mount")
	}
	b.Cleanup(func() { _ = h.Close() })
	path := testPath(b, h) + "/pod/ctr"
	r := &specs.LinuxResources{Devices: DefaultDevices()}
	var create, remove time.Duration
	for b.Loop() {
		t0 := time.Now()
		g, err := h.Create(b.Context(), path, r)
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := g.Remove(context.Background()); err != nil {
			b.Fatal(err)
		}
		create, remove = create+t1.Sub(t0), remove+time.Since(t1)
	}
	b.ReportMetric(float64(create.Microseconds())/float64(b.N), "create-µs")
	b.ReportMetric(float64(remove.Microseconds())/float64(b.N), "remove-µs")
}
