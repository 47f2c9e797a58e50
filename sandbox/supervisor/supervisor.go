// Package supervisor is the parent and subreaper of the processes of some pods. It
// writes their logs, feeds attached clients, records how they ended, and
// outlives the daemon. It is kept small: many of them run on a node.
package supervisor

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/idle"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci/launcher"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// Config is what a supervisor is started with.
type Config struct {
	Listener *os.File // listening SOCK_SEQPACKET socket
	Init     *os.File // the init program
	InitID   string   // names its build
	Release  string
	Log      *slog.Logger
}

// Supervisor holds processes.
type Supervisor struct {
	cfg Config

	mu        sync.Mutex
	processes map[string]*process               // by ID
	byPID     map[int]*process                  // running ones
	pending   map[string]*pending               // launches that are not yet processes, by ID
	commands  map[int]chan<- syscall.WaitStatus // running calls of other runtimes, by PID
	unknown   int                               // launches under way whose processes are not known yet: they must not be reaped before
	sessions  map[*session]struct{}
	quit      chan struct{}
	quitting  bool
	quitOnce  sync.Once
	trim      *idle.Trimmer
	inits     launcher.Server
}

// trimAfter is how long a supervisor is quiet before it gives memory back.
const trimAfter = time.Second

// Run serves until it is told to quit.
func Run(cfg Config) error {
	if err := errors.Join(sys.Subreaper(), sys.NotDumpable()); err != nil {
		return err
	}
	s := &Supervisor{
		cfg:       cfg,
		processes: map[string]*process{},
		byPID:     map[int]*process{},
		pending:   map[string]*pending{},
		commands:  map[int]chan<- syscall.WaitStatus{},
		sessions:  map[*session]struct{}{},
		quit:      make(chan struct{}),
		trim:      idle.NewTrimmer(trimAfter),
	}
	defer s.trim.Stop()
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	go s.accept()
	s.inits.Lost = s.warm
	go s.warm()
	for {
		select {
		case <-children:
			s.reap()
		case <-s.quit:
			return nil
		}
	}
}

// warm gets a server of inits ready. Without one each start takes longer, and that is all.
func (s *Supervisor) warm() {
	if err := s.inits.Warm(s.cfg.Init); err != nil {
		s.cfg.Log.Warn("inits are started one by one", "err", err)
	}
}

// acceptPause is the wait after a connection could not be accepted. A supervisor that gave
// up would be out of reach for good, with all that it holds.
const acceptPause = 100 * time.Millisecond

func (s *Supervisor) accept() {
	for {
		conn, err := sys.Accept(s.cfg.Listener)
		if err != nil {
			s.cfg.Log.Error("accept", "err", err)
			time.Sleep(acceptPause) // without descriptors or memory now, it may have some later
			continue
		}
		ses := newSession(s, conn)
		s.mu.Lock()
		s.sessions[ses] = struct{}{}
		s.mu.Unlock()
		go ses.serve()
	}
}

// reap collects all ended children. The lock is held from clone to registration,
// so a process cannot end before it is known. One that another runtime makes comes to us as an orphan, perhaps ended
// already: as long as such are awaited, only known children are collected.
func (s *Supervisor) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.unknown == 0 {
		r, ok := sys.Reap()
		if !ok {
			return
		}
		s.reaped(r.PID, r.Status)
	}
	for _, pids := range [...]iter.Seq[int]{maps.Keys(s.byPID), maps.Keys(s.commands)} {
		for pid := range pids {
			if status, ok := sys.ReapChild(pid); ok {
				s.reaped(pid, status)
			}
		}
	}
}

// reaped passes on how a child ended; the lock is held.
func (s *Supervisor) reaped(pid int, status syscall.WaitStatus) {
	if done := s.commands[pid]; done != nil {
		delete(s.commands, pid)
		done <- status // it has room
		return
	}
	p := s.byPID[pid]
	if p == nil {
		return // an orphan that came to us as subreaper
	}
	delete(s.byPID, pid)
	go s.ended(p, status)
}

// pending is a launch that was asked for and is not a process yet. gone is closed when it is called off.
type pending struct {
	cancelled bool
	gone      chan struct{}
}

// expect notes a launch in the order of the requests, before anything of it runs side by
// side with them: a SIGKILL that follows it finds it.
func (s *Supervisor) expect(id string) *pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &pending{gone: make(chan struct{})}
	if s.pending[id] == nil {
		s.pending[id] = l
	}
	return l
}

func (s *Supervisor) expected(id string, l *pending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[id] == l {
		delete(s.pending, id)
	}
}

// signal signals a process, and with a SIGKILL to its family what it has started. A launch that is no process yet is called
// off by SIGKILL.
func (s *Supervisor) signal(id string, n int, family bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.processes[id]; p != nil {
		p.killed = p.killed || n == int(syscall.SIGKILL)
		if family && n == int(syscall.SIGKILL) {
			return sys.KillFamily(p.pidfd, p.pid)
		}
		return p.signal(n)
	}
	if l := s.pending[id]; l != nil && n == int(syscall.SIGKILL) {
		if !l.cancelled {
			l.cancelled = true
			close(l.gone)
		}
		return nil
	}
	return notFound(id)
}

func notFound(id string) error {
	return &api.Error{Stage: "lookup", Text: fmt.Sprintf("no process %q", id), NotFound: true}
}

// lookup finds a process; it is an *api.Error with NotFound if there is none.
func (s *Supervisor) lookup(id string) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.processes[id]
	if p == nil {
		return nil, notFound(id)
	}
	return p, nil
}

const listPage = 100

func (s *Supervisor) list(after string) (page []api.Process, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.processes {
		if p.id > after && p.failed == "" {
			page = append(page, api.Process{ID: p.id, Pod: p.launch.Pod, PID: p.pid, Exit: p.exit})
		}
	}
	slices.SortFunc(page, func(a, b api.Process) int { return strings.Compare(a.ID, b.ID) })
	if len(page) > listPage {
		return page[:listPage], true
	}
	return page, false
}

// forget drops an ended process.
func (s *Supervisor) forget(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.processes[id]
	if p == nil {
		return nil
	}
	if p.exit == nil {
		return &api.Error{Stage: "forget", Text: fmt.Sprintf("process %q (pid %d) still runs", id, p.pid)}
	}
	delete(s.processes, id)
	p.pidfd.Close()
	return nil
}

// stop ends the supervisor if it holds nothing that runs.
func (s *Supervisor) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.processes {
		if p.exit == nil {
			return &api.Error{Stage: "quit", Text: fmt.Sprintf("process %q (pid %d) still runs", p.id, p.pid)}
		}
	}
	if s.unknown > 0 {
		return &api.Error{Stage: "quit", Text: "a process is being launched"}
	}
	s.quitting = true
	return nil
}

// end ends Run, after stop.
func (s *Supervisor) end() { s.quitOnce.Do(func() { close(s.quit) }) }
