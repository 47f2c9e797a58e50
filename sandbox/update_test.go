package sandbox

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// fakeLimits keeps what it was told.
type fakeLimits struct {
	mu           sync.Mutex
	fail, refuse error
	containers   map[string][]*workload.Resources
	pods         map[string]*workload.Resources
}

func (l *fakeLimits) Check(*workload.Resources) error { return l.refuse }

func (l *fakeLimits) Update(_ context.Context, _ *Pod, c *Container, r *workload.Resources) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.containers == nil {
		l.containers = map[string][]*workload.Resources{}
	}
	l.containers[c.ID] = append(l.containers[c.ID], r)
	err := l.fail
	l.fail = nil
	return err
}

func (l *fakeLimits) UpdatePod(_ context.Context, p *Pod, r *workload.Resources) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pods == nil {
		l.pods = map[string]*workload.Resources{}
	}
	l.pods[p.ID] = r
	return l.refuse
}

func TestMergeLimits(t *testing.T) {
	huge := func(size string, n uint64) []workload.HugepageLimit {
		return []workload.HugepageLimit{{PageSize: size, Limit: n}}
	}
	for _, tc := range []struct {
		name              string
		old, change, want *workload.Resources
		running           bool
	}{
		{"none before", nil, &workload.Resources{CPUShares: 2}, &workload.Resources{CPUShares: 2}, true},
		{"the rest stays",
			&workload.Resources{CPUShares: 2, CPUQuota: 5000, CPUPeriod: 10000, CPUSetCPUs: "0", MemoryLimit: 1},
			&workload.Resources{CPUQuota: -1, CPUSetMems: "1"},
			&workload.Resources{CPUShares: 2, CPUQuota: -1, CPUPeriod: 10000, CPUSetCPUs: "0", CPUSetMems: "1", MemoryLimit: 1}, true},
		{"swap stays as much",
			&workload.Resources{MemoryLimit: 100, MemorySwapLimit: 150}, &workload.Resources{MemoryLimit: 300},
			&workload.Resources{MemoryLimit: 300, MemorySwapLimit: 350}, true},
		{"swap without limit stays so",
			&workload.Resources{MemoryLimit: 100, MemorySwapLimit: -1}, &workload.Resources{MemoryLimit: 300},
			&workload.Resources{MemoryLimit: 300, MemorySwapLimit: -1}, true},
		{"both", &workload.Resources{MemoryLimit: 100, MemorySwapLimit: 150}, &workload.Resources{MemoryLimit: 50, MemorySwapLimit: 60},
			&workload.Resources{MemoryLimit: 50, MemorySwapLimit: 60}, true},
		{"no memory limit", &workload.Resources{MemoryLimit: 100, MemorySwapLimit: 150}, &workload.Resources{MemoryLimit: -1},
			&workload.Resources{MemoryLimit: -1}, true},
		{"by key",
			&workload.Resources{Unified: map[string]string{"a.b": "1", "c.d": "2"}, HugepageLimits: append(huge("2MB", 1), huge("1GB", 2)...)},
			&workload.Resources{Unified: map[string]string{"a.b": "3"}, HugepageLimits: huge("2MB", 3)},
			&workload.Resources{Unified: map[string]string{"a.b": "3", "c.d": "2"}, HugepageLimits: append(huge("1GB", 2), huge("2MB", 3)...)}, true},
		{"score before the start", &workload.Resources{OOMScoreAdj: 1}, &workload.Resources{OOMScoreAdj: 2}, &workload.Resources{OOMScoreAdj: 2}, false},
		{"score of what runs", &workload.Resources{OOMScoreAdj: 1}, &workload.Resources{OOMScoreAdj: 2}, &workload.Resources{OOMScoreAdj: 1}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, merge(tc.old, tc.change, tc.running)); diff != "" {
				t.Errorf("merge (-want +got):\n%s", diff)
			}
		})
	}
	old := &workload.Resources{Unified: map[string]string{"a.b": "1"}, HugepageLimits: huge("2MB", 1)}
	merge(old, &workload.Resources{Unified: map[string]string{"a.b": "2"}, HugepageLimits: huge("2MB", 2)}, true)
	if old.Unified["a.b"] != "1" || old.HugepageLimits[0].Limit != 1 {
		t.Errorf("merge has changed what it was given: %v", old)
	}
}

