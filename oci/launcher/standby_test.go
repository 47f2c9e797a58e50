package launcher

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// standing waits for the init that stands by for processes with flags, and returns its PID.
func (s *Server) standing(t *testing.T, flags uint64) int {
	t.Helper()
	for range 1000 {
		s.mu.Lock()
		n := s.standbys[flags]
		ready := n != nil && n.ready
		s.mu.Unlock()
		if ready {
			return n.pid
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("no init stands by within 5 s")
	return 0
}

// TestStandby: a process that a standby becomes is like one that was forked, and started anew; without it all goes on.
func TestStandby(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("starts processes that are not dumpable (setresgid): needs root")
	}
	init := openInit(t)
	p, out := process(t, init, nil)
	want := runProcess(t, p, out)
	s := &Server{}
	if err := s.Warm(init); err != nil {
		t.Fatal(err)
	}
	run := func(what string, by int) {
		t.Helper()
		p, out := process(t, init, s)
		c, err := Start(p)
		p.Stdio[1].Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Executed(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, _ := out.Read(buf)
		if got := string(buf[:max(n-1, 0)]); got != want {
			t.Errorf("%s: %q; want %q", what, got, want)
		}
		if by != 0 && c.PID != by {
			t.Errorf("%s: process %d; want the one that stood by, %d", what, c.PID, by)
		}
		c.Pidfd.Close()
		reap(c.PID)
	}
	run("forked", 0)
	run("forked again", 0)
	first := s.standing(t, 0)
	run("stood by", first)
	if second := s.standing(t, 0); second == first {
		t.Error("nobody stands by for the third")
	}

	// For other namespaces there is none.
	p, _ = process(t, init, s)
	p.CloneFlags = sys.CloneNewNS
	c, err := Start(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Executed(); err != nil || c.PID == s.standing(t, 0) {
		t.Errorf("Executed = %v, process %d; want one of its own", err, c.PID)
	}
	c.Pidfd.Close()
	reap(c.PID)
	s.standing(t, sys.CloneNewNS)

	// One that has died is missed by nobody.
	dead := s.standing(t, 0)
	syscall.Kill(dead, syscall.SIGKILL)
	reap(dead)
	run("after it died", 0)

	// What nothing comes for ends.
	pid := s.standing(t, 0)
	s.mu.Lock()
	s.standbys[0].idle.Reset(0)
	s.mu.Unlock()
	wantEnd(t, "idle", pid)
	pid = s.standing(t, sys.CloneNewNS)
	s.Close()
	wantEnd(t, "without the server", pid)
	for pid := range children(t) {
		reap(pid)
	}
}

func wantEnd(t *testing.T, what string, pid int) {
	t.Helper()
	timer := time.AfterFunc(10*time.Second, func() { syscall.Kill(pid, syscall.SIGKILL) })
	defer timer.Stop()
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil || !ws.Exited() {
		t.Errorf("%s: status %v, %v; want its own end", what, ws, err)
	}
}

// TestServerEndsWithAStandbyInTheMaking: nothing of it is left, whenever that is.
func TestServerEndsWithAStandbyInTheMaking(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("starts processes that are not dumpable (setresgid): needs root")
	}
	init := openInit(t)
	for i := range 12 {
		s := &Server{}
		if err := s.Warm(init); err != nil {
			t.Fatal(err)
		}
		p, out := process(t, init, s)
		p.CloneFlags = sys.CloneNewNS
		runProcess(t, p, out)
		time.Sleep(standbyDelay + time.Duration(i)*200*time.Microsecond)
		s.Close()
		for {
			if _, err := syscall.Wait4(-1, nil, 0, nil); err == syscall.ECHILD {
				break
			}
		}
	}
}

// TestExpects: what comes once in a while has nobody standing by for it.
func TestExpects(t *testing.T) {
	s, now := &Server{}, time.Now()
	for i, tt := range []struct {
		flags uint64
		after time.Duration
		want  bool
	}{
		{sys.CloneNewNS | sys.CloneNewPID, 0, true},
		{0, 0, false},
		{0, standbyIdle - 1, true},
		{0, standbyIdle, false},
		{sys.CloneNewNS | sys.CloneNewPID, time.Hour, true},
	} {
		now = now.Add(tt.after)
		if got := s.expects(tt.flags, now); got != tt.want {
			t.Errorf("%d: expects(%#x) = %v; want %v", i, tt.flags, got, tt.want)
		}
	}
}
