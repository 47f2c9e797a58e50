package sandbox

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Everything at once on a few pods: what is left at the end is nothing, whatever was
// interrupted, and no goroutine or descriptor stays. The manager is closed and another
// one started in the middle of it.
func TestStress(t *testing.T) {
	h := newHost(t)
	h.script, h.quiet = "exec sleep 1000", true
	goroutines, fds := runtime.NumGoroutine(), openFiles(t)
	s := &stress{h: h, m: h.manager()}
	for round := range 3 {
		ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
		var workers sync.WaitGroup
		for w := range 12 {
			workers.Go(func() { s.work(ctx, rand.New(rand.NewPCG(uint64(round), uint64(w)))) })
		}
		time.Sleep(time.Second)
		if round < 2 { // a daemon restart amid operations
			s.swap.Lock()
			s.m.Close()
			s.m = h.manager()
			s.swap.Unlock()
		}
		workers.Wait()
		stop()
	}
	m := s.m
	for _, p := range m.recorded() {
		must(t, m.RemovePod(t.Context(), p.ID))
	}
	m.reconcile(t.Context())
	eventually(t, "nothing left", func() bool { return len(h.residue()) == 0 })
	eventually(t, "supervisors hold nothing", func() bool {
		for _, c := range m.pool.all() {
			if held, err := c.list(t.Context()); err != nil || len(held) > 0 {
				return false
			}
		}
		return true
	})
	m.mu.Lock()
	if n := len(m.inits) + len(m.execs) + len(m.pods) + len(m.ctrs); n != 0 {
		t.Errorf("inits %d, execs %d, pods %d, ctrs %d; want none", len(m.inits), len(m.execs), len(m.pods), len(m.ctrs))
	}
	m.mu.Unlock()
	m.Close()
	if left := readDir(filepath.Join(h.dir, "state/supervisors")); len(left) != 0 {
		t.Errorf("supervisors left: %q", left)
	}
	const stay = 3 + 1 // each manager's program until the test's end; the private procfs
	for range 300 {
		if runtime.NumGoroutine() <= goroutines && len(openFiles(t)) <= len(fds)+stay {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	stacks := make([]byte, 1<<20)
	t.Errorf("goroutines: before %d, now %d; files: before %q, now %q\n%s", goroutines, runtime.NumGoroutine(), fds, openFiles(t),
		stacks[:runtime.Stack(stacks, true)])
}

type stress struct {
	h    *host
	swap sync.RWMutex
	m    *Manager
}

// work does one random thing after another; errors are part of it.
func (s *stress) work(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		s.swap.RLock()
		m := s.m
		s.swap.RUnlock()
		pod, ctr := "", ""
		if all := m.Pods(); len(all) > 0 {
			pod = all[r.IntN(len(all))].ID
		}
		if all := m.Containers(); len(all) > 0 {
			ctr = all[r.IntN(len(all))].ID
		}
		op, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(300)+1)*time.Millisecond)
		switch n := r.IntN(20); {
		case n < 4:
			m.RunPod(op, podConfig(fmt.Sprint("p", r.IntN(5))))
		case n < 8:
			m.CreateContainer(op, pod, containerConfig(fmt.Sprint("c", r.IntN(40))))
		case n < 12:
			m.StartContainer(op, ctr)
		case n < 14:
			m.ExecSync(op, ctr, []string{"exec sleep 0." + fmt.Sprint(r.IntN(4))}, time.Duration(r.IntN(200)+1)*time.Millisecond)
		case n < 15:
			m.StopContainer(op, ctr, time.Duration(r.IntN(50))*time.Millisecond)
		case n < 17:
			m.RemoveContainer(op, ctr)
		case n < 18:
			m.StopPod(op, pod)
		case n < 19:
			m.RemovePod(op, pod)
		default:
			m.reconcile(op)
		}
		cancel()
	}
}

// openFiles lists this process's descriptors by what they are.
func openFiles(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	found := map[string]bool{}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.Contains(to, "/fd") {
			found[e.Name()+" "+to] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}