func TestUpdateContainer(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	ctx := t.Context()
	podID, err := m.RunPod(ctx, podConfig("p"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := containerConfig("c")
	cfg.Resources = &workload.Resources{CPUShares: 2, MemoryLimit: 100}
	id, err := m.CreateContainer(ctx, podID, cfg)
	if err != nil {
		t.Fatal(err)
	}
	limits := func() *workload.Resources {
		t.Helper()
		c, err := m.Container(id)
		if err != nil {
			t.Fatal(err)
		}
		return c.Limits()
	}
	check := func(when string, want *workload.Resources) {
		t.Helper()
		if diff := cmp.Diff(want, limits()); diff != "" {
			t.Errorf("%s: limits (-want +got):\n%s", when, diff)
		}
	}
	if err := m.UpdateContainer(ctx, id, &workload.Resources{MemoryLimit: 200}); err != nil {
		t.Fatal(err)
	}
	check("created", &workload.Resources{CPUShares: 2, MemoryLimit: 200})
	if n := len(h.limits.containers[id]); n != 0 {
		t.Errorf("%d updates of a group that is not there", n)
	}
	if again, err := m.CreateContainer(ctx, podID, cfg); err != nil || again != id {
		t.Errorf("CreateContainer again = %q, %v; want %q, as it was asked for at first", again, err, id)
	}
	if err := m.StartContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := m.UpdateContainer(ctx, id, &workload.Resources{CPUShares: 4, CPUPeriod: 20000}); err != nil {
		t.Fatal(err)
	}
	want := &workload.Resources{CPUShares: 4, CPUPeriod: 20000, MemoryLimit: 200}
	check("running", want)
	if diff := cmp.Diff([]*workload.Resources{{CPUShares: 4, CPUPeriod: 20000}}, h.limits.containers[id]); diff != "" {
		t.Errorf("applied (-want +got):\n%s", diff)
	}

	h.limits.fail = errBroken
	if err := m.UpdateContainer(ctx, id, &workload.Resources{CPUShares: 8}); !errors.Is(err, errBroken) {
		t.Errorf("UpdateContainer = %v; want the refusal", err)
	}
	check("refused", want)
	if all := h.limits.containers[id]; !cmp.Equal(all[len(all)-1], want) {
		t.Errorf("applied at last: %v; want the old limits %v", all[len(all)-1], want)
	}

	m.Close()
	m = h.manager()
	check("after a restart", want)
	if err := m.StopContainer(ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.UpdateContainer(ctx, id, &workload.Resources{CPUShares: 8}); !errors.Is(err, ErrState) {
		t.Errorf("UpdateContainer of what has ended = %v; want ErrState", err)
	}
	if err := m.UpdateContainer(ctx, "none", &workload.Resources{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("UpdateContainer(none) = %v; want ErrNotFound", err)
	}
}

func TestUpdatePod(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	ctx := t.Context()
	cfg := podConfig("p")
	cfg.Resources = &workload.Resources{CPUShares: 2}
	id, err := m.RunPod(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	overhead := &workload.Resources{MemoryLimit: 7}
	if err := m.UpdatePod(ctx, id, overhead, &workload.Resources{MemoryLimit: 9}); err != nil {
		t.Fatal(err)
	}
	want := &workload.Resources{CPUShares: 2, MemoryLimit: 9}
	if diff := cmp.Diff(want, h.limits.pods[id]); diff != "" {
		t.Errorf("applied (-want +got):\n%s", diff)
	}
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00::/64")}
	if err := m.SetPodCIDRs(cidrs); err != nil {
		t.Fatal(err)
	}
	m.Close()
	m = h.manager()
	p, err := m.Pod(id)
	if err != nil || !cmp.Equal(p.Resources, want) || !cmp.Equal(p.Overhead, overhead) {
		t.Errorf("after a restart: %v, %v, %v; want %v, %v", p.Resources, p.Overhead, err, want, overhead)
	}
	if got, err := m.PodCIDRs(); got != "10.1.0.0/24,fd00::/64" || err != nil {
		t.Errorf("PodCIDRs() = %q, %v; want both", got, err)
	}
	h.limits.refuse = errBroken
	if err := m.UpdatePod(ctx, id, nil, &workload.Resources{MemoryLimit: 10}); !errors.Is(err, errBroken) {
		t.Errorf("UpdatePod = %v; want the refusal", err)
	}
	if err := m.StopPod(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := m.UpdatePod(ctx, id, overhead, nil); !errors.Is(err, ErrState) {
		t.Errorf("UpdatePod of a stopped pod = %v; want ErrState", err)
	}
}
