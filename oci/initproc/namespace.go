package initproc

import (
	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

var namespaceNames = []struct {
	flag uint64
	name string
}{
	{unix.CLONE_NEWNS, "mount"}, {unix.CLONE_NEWCGROUP, "cgroup"}, {unix.CLONE_NEWUTS, "uts"},
	{unix.CLONE_NEWIPC, "ipc"}, {unix.CLONE_NEWUSER, "user"}, {unix.CLONE_NEWPID, "pid"},
	{unix.CLONE_NEWNET, "network"}, {unix.CLONE_NEWTIME, "time"},
}

func namespaceName(flag uint64) string {
	for _, n := range namespaceNames {
		if n.flag == flag {
			return n.name
		}
	}
	return "unknown"
}

// openJoins opens the namespaces to be joined.
func (s *setup) openJoins() error {
	s.joins = make([]int, len(s.m.Join))
	for i, n := range s.m.Join {
		switch n.Type {
		case unix.CLONE_NEWUSER:
			// setns(2): a multithreaded process may not change user namespace.
			return text("join the user namespace: a threaded process cannot, it has to be joined before the init is started")
		case unix.CLONE_NEWPID, unix.CLONE_NEWTIME:
			return text("join the " + namespaceName(n.Type) + " namespace: it only takes effect for children, the parent has to join it")
		}
		if n.File != initmsg.NoFile {
			s.joins[i] = int(file(n.File))
			continue
		}
		fd, err := unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return wrap("open namespace", n.Path, err)
		}
		s.joins[i] = fd
	}
	return nil
}

// join enters the namespaces in the message's order. The type is given to
// setns(2), which refuses a descriptor of another kind.
func (s *setup) join() error {
	for i, n := range s.m.Join {
		if n.Type == unix.CLONE_NEWNS && s.m.Root != nil {
			continue // see enterDetached
		}
		if err := s.joinOne(i); err != nil {
			return err
		}
	}
	return nil
}

func (s *setup) joinOne(i int) error {
	n := &s.m.Join[i]
	defer unix.Close(s.joins[i])
	if n.Type == unix.CLONE_NEWNS {
		// setns(2): not while root and cwd are shared with other threads.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return wrap("unshare CLONE_FS", "", err)
		}
	}
	return wrap("join the "+namespaceName(n.Type)+" namespace", n.Path, unix.Setns(s.joins[i], int(n.Type)))
}

func (s *setup) unshare() error {
	flags := s.m.Unshare
	for _, f := range []uint64{unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWTIME} {
		if flags&f != 0 {
			return text("unshare the " + namespaceName(f) + " namespace: the parent has to clone into it")
		}
	}
	if flags != 0 {
		if err := unix.Unshare(int(flags)); err != nil {
			return wrap("unshare", "namespaces", err)
		}
	}
	return nil
}

func (s *setup) setNames() error {
	if n := s.m.Hostname; n != "" {
		if err := unix.Sethostname([]byte(n)); err != nil {
			return wrap("sethostname", n, err)
		}
	}
	if n := s.m.Domainname; n != "" {
		if err := unix.Setdomainname([]byte(n)); err != nil {
			return wrap("setdomainname", n, err)
		}
	}
	return nil
}
