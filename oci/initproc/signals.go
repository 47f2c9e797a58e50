package initproc

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigaction is the kernel's struct; what is after the flags differs between
// architectures and is not looked at.
type sigaction struct {
	handler uintptr
	rest    [5]uint64
}

const (
	sigIgn = 1
	nsig   = 64
)

// resetSignals makes the workload start with every signal at its default and none
// blocked. execve(2) resets handlers, but what is ignored or blocked, by
// the Go runtime or by whoever started the daemon, would stay so.
func resetSignals() error {
	for sig := uintptr(1); sig <= nsig; sig++ {
		var act sigaction
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&act)), 8, 0, 0); e != 0 {
			return wrap("sigaction", itoa(int(sig)), e)
		}
		if act.handler != sigIgn {
			continue
		}
		act = sigaction{}
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0); e != 0 {
			return wrap("sigaction", itoa(int(sig)), e)
		}
	}
	return setSignalMask(0)
}

// setSignalMask sets the main thread's blocked signals, which execve keeps.
func setSignalMask(mask uint64) error {
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&mask)), 0, 8, 0, 0)
	if e != 0 {
		return wrap("sigprocmask", "", e)
	}
	return nil
}
