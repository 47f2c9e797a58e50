// Package initproc is the container init: one linear program from the message
// of package initmsg to execve(2). It runs with the host's rights inside the
// new namespaces, so the order of its steps is its security: each step says
// why it stands where it stands.
//
// It runs on the main thread only. The Go runtime's other threads do nothing
// but the runtime's own work, keep the rights, namespaces and cgroup that the
// process was cloned with, and are ended by the execve of the main thread, which
// is the thread group leader, so that the workload keeps the process id and gets
// exactly the main thread's credentials, seccomp filters and namespaces
// (execve(2), "all threads other than the calling thread are destroyed").
//
// It needs Linux 5.12 (mount_setattr).
package initproc

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// Namespaces, credentials, filters and the cgroup (v1) belong to a thread:
// every step has to be done by the one that calls execve.
func init() { runtime.LockOSThread() }

// setup is what the steps share.
type setup struct {
	m     *initmsg.Message
	sync  int    // write end to the parent
	proc  int    // private procfs, see openProc
	null  int    // the host's /dev/null, see openNull
	root  int    // the root of the workload: staged, then pivoted to
	umask int    // inherited umask, given back to the workload
	stage string // the step that is being done, for the report

	joins    []int // opened namespaces, as Message.Join
	listener int   // connected to Process.SeccompListener
	empty    int   // an empty read-only tmpfs that covers masked directories

	fresh         freshDir  // see mountInFresh
	nodes         nodeDir   // see nodeParent
	readonlyAtEnd []int     // mounts, see Mount.ReadonlyAtEnd
	server        *server   // of a fork of it, else nil
	last          *lastStep // see Message.PIDFile, else nil

	ahead   *standby // what was made ready for this message, or nil
	sources []source // of Message.Mounts, see gather
}

// messageBuffer is what a message is read into: memory that the server of inits has not touched, so that its forks have
// nothing to copy.
var (
	messageBuffer [16 << 10]byte
	messageSpace  initmsg.Space
)

// maxFD is the highest number that a descriptor could have.
const maxFD = 1<<31 - 1

// Main does what the message on descriptor 3 says and does not return.
func Main() {
	s := newSetup(nil)
	err := s.run()
	if err == nil { // this is a fork of the server
		s = newSetup(s.server)
		err = s.run()
	}
	s.report(initmsg.KindError, err)
	syscall.Exit(1)
}

func newSetup(of *server) *setup {
	s := &setup{
		sync: initmsg.FDSync, stage: "start", proc: -1, null: -1, root: -1, listener: -1, empty: -1, server: of,
		fresh: freshDir{fd: -1}, nodes: nodeDir{fd: -1},
	}
	if of != nil {
		s.proc, s.ahead = of.proc, of.ahead
	}
	return s
}

// report sends one report. Nobody may be left to read it, which must not
// change what the init does.
func (s *setup) report(kind initmsg.Kind, err error) {
	r := initmsg.Report{Kind: kind, Stage: s.stage}
	if err != nil {
		r.Errno, r.Text = errnoOf(err), err.Error()
	}
	b := initmsg.EncodeReport(&r)
	for {
		if _, err := unix.Write(s.sync, b); err != unix.EINTR {
			return
		}
	}
}

// run returns an error, or nil in a fork of the server; a workload is executed and never returns.
func (s *setup) run() error {
	// First of all: a process of a joined PID namespace must not be able to
	// ptrace the init or to open its /proc/PID/fd, mem and root while it holds
	// host rights and host descriptors (CVE-2016-9962, prctl(2)
	// PR_SET_DUMPABLE). execve of the workload makes the process dumpable again.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return wrap("prctl PR_SET_DUMPABLE", "", err)
	}
	// The parent may have given this process an effective group of its own, so
	// that the kernel made it not dumpable at execve already (sys.SpawnAttr.Secret).
	// In a user namespace neither of its groups need be mapped.
	if unix.Getgid() != 0 || unix.Getegid() != 0 {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); errno != 0 {
			return wrap("setresgid", "", errno)
		}
	}
	// Whatever the parent has leaked: nothing but stdio survives execve
	// (CVE-2024-21626). Files for the workload lose the flag at the very end.
	if err := unix.CloseRange(3, maxFD, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return wrap("close_range", "", needs("5.11", err))
	}
	data, err := readAll(initmsg.FDMessage, messageBuffer[:])
	if err != nil {
		return wrap("read the message", "", err)
	}
	if s.m, err = messageSpace.Decode(data); err != nil {
		return err
	}
	if err := s.checkFiles(); err != nil {
		return err
	}
	if err := s.makeNamespace(); err != nil {
		return err
	}
	if s.sync, err = s.above(s.sync); err != nil {
		return err
	}
	// Modes of what is created are what the message says. The workload gets
	// its own umask, or the inherited one.
	s.umask = unix.Umask(0)
	switch s.m.Mode {
	case initmsg.ModeContainer:
		return s.container()
	case initmsg.ModeExec:
		return s.exec()
	case initmsg.ModePodInit:
		return s.podInit()
	case initmsg.ModeServer:
		if s.server == nil {
			return s.serve()
		}
	}
	return text("message: unknown mode")
}

