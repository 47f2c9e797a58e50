package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// SpawnAttr says how a program is started by Spawn.
type SpawnAttr struct {
	// Exe is the program, a sealed memfd or a file. It needs no path.
	Exe *os.File
	// Path is the program in place of Exe: a script can only be executed by its path. Dir is its working directory, ""
	// the caller's. Both are for a program that joins nothing.
	Path, Dir string
	Args      []string
	Env       []string
	// Files become descriptors 0, 1, 2, …
	Files      []*os.File
	CloneFlags uint64 // CLONE_NEW…
	// Cgroup is a cgroup v2 directory to be cloned into (CLONE_INTO_CGROUP), or nil.
	Cgroup *os.File
	// PIDNamespace is a pidfd (or a namespace file) whose PID namespace the child is born into, or nil.
	PIDNamespace *os.File
	// UserNamespace and TimeNamespace are entered before the clone, so that new namespaces belong to the former; the
	// program is its root. nil leaves this process's own.
	UserNamespace, TimeNamespace *os.File
	// TimeOffsets are lines for /proc/PID/timens_offsets (time_namespaces(7)), of a time namespace that CloneFlags make. It
	// belongs to UserNamespace.
	TimeOffsets string
	// Host is done before the user namespace is entered. It counts only with one.
	Host HostSetup
	// Affinity are the CPUs that the program starts on, as words of a mask; empty leaves them. A cpuset that it is cloned
	// into, or moved to, has the last word.
	Affinity []uint64
	// Session starts a new session (setsid(2)).
	Session bool
	// Secret starts the program so that it is not dumpable from its first instruction
	// on: nothing in the child's PID namespace can trace it or open what it holds,
	// not even before it can say so itself (CVE-2016-9962).
	Secret bool
}

// exeFloor keeps the program's descriptor out of the range that is renumbered for the child.
const exeFloor = 512

// Spawn starts a program and returns its PID and a pidfd.
func Spawn(a SpawnAttr) (int, *os.File, error) {
	// Whatever happens to this thread's namespaces and credentials stays on it.
	runtime.LockOSThread()
	clean := true
	defer func() {
		if clean {
			runtime.UnlockOSThread() // else the thread ends with its goroutine
		}
	}()
	if a.Path != "" {
		return forkExec(a.Path, a)
	}
	exe, err := unix.FcntlInt(a.Exe.Fd(), unix.F_DUPFD_CLOEXEC, exeFloor)
	if err != nil {
		return 0, nil, fmt.Errorf("duplicate the program's descriptor: %w", err)
	}
	defer unix.Close(exe)
	joined := a.UserNamespace != nil || a.TimeNamespace != nil || a.CloneFlags&unix.CLONE_NEWTIME != 0
	if a.PIDNamespace != nil && !joined {
		leave, err := joinPIDNamespace(a.PIDNamespace)
		if err != nil {
			return 0, nil, err
		}
		defer func() { clean = leave() == nil && clean }()
	}
	if a.Secret {
		leave, err := differGroup()
		if err != nil {
			return 0, nil, err
		}
		defer func() { clean = leave() == nil && clean }()
	}
	if len(a.Affinity) > 0 {
		leave, err := moveToCPUs(a.Affinity)
		if err != nil {
			return 0, nil, err
		}
		defer func() { clean = leave() == nil && clean }()
	}
	if joined {
		return spawnJoined(exe, a)
	}
	return forkExec("/proc/self/fd/"+strconv.Itoa(exe), a)
}

func forkExec(exe string, a SpawnAttr) (int, *os.File, error) {
	fds := make([]uintptr, len(a.Files))
	for i, f := range a.Files {
		fds[i] = f.Fd()
	}
	pidfd := new(int) // on the heap: the kernel writes to it while the stack may move
	*pidfd = -1
	attr := &syscall.ProcAttr{Dir: a.Dir, Env: a.Env, Files: fds, Sys: &syscall.SysProcAttr{
		Cloneflags: uintptr(a.CloneFlags), PidFD: pidfd, Setsid: a.Session,
	}}
	if a.Cgroup != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(a.Cgroup.Fd())
	}
	pid, err := syscall.ForkExec(exe, a.Args, attr)
	for _, f := range a.Files {
		keepAlive(f)
	}
	keepAlive(a.Cgroup)
	if err != nil {
		return 0, nil, fmt.Errorf("clone %s: %w", a.Args[0], err)
	}
	if *pidfd < 0 {
		unix.Kill(pid, unix.SIGKILL)
		return 0, nil, errors.New("clone: the kernel gave no pidfd")
	}
	return pid, os.NewFile(uintptr(*pidfd), "pidfd"), nil
}

func keepAlive(f *os.File) { runtime.KeepAlive(f) }

// joinPIDNamespace makes the calling thread's children be born in another PID namespace.
func joinPIDNamespace(ns *os.File) (leave func() error, err error) {
	own, err := os.Open("/proc/thread-self/ns/pid")
	if err != nil {
		return nil, err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWPID); err != nil {
		own.Close()
		return nil, fmt.Errorf("join PID namespace: %w", err)
	}
	return func() error {
		defer own.Close()
		return unix.Setns(int(own.Fd()), unix.CLONE_NEWPID)
	}, nil
}

// differGroup gives the calling thread an effective group that is not its real one.
// execve(2) then sets the dumpable attribute to fs.suid_dumpable, as for a
// set-group-ID program (prctl(2), PR_SET_DUMPABLE). The child undoes it.
func differGroup() (leave func() error, err error) {
	real := unix.Getgid()
	set := func(gid int) error {
		keep := ^uintptr(0)
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESGID, keep, uintptr(gid), keep); errno != 0 {
			return os.NewSyscallError("setresgid", errno)
		}
		return nil
	}
	if err := set(real + 1); err != nil {
		return nil, err
	}
	return func() error { return set(real) }, nil
}

// moveToCPUs sets the CPUs of the calling thread, which its children start on.
func moveToCPUs(mask []uint64) (leave func() error, err error) {
	var old, now unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	for i, word := range mask {
		for bit := range 64 {
			if word&(1<<bit) != 0 {
				now.Set(i*64 + bit)
			}
		}
	}
	if err := unix.SchedSetaffinity(0, &now); err != nil {
		return nil, os.NewSyscallError("sched_setaffinity", err)
	}
	return func() error { return unix.SchedSetaffinity(0, &old) }, nil
}
