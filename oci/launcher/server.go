package launcher

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// Server forks inits from one that is already started (see initproc's server). Without it, or where it cannot
// serve, each is started anew. The zero value does that; Warm starts the server.
type Server struct {
	// Lost is called, in a goroutine of its own, when a server is found to have ended. It may be nil.
	Lost func()

	mu       sync.Mutex
	conn     *sys.Caller          // nil without a server
	standbys map[uint64]*standby  // by clone flags
	last     map[uint64]time.Time // see expects
	quiet    sync.Mutex           // see pipe
}

// pipe makes the pipe for c's reports. To be woken by each of them would cost the init time just before it executes the
// workload; where nobody else does, a thread waits in the kernel for the last one to be over. It is one for all, since a thread
// that a Go program has had once stays.
func (s *Server) pipe(c *Child) (w *os.File, err error) {
	if s == nil || !s.quiet.TryLock() {
		c.reports, w, err = sys.Pipe(false)
		return w, err
	}
	if c.reports, w, err = sys.QuietPipe(); err != nil {
		s.quiet.Unlock()
		return nil, err
	}
	c.quiet = &s.quiet
	return w, nil
}

// warmTimeout bounds the wait for a server that has just been started.
const warmTimeout = 5 * time.Second

// Warm starts a server of the program init, unless there is one. Its processes are the calling process's children. They end with the
// connection.
func (s *Server) Warm(init *os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		return nil
	}
	conn, err := startServer(init)
	if err != nil {
		return fmt.Errorf("start a server of inits: %w", err)
	}
	s.conn = conn
	return nil
}

// Close ends the server.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
	s.releaseAll()
}

func startServer(init *os.File) (_ *sys.Caller, err error) {
	encoded, err := initmsg.Encode(&initmsg.Message{
		Mode: initmsg.ModeServer, StartFile: initmsg.NoFile,
		Process: initmsg.Process{ConsoleFile: initmsg.NoFile, FirstExtra: initmsg.NoFile},
	})
	if err != nil {
		return nil, err
	}
	message, err := sys.Memfd("message", encoded)
	if err != nil {
		return nil, err
	}
	defer message.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	conn, theirs, err := sys.NewCaller()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	_, pidfd, err := sys.Spawn(sys.SpawnAttr{
		Exe: init, Args: []string{"cri-shim-init"}, Env: initmsg.Env(),
		Files: []*os.File{null, null, null, message, theirs}, Secret: true,
	})
	if err != nil {
		return nil, err
	}
	defer pidfd.Close()
	theirs.Close()
	if err := conn.SetTimeout(warmTimeout); err != nil {
		return nil, err
	}
	pid, err := reply(conn)
	if err != nil {
		sys.PidfdSignal(pidfd, syscall.SIGKILL)
		return nil, err
	}
	if again, err := reply(conn); err != nil || again != pid {
		if f, openErr := sys.PidfdOpen(pid); openErr == nil {
			sys.PidfdSignal(f, syscall.SIGKILL)
			f.Close()
		}
		return nil, fmt.Errorf("process %d does not serve: %w", pid, err)
	}
	return conn, conn.SetTimeout(0)
}

// reply reads an answer: a process ID or an errno.
func reply(conn *sys.Caller) (int, error) {
	var buf [512]byte
	n, err := conn.Recv(buf[:])
	if err != nil {
		return 0, err
	}
	if n != initmsg.ForkReplySize {
		report, _, err := initmsg.DecodeReport(buf[:n])
		if err == nil && report != nil {
			err = report
		}
		return 0, err
	}
	r, err := initmsg.DecodeForkReply(buf[:n])
	if err == nil && r.Errno != 0 {
		err = syscall.Errno(r.Errno)
	}
	return int(r.PID), err
}

// forkable says whether a server could start it: what is left to sys.Spawn is done on a thread before the clone, or
// needs the parent's hand right after it.
func forkable(a sys.SpawnAttr) bool {
	return a.CloneFlags&(sys.CloneNewUser|sys.CloneNewTime) == 0 && a.UserNamespace == nil && a.TimeNamespace == nil && len(a.Affinity) == 0
}

// spawn is sys.Spawn of an init, by the server where it can. The caller keeps its children from being reaped meanwhile.
func (s *Server) spawn(a sys.SpawnAttr) (int, *os.File, error) {
	r := initmsg.ForkRequest{CloneFlags: a.CloneFlags, Files: len(a.Files), Cgroup: a.Cgroup != nil, PIDNamespace: a.PIDNamespace != nil}
	if s == nil || r.Descriptors() > initmsg.ServerFloor || !forkable(a) {
		return sys.Spawn(a)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return sys.Spawn(a)
	}
	files := append(make([]*os.File, 0, r.Descriptors()), a.Files...)
	for _, f := range []*os.File{a.Cgroup, a.PIDNamespace} {
		if f != nil {
			files = append(files, f)
		}
	}
	if pid, pidfd, ok := s.take(&a, &r, files); ok {
		return pid, pidfd, nil
	}
	pid, err := s.ask(&r, files)
	if err == errNotSent {
		return sys.Spawn(a)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("clone %s: %w", a.Args[0], err)
	}
	pidfd, err := sys.PidfdOpen(pid)
	if err != nil {
		syscall.Kill(pid, syscall.SIGKILL) // a child that has not been reaped
		return 0, nil, err
	}
	return pid, pidfd, nil
}

// errNotSent says that the server has forked nothing.
var errNotSent = errors.New("the server of inits has ended")

// ask makes a request; the lock is held.
func (s *Server) ask(r *initmsg.ForkRequest, files []*os.File) (pid int, err error) {
	if s.conn.Send(r.Append(nil), files) != nil {
		s.drop()
		return 0, errNotSent
	}
	pid, err = reply(s.conn)
	if _, errno := err.(syscall.Errno); err != nil && !errno {
		s.drop()
		err = fmt.Errorf("the server of inits is gone: %w", err)
	}
	return pid, err
}

func (s *Server) drop() {
	s.conn.Close()
	s.conn = nil
	s.releaseAll()
	if s.Lost != nil {
		go s.Lost()
	}
}