// container is the whole way of a container's first process.
func (s *setup) container() error {
	if err := s.enter(); err != nil {
		return err
	}
	if s.m.Root != nil {
		if err := s.rootfs(); err != nil {
			return err
		}
	} else if err := s.openRoot(); err != nil {
		return err
	}
	return s.workload()
}

// exec joins a container and becomes another process of it. The cgroup and the
// namespaces come first, so that from the moment the container can see this
// process it is limited like the container; that it is not dumpable keeps
// the container's processes out of it (CVE-2016-9962).
func (s *setup) exec() error {
	if s.m.Root != nil {
		return text("message: exec cannot have a root")
	}
	if err := s.enter(); err != nil {
		return err
	}
	if f := s.m.ExecRoot; f != nil {
		if err := chrootTo(int(file(*f))); err != nil {
			return err
		}
	}
	if err := s.openRoot(); err != nil {
		return err
	}
	if s.m.Process.Terminal {
		s.stage = "terminal"
		if err := s.openTerminal(); err != nil {
			return err
		}
	}
	return s.workload()
}

// openRoot opens the root that the joined mount namespace has.
func (s *setup) openRoot() (err error) {
	s.root, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return wrap("open", "/", err)
}

// enter does all that needs the host's mount namespace, and then joins and
// makes the other namespaces.
func (s *setup) enter() error {
	s.stage = "cgroup"
	// Before the cgroup namespace is made, whose root is the cgroup of this
	// moment (cgroup_namespaces(7)), and before the namespaces are joined, so
	// that no limit is late.
	for _, path := range s.m.CgroupTasks {
		if err := writeFile(path, "0"); err != nil {
			return wrap("write", path, err)
		}
	}
	s.stage = "namespaces"
	// Paths are the host's, so they are all opened before any is joined.
	if err := s.openJoins(); err != nil {
		return err
	}
	s.stage = "seccomp listener"
	if err := s.connectListener(); err != nil {
		return err
	}
	s.stage = "procfs"
	// Before anything of the container is mounted: the container's /proc may be
	// a fake, and writing LSM labels or sysctls into a fake leaves the
	// workload unconfined or writes to a file of the attacker's choice
	// (CVE-2019-16884, CVE-2025-52881).
	if err := s.openProc(); err != nil {
		return err
	}
	s.stage = "namespaces"
	if err := s.joinPID(); err != nil {
		return err
	}
	if err := s.join(); err != nil {
		return err
	}
	if err := s.unshare(); err != nil {
		return err
	}
	s.stage = "hostname"
	if err := s.setNames(); err != nil {
		return err
	}
	s.stage = "oom_score_adj"
	// While root: lowering it needs CAP_SYS_RESOURCE (proc(5)).
	if err := s.setOOMScore(); err != nil {
		return err
	}
	if s.m.HookFile != nil {
		return nil // see rootfs: a network device that a name is about may still have to come
	}
	return s.setSysctls()
}

// checkFiles makes sure that every file index of the message is an open
// descriptor, so that a parent's mistake is an error and not another file.
func (s *setup) checkFiles() error {
	m := s.m
	p := &m.Process
	err := checkFile(m.StartFile)
	for _, f := range [...]*int32{m.HookFile, m.PIDFile, m.ExecRoot} {
		if f != nil && err == nil {
			err = checkFile(*f)
		}
	}
	if m.PIDFile != nil && err == nil {
		err = checkFile(*m.PIDFile + 1)
	}
	for i := 0; i < len(m.Join) && err == nil; i++ {
		err = checkFile(m.Join[i].File)
	}
	if m.Root != nil && err == nil {
		err = checkFile(m.Root.File)
	}
	for i := 0; i < len(m.Mounts) && err == nil; i++ {
		if err = checkFile(m.Mounts[i].File); err == nil {
			err = checkFile(m.Mounts[i].IDMap - 1)
		}
	}
	if p.Terminal && err == nil {
		err = checkFile(p.ConsoleFile)
	}
	for i := uint32(0); i < p.ExtraFiles && err == nil; i++ {
		err = checkFile(p.FirstExtra + int32(i))
	}
	return err
}

func checkFile(f int32) error {
	if f == initmsg.NoFile {
		return nil
	}
	if f < 0 {
		return text("message: negative file index")
	}
	if _, err := unix.FcntlInt(file(f), unix.F_GETFD, 0); err != nil {
		return wrap("file of the message", itoa(int(f)), err)
	}
	return nil
}
