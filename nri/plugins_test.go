package nri

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// stopper is a node whose containers are stopped; the rest of it is not called.
type stopper struct {
	Node
	mu      sync.Mutex
	stopped []string
	updated map[string]int64
	done    chan struct{}
}

func (s *stopper) StopContainer(_ context.Context, id string, timeout time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = append(s.stopped, id+" "+timeout.String())
	s.done <- struct{}{}
	if id == "gone" {
		return sandbox.ErrNotFound
	}
	return nil
}

func (s *stopper) UpdateForPlugin(_ context.Context, id string, change *workload.Resources) error {
	if id == "busy" {
		return sandbox.ErrBusy
	}
	s.updated[id] = change.MemoryLimit
	return nil
}

// TestEvict: containers are stopped at once, and one that is gone does not keep the next from it.
func TestEvict(t *testing.T) {
	s := &stopper{done: make(chan struct{}, 2)}
	p := &Plugins{cfg: Config{Log: slog.New(slog.DiscardHandler)}, node: s}
	p.evict([]*api.ContainerEviction{{ContainerId: "gone", Reason: "noisy"}, {ContainerId: "a", Reason: "noisy"}})
	for range 2 {
		select {
		case <-s.done:
		case <-time.After(10 * time.Second):
			t.Fatal("not evicted within 10 s")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.stopped)
	if want := []string{"a 0s", "gone 0s"}; !slices.Equal(s.stopped, want) {
		t.Errorf("evicted %v; want %v", s.stopped, want)
	}
}

// TestUpdates: what could not be done is told to the plugin unless it does not want to know.
func TestUpdates(t *testing.T) {
	s := &stopper{updated: map[string]int64{}}
	p := &Plugins{cfg: Config{Log: slog.New(slog.DiscardHandler)}, node: s}
	update := func(id string) *api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(id)
		u.SetLinuxMemoryLimit(7)
		return u
	}
	quiet := update("busy")
	quiet.SetIgnoreFailure()
	failed, err := p.updates(t.Context(), []*api.ContainerUpdate{update("busy"), quiet, update("a")})
	if err != nil || len(failed) != 1 || failed[0].GetContainerId() != "busy" || s.updated["a"] != 7 {
		t.Errorf("updates = %v, %v; done %v; want the one that is busy to have failed", failed, err, s.updated)
	}
}

// TestTellBeforeStart: nobody is asked before there are plugins, and an event that is none is an error.
func TestTellBeforeStart(t *testing.T) {
	p := &Plugins{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	pod, c := &sandbox.Pod{ID: "p"}, &sandbox.Container{ID: "c"}
	if err := p.Tell(t.Context(), sandbox.PluginRunPod, pod, nil); err != nil {
		t.Error(err)
	}
	if _, _, err := p.Create(t.Context(), pod, c); err != nil {
		t.Error(err)
	}
	change := &workload.Resources{CPUShares: 2}
	if got, err := p.Update(t.Context(), pod, c, change); err != nil || got != change {
		t.Errorf("Update before the start = %v, %v; want it unchanged", got, err)
	}
	p.started.Store(true)
	p.cfg.Spec = nil
	if err := p.Tell(t.Context(), "NoSuchEvent", pod, nil); err == nil || errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("an event that there is not = %v; want an error", err)
	}
}
