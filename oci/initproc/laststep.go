package initproc

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// lastStep is the way of a workload into a PID namespace that others are in already. Whoever is in there with
// CAP_SYS_PTRACE may trace whatever has a number in it, dumpable or not (ptrace(2), "Ptrace access mode checking").
// So the init has none. When it has the workload's rights and nothing else, its filter included, it clones a
// child into the namespace, and what could be taken over then is what the container could have started itself.
//
// The child is the init's sibling (CLONE_PARENT). The init waits until it has executed the workload or ended
// (CLONE_VFORK), and itself ends with the errno: it has no descriptor left to report with, since the child would
// have it too.
type lastStep struct {
	pid      *uint32 // shared with the parent, and not with the child
	errno    *uint32 // shared with the child
	name     *byte
	argv     **byte
	envp     **byte
	terminal bool
}

const pageSize = 4096

// joinPID has the last child be born in the PID namespace. The caller itself stays where it is (setns(2)).
func (s *setup) joinPID() error {
	if s.m.PIDFile == nil {
		return nil
	}
	if err := unix.Setns(int(file(*s.m.PIDFile)), unix.CLONE_NEWPID); err != nil {
		return wrap("join the pid namespace", "", err)
	}
	const access = unix.PROT_READ | unix.PROT_WRITE
	pid, err := unix.Mmap(int(file(*s.m.PIDFile+1)), 0, pageSize, access, unix.MAP_SHARED)
	if err != nil {
		return wrap("mmap", "the page for the process ID", err)
	}
	// A child with it could name the parent another process than itself.
	if err := unix.Madvise(pid, unix.MADV_DONTFORK); err != nil {
		return wrap("madvise", "", err)
	}
	errno, err := unix.Mmap(-1, 0, pageSize, access, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return wrap("mmap", "", err)
	}
	s.last = &lastStep{
		pid: (*uint32)(unsafe.Pointer(&pid[0])), errno: (*uint32)(unsafe.Pointer(&errno[0])), terminal: s.m.Process.Terminal,
	}
	return nil
}

// take returns an error only while the parent can still be told.
func (l *lastStep) take(sync int, name string, p *initmsg.Process, env []string) (err error) {
	if l.name, err = syscall.BytePtrFromString(name); err != nil {
		return wrap("exec", name, err)
	}
	argv, err := syscall.SlicePtrFromStrings(p.Args)
	if err != nil {
		return wrap("exec", name, err)
	}
	envp, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return wrap("exec", name, err)
	}
	l.argv, l.envp = &argv[0], &envp[0]
	unix.Close(sync)
	l.clone()
	return nil // not reached
}

// clone does not return. An init that was started anew has other threads, so neither it nor the child may do more than
// make system calls from here on.
//
//go:nosplit
//go:noinline
//go:norace
func (l *lastStep) clone() {
	// Not clone3(2), which profiles deny, as its flags cannot be looked at. The process ID is written before the child runs.
	const flags = unix.CLONE_PARENT | unix.CLONE_VFORK | unix.CLONE_PARENT_SETTID
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags, 0, uintptr(unsafe.Pointer(l.pid)), 0, 0, 0)
	switch {
	case errno != 0:
		*l.errno = uint32(errno)
	case pid == 0:
		*l.errno = uint32(l.execute())
	}
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(*l.errno&0xff), 0, 0)
	}
}

//go:nosplit
//go:noinline
//go:norace
func (l *lastStep) execute() unix.Errno {
	// The container could have made it wait before this; a session of its own is what kills it as a family.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		return errno
	}
	if l.terminal {
		if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0); errno != 0 {
			return errno
		}
	}
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(l.name)), uintptr(unsafe.Pointer(l.argv)), uintptr(unsafe.Pointer(l.envp)))
	return errno
}
