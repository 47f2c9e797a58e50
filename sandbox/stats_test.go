package sandbox

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCPURate(t *testing.T) {
	begun := time.Unix(100, 0)
	var r cpuRate
	for _, tt := range []struct {
		after time.Duration
		used  uint64
		want  uint64
	}{
		{10 * time.Second, 5e9, 5e8},       // since the beginning
		{10*time.Second + 1e6, 9e9, 5e8},   // too soon: as before
		{12 * time.Second, 5e9 + 4e9, 2e9}, // between samples
		{14 * time.Second, 9e9, 0},         // idle
		{15 * time.Second, 1e9, 0},         // a counter that went back
		{17*time.Second + 5e8, 1e9 + 25e8, 1_000_000_000},
	} {
		if got := r.rate(begun.Add(tt.after), tt.used, begun); got != tt.want {
			t.Errorf("rate at %s with %d = %d; want %d", tt.after, tt.used, got, tt.want)
		}
	}
	var young cpuRate
	if got := young.rate(begun, 5, begun); got != 0 {
		t.Errorf("rate at the beginning = %d; want 0", got)
	}
}

// running makes a pod with a running container.
func running(t *testing.T, m *Manager, name string) (pod, ctr string) {
	t.Helper()
	pod, err := m.RunPod(t.Context(), podConfig(name))
	if err != nil {
		t.Fatal(err)
	}
	ctr, err = m.CreateContainer(t.Context(), pod, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.StartContainer(t.Context(), ctr); err != nil {
		t.Fatal(err)
	}
	return pod, ctr
}

func TestMeasure(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	pod, ctr := running(t, m, "a")
	s, err := m.MeasureContainer(t.Context(), ctr[:12])
	if err != nil || s.Usage.Memory.WorkingSet != 10 || s.NanoCores == 0 || !s.Layer.Known || s.Layer.Bytes != 4096 {
		t.Errorf("MeasureContainer = %+v, %v", s, err)
	}
	p, err := m.MeasurePod(t.Context(), pod)
	if err != nil || p.Usage.Memory.WorkingSet != 70 || p.Processes != 3 || len(p.Containers) != 1 || !p.OwnNetwork {
		t.Errorf("MeasurePod = %+v, %v", p, err)
	}
	for _, i := range p.Network {
		if i.RxBytes != 0 {
			t.Errorf("MeasurePod: %+v; want a network without traffic: not the node's", p.Network)
		}
	}
	if _, err := m.MeasureContainer(t.Context(), "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("MeasureContainer of none = %v; want not found", err)
	}
	if _, err := m.MeasurePod(t.Context(), "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("MeasurePod of none = %v; want not found", err)
	}
	for _, step := range []string{"measure container", "measure pod", "measure processes"} {
		h.fail = step
		if _, err := m.MeasurePod(t.Context(), pod); !errors.Is(err, errBroken) {
			t.Errorf("MeasurePod with %q failing = %v", step, err)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.MeasurePods(cancelled, m.Pods(), false, func(*PodStats) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("MeasurePods for a client that is gone = %v; want canceled", err)
	}
	// Pods that share their group are the sum of their containers.
	cfg := podConfig("b")
	cfg.CgroupParent = "/shared"
	other := podConfig("c")
	other.CgroupParent = "shared/"
	for _, c := range []struct{ want uint64 }{{70}, {0}} {
		id, err := m.RunPod(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := m.MeasurePod(t.Context(), id); err != nil || p.Usage.Memory.WorkingSet != c.want {
			t.Errorf("MeasurePod of %s = %+v, %v; want %d", cfg.Metadata.Name, p, err, c.want)
		}
		cfg = other
	}
	// One that cannot be measured does not keep the others from being told.
	h.fail = "measure pod"
	broken, told := 0, 0
	if err := m.MeasurePods(t.Context(), m.Pods(), true, func(s *PodStats) error {
		if told++; s.Err != nil {
			broken++
		}
		return nil
	}); err != nil || told != 3 || broken != 1 {
		t.Errorf("MeasurePods with one that breaks = %v, %d told, %d of them broken; want 3 and 1", err, told, broken)
	}
	// What is gone between the list and the measurement is left out.
	pods, ctrs := m.Pods(), m.Containers()
	if err := m.RemovePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	seen := 0
	if err := m.MeasurePods(t.Context(), pods, false, func(*PodStats) error { seen++; return nil }); err != nil || seen != 2 {
		t.Errorf("MeasurePods with one gone = %d, %v; want 2", seen, err)
	}
	if err := m.MeasureContainers(t.Context(), ctrs, func(*ContainerStats) error { return errors.New("measured") }); err != nil {
		t.Errorf("MeasureContainers of one that is gone = %v", err)
	}
}

// TestSlowLayer: a layer whose walk hangs delays no call for long, and its size is not made up.
func TestSlowLayer(t *testing.T) {
	h := newHost(t)
	h.holdLayers = make(chan struct{})
	m := h.manager()
	_, ctr := running(t, m, "a")
	s, err := m.MeasureContainer(t.Context(), ctr)
	if err != nil || s.Usage == nil || s.Layer.Known || s.Layer.Dir == "" {
		t.Errorf("MeasureContainer with a layer that hangs = %+v, %v; want all but its size", s, err)
	}
	close(h.holdLayers)
	eventually(t, "the size of the layer", func() bool {
		s, err := m.MeasureContainer(t.Context(), ctr)
		return err == nil && s.Layer.Known
	})
}

// next reads the events of one object.
func next(t *testing.T, s *Subscription, n int) (kinds []EventKind, last *Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range n {
		e, err := s.Next(ctx)
		if err != nil {
			t.Fatalf("Next after %v = %v", kinds, err)
		}
		kinds, last = append(kinds, e.Kind), e
	}
	return kinds, last
}

func TestEvents(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	s, second := m.Subscribe(), m.Subscribe()
	defer s.Close()
	pod, ctr := running(t, m, "a")
	if err := m.StopContainer(t.Context(), ctr, 0); err != nil {
		t.Fatal(err)
	}
	kinds, e := next(t, s, 5)
	if d := cmp.Diff([]EventKind{EventCreated, EventStarted, EventCreated, EventStarted, EventStopped}, kinds); d != "" {
		t.Errorf("events of a pod and its container (-want +got):\n%s", d)
	}
	if e.ID != ctr || e.Pod.ID != pod || len(e.Containers) != 1 || e.Containers[0].State() != ContainerExited || e.At.IsZero() {
		t.Errorf("event of the end = %+v; want the container exited in it", e)
	}
	if kinds, e := next(t, second, 3); kinds[2] != EventCreated || e.Containers[0].State() != ContainerCreated {
		t.Errorf("the second client's third event = %+v; want the container as it was then", e)
	}
	second.Close()
	if err := errors.Join(m.StopPod(t.Context(), pod), m.StopPod(t.Context(), pod), m.RemovePod(t.Context(), pod)); err != nil {
		t.Fatal(err)
	}
	kinds, e = next(t, s, 3)
	if d := cmp.Diff([]EventKind{EventStopped, EventDeleted, EventDeleted}, kinds); d != "" {
		t.Errorf("events of a removal (-want +got):\n%s", d)
	}
	if e.ID != pod || e.Pod.State() != PodNotReady || len(e.Containers) != 0 {
		t.Errorf("the last event = %+v; want the pod", e)
	}
	// A start that fails ends the container; a pod that never was ready is not told of.
	h.fail = "setup"
	if _, err := m.RunPod(t.Context(), podConfig("b")); err == nil {
		t.Fatal("RunPod: want an error")
	}
	pod, _ = m.RunPod(t.Context(), podConfig("c"))
	ctr, _ = m.CreateContainer(t.Context(), pod, containerConfig("c"))
	h.fail = "cgroup"
	if err := m.StartContainer(t.Context(), ctr); err == nil {
		t.Fatal("StartContainer: want an error")
	}
	kinds, _ = next(t, s, 4)
	if d := cmp.Diff([]EventKind{EventCreated, EventStarted, EventCreated, EventStopped}, kinds); d != "" {
		t.Errorf("events of a failed start (-want +got):\n%s", d)
	}
}

// TestMissedEvents: a slow client is told how many it has missed, after those that it has not, and nobody waits for it.
func TestMissedEvents(t *testing.T) {
	m := &Manager{}
	slow, fast := m.Subscribe(), m.Subscribe()
	const missed = 7
	for range eventBacklog + missed {
		m.tell(EventCreated, "p", &pod{})
		next(t, fast, 1)
	}
	next(t, slow, eventBacklog)
	if _, err := slow.Next(t.Context()); !errors.Is(err, ErrMissed) || err.Error()[:16] != "events missed: 7" {
		t.Errorf("Next after a gap = %v; want 7 missed", err)
	}
	m.events.close()
	if _, err := fast.Next(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Next at the daemon's end = %v; want unavailable", err)
	}
}

// TestShortLife: a container that ends at once has still started before it stopped.
func TestShortLife(t *testing.T) {
	h := newHost(t)
	h.script = "exit 3"
	m := h.manager()
	s := m.Subscribe()
	defer s.Close()
	running(t, m, "a")
	kinds, e := next(t, s, 5)
	if kinds[3] != EventStarted || kinds[4] != EventStopped || e.Containers[0].ExitCode != 3 {
		t.Errorf("events = %v, the last %+v", kinds, e)
	}
}
