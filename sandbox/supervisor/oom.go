package supervisor

import (
	"syscall"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
)

// oomCount is how many processes the OOM killer has killed in a cgroup, by its file with the counter.
func oomCount(path string) (n uint64, ok bool) {
	if path == "" {
		return 0, false
	}
	n, err := cgroupfile.ReadOOMKills(path)
	return n, err == nil
}

// oomKilled tells whether the OOM killer struck in the cgroup of a process that has ended. systemd removes a scope's
// cgroup as soon as it is empty, which may be before this can read its counter. Then the counter of the group above, which
// counts for all below it, has the answer: it has grown since the launch, by a kill that no other process has
// been found to be.
func (s *Supervisor) oomKilled(p *process, code int) bool {
	if n, ok := oomCount(p.launch.OOMFile); ok {
		s.oomSettle(p, n > 0)
		return n > 0
	}
	n, ok := oomCount(p.launch.OOMParent)
	s.mu.Lock()
	killed := ok && n > p.oomBase && code == 128+int(syscall.SIGKILL) && !p.killed
	s.mu.Unlock()
	s.oomSettle(p, killed)
	return killed
}

// oomSettle keeps a kill that is accounted for from being taken for one of another process of the same pod.
func (s *Supervisor) oomSettle(p *process, killed bool) {
	if !killed || p.launch.OOMParent == "" {
		return
	}
	n, ok := oomCount(p.launch.OOMParent)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.processes {
		if other != p && other.exit == nil && other.launch.OOMParent == p.launch.OOMParent {
			other.oomBase = n
		}
	}
}
