package sandbox

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestGivenUp: a call whose caller gives up leaves no goroutine and no descriptor once its work has ended, and says that it
// was given up.
func TestGivenUp(t *testing.T) {
	h := newHost(t)
	h.perSupervisor = 16 // no spare one is started meanwhile
	m := h.manager()
	pod, ctr := running(t, m, "stays")
	if _, err := m.ExecSync(t.Context(), ctr, []string{"true"}, 0); err != nil { // what the first one makes for all stays
		t.Fatal(err)
	}
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before, goroutines := descriptors(), goleak.IgnoreCurrent()
	h.hang, h.hanging = make(chan struct{}), make(chan struct{}, 1)
	ended, cancelled := context.WithCancel(t.Context())
	cancelled()
	run := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := m.RunPod(ctx, podConfig("slow"))
		run <- err
	}()
	<-h.hanging
	if err := <-run; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("RunPod with a network that hangs = %v; want deadline exceeded", err)
	}
	for name, call := range map[string]func() error{
		"RunPod":           func() error { _, err := m.RunPod(ended, podConfig("slow")); return err },
		"ExecSync":         func() error { _, err := m.ExecSync(ended, ctr, []string{"true"}, 0); return err },
		"StopContainer":    func() error { return m.StopContainer(ended, ctr, time.Minute) },
		"MeasurePod":       func() error { _, err := m.MeasurePod(ended, pod); return err },
		"MeasureContainer": func() error { _, err := m.MeasureContainer(ended, ctr); return err },
	} {
		begin := time.Now()
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s of one who has gone = %v; want canceled", name, err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s of one who has gone took %s", name, took)
		}
	}
	close(h.hang)
	id, err := m.RunPod(t.Context(), podConfig("slow"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.RemovePod(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	settle(t, goroutines)
	for range 100 {
		if descriptors() <= before {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%d descriptors are open; want %d as before", descriptors(), before)
}
