package initproc

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// connectListener connects to the seccomp agent, whose path is the host's.
func (s *setup) connectListener() error {
	path := s.m.Process.SeccompListener
	if path == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return wrap("socket", "", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return wrap("connect", path, err)
	}
	s.listener, err = s.above(fd)
	return err
}

// loadSeccomp loads the filter into the main thread. Other threads of the runtime need
// none: they run nothing of the container and end at execve.
func (s *setup) loadSeccomp() error {
	p := &s.m.Process
	if len(p.Seccomp) == 0 {
		return nil
	}
	const instruction = 8 // sizeof(struct sock_filter)
	if len(p.Seccomp)%instruction != 0 || len(p.Seccomp)/instruction > 4096 {
		return text("seccomp filter: not a whole number of instructions, or more than 4096")
	}
	prog := unix.SockFprog{
		Len:    uint16(len(p.Seccomp) / instruction),
		Filter: (*unix.SockFilter)(unsafe.Pointer(&p.Seccomp[0])),
	}
	// TSYNC would filter the Go runtime's threads, which may need more than
	// the workload's profile allows.
	flags := uintptr(p.SeccompFlags) &^ unix.SECCOMP_FILTER_FLAG_TSYNC
	if s.listener >= 0 {
		flags |= unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	}
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return wrap("load the seccomp filter", "", e)
	}
	if s.listener < 0 {
		return nil
	}
	// Already under the filter: a profile that notifies of sendmsg, close or execve
	// itself is the agent's to answer.
	if err := sendFile(s.listener, p.SeccompState, int(fd)); err != nil {
		return wrap("send the seccomp listener to", p.SeccompListener, err)
	}
	unix.Close(int(fd))
	return nil
}

// above moves a descriptor of the init out of the way of the workload's extra files.
func (s *setup) above(fd int) (int, error) {
	if s.m.Process.ExtraFiles == 0 {
		return fd, nil
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, int(file(s.m.Process.FirstExtra))+int(s.m.Process.ExtraFiles))
	if err != nil {
		return -1, wrap("dup", itoa(fd), err)
	}
	unix.Close(fd)
	return n, nil
}
