package launcher

import (
	"os"
	"time"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// standby is an init that was forked ahead, for the next process with the same namespaces to be made (see initproc's standby).
type standby struct {
	conn  *sys.Caller
	pid   int
	pidfd *os.File
	ready bool        // to be taken; until then it is its maker's
	idle  *time.Timer // ends it
}

const (
	// standbyDelay leaves the processors to the workload that has just been started.
	standbyDelay = 5 * time.Millisecond
	// standbyIdle is how long one is kept for nothing: an idle node pays no memory for it, and no workload seems to be
	// started earlier than by this.
	standbyIdle = 3 * time.Second
	// standbyTimeout bounds the wait for one to be ready.
	standbyTimeout = 5 * time.Second
	// maxStandbys bounds how many are kept: mostly there is one for containers and one for execs.
	maxStandbys = 2
)

// standsBy says whether one could take the place of what a describes.
func standsBy(a sys.SpawnAttr) bool {
	return a.Cgroup == nil && a.PIDNamespace == nil && forkable(a)
}

// next returns what is to be called once what a describes was executed, or was not. What is then made ready has the same
// namespaces, and was shown the message.
func (s *Server) next(a sys.SpawnAttr, message *os.File) func(executed bool) {
	nothing := func(bool) {}
	if s == nil || !standsBy(a) {
		return nothing
	}
	s.mu.Lock()
	expected := s.expects(a.CloneFlags, time.Now())
	wanted := s.wants(a.CloneFlags)
	s.mu.Unlock()
	if !expected || !wanted {
		return nothing
	}
	message, err := sys.Dup(message)
	if err != nil {
		return nothing
	}
	return func(executed bool) {
		if !executed {
			message.Close()
			return
		}
		time.AfterFunc(standbyDelay, func() {
			defer message.Close()
			s.standBy(a.CloneFlags, message)
		})
	}
}

// expects notes a process, and says whether another one is likely to come in time: of containers always, which come in groups;
// of others, the execs of probes mostly, where this one has. The lock is held.
func (s *Server) expects(flags uint64, now time.Time) bool {
	last := s.last[flags]
	if s.last == nil {
		s.last = map[uint64]time.Time{}
	}
	s.last[flags] = now
	return flags&sys.CloneNewNS != 0 || now.Sub(last) < standbyIdle
}

// wants says whether there is room for one more; the lock is held.
func (s *Server) wants(flags uint64) bool {
	return s.conn != nil && s.standbys[flags] == nil && len(s.standbys) < maxStandbys
}

// standBy makes an init stand by, unless one does. Without one the next start takes longer, and that is all.
func (s *Server) standBy(flags uint64, message *os.File) {
	next := s.forkStandby(flags)
	if next == nil {
		return
	}
	err := next.show(flags, message)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || s.standbys[flags] != next {
		next.conn.Close()
		next.pidfd.Close()
		if s.standbys[flags] == next {
			delete(s.standbys, flags)
		}
		return
	}
	next.ready = true
	next.idle = time.AfterFunc(standbyIdle, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.standbys[flags] == next {
			s.release(flags)
		}
	})
}

// forkStandby returns nil if none is wanted, or can be had.
func (s *Server) forkStandby(flags uint64) *standby {
	conn, theirs, err := sys.NewCaller()
	if err != nil {
		return nil
	}
	defer theirs.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	next := &standby{conn: conn}
	if !s.wants(flags) || s.fork(next, flags, theirs) != nil {
		conn.Close() // which ends it
		return nil
	}
	if s.standbys == nil {
		s.standbys = map[uint64]*standby{}
	}
	s.standbys[flags] = next
	return next
}

// fork has the server fork it; the lock is held.
func (s *Server) fork(next *standby, flags uint64, theirs *os.File) (err error) {
	r := initmsg.ForkRequest{CloneFlags: flags, Files: 1, Standby: true}
	if next.pid, err = s.ask(&r, []*os.File{theirs}); err != nil {
		return err
	}
	next.pidfd, err = sys.PidfdOpen(next.pid)
	return err
}

// show has it make ready for a message. That it answers says that it was alive when its pidfd was opened, and that this is
// no other process's.
func (n *standby) show(flags uint64, message *os.File) error {
	r := initmsg.ForkRequest{CloneFlags: flags, Files: 1, Standby: true}
	if err := n.conn.SetTimeout(standbyTimeout); err != nil {
		return err
	}
	if err := n.conn.Send(r.Append(nil), []*os.File{message}); err != nil {
		return err
	}
	_, err := reply(n.conn)
	return err
}

// take hands a request to the init that stands by for it, if any; the lock is held. If that has ended the socket says so, and
// nothing has happened.
func (s *Server) take(a *sys.SpawnAttr, r *initmsg.ForkRequest, files []*os.File) (pid int, pidfd *os.File, ok bool) {
	n := s.standbys[a.CloneFlags]
	if n == nil || !n.ready || !standsBy(*a) {
		return 0, nil, false
	}
	delete(s.standbys, a.CloneFlags)
	n.idle.Stop()
	defer n.conn.Close()
	if n.conn.Send(r.Append(nil), files) != nil {
		n.pidfd.Close()
		return 0, nil, false
	}
	return n.pid, n.pidfd, true
}

// release ends one, which its maker does as long as that is at work; the lock is held.
func (s *Server) release(flags uint64) {
	n := s.standbys[flags]
	delete(s.standbys, flags)
	if n.ready {
		n.idle.Stop()
		n.conn.Close()
		n.pidfd.Close()
	}
}

func (s *Server) releaseAll() {
	for flags := range s.standbys {
		s.release(flags)
	}
}
