package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-shim/cri-shim/sandbox/api"
)

// A scope's cgroup may be gone before its counter is read; the group above then tells whom the OOM killer has hit.
func TestOOMKilledOfARemovedGroup(t *testing.T) {
	dir := t.TempDir()
	parent, own := filepath.Join(dir, "parent"), filepath.Join(dir, "own")
	count := func(path string, n int) {
		t.Helper()
		if err := os.WriteFile(path, fmt.Appendf(nil, "oom 9\noom_kill %d\n", n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	launch := api.Launch{OOMFile: own, OOMParent: parent}
	for _, tc := range []struct {
		name                  string
		before, after, inside int // inside: the group's own counter; -1: it is gone
		code                  int
		killed                bool
		want                  bool
	}{
		{"counted", 0, 0, 1, 1, false, true},
		{"not counted", 0, 5, 0, 137, false, false},
		{"gone, killed", 3, 4, -1, 137, false, true},
		{"gone, none was killed", 3, 3, -1, 137, false, false},
		{"gone, by ourselves", 3, 4, -1, 137, true, false},
		{"gone, ended by itself", 3, 4, -1, 1, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			count(parent, tc.after)
			os.Remove(own)
			if tc.inside >= 0 {
				count(own, tc.inside)
			}
			p := &process{id: "a", launch: launch, oomBase: uint64(tc.before), killed: tc.killed}
			s := &Supervisor{processes: map[string]*process{"a": p}}
			if got := s.oomKilled(p, tc.code); got != tc.want {
				t.Errorf("oomKilled = %t; want %t", got, tc.want)
			}
		})
	}

	t.Run("another's kill", func(t *testing.T) {
		os.Remove(own)
		count(parent, 0)
		a, b := &process{id: "a", launch: launch}, &process{id: "b", launch: launch}
		s := &Supervisor{processes: map[string]*process{"a": a, "b": b}}
		count(parent, 1)
		if !s.oomKilled(a, 137) {
			t.Error("oomKilled(a) = false; want true")
		}
		if s.oomKilled(b, 137) {
			t.Error("oomKilled(b) = true; the only kill was a")
		}
	})
}
