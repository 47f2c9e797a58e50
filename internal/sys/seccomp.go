package sys

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockFilterSize is sizeof(struct sock_filter).
const sockFilterSize = 8

// LoadSeccomp puts a filter on the calling thread (SECCOMP_SET_MODE_FILTER): prog is
// an array of struct sock_filter in native byte order, flags are SECCOMP_FILTER_FLAG_*.
// The caller has locked its goroutine to the thread, and has CAP_SYS_ADMIN in its user
// namespace or no_new_privs set. It returns the listener's file descriptor where flags
// ask for one, else -1.
func LoadSeccomp(prog []byte, flags uint32) (int, error) {
	n := len(prog) / sockFilterSize
	if n == 0 || n > 0xffff || len(prog)%sockFilterSize != 0 {
		return -1, fmt.Errorf("load seccomp filter: %d bytes are no program: %w", len(prog), unix.EINVAL)
	}
	fprog := unix.SockFprog{Len: uint16(n), Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(prog)))}
	r, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(prog)
	if errno != 0 {
		return -1, fmt.Errorf("load seccomp filter of %d instructions, flags %#x: %w", n, flags, errno)
	}
	if flags&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 {
		return int(r), nil
	}
	if r != 0 {
		return -1, fmt.Errorf("load seccomp filter: thread %d cannot be synchronised", r)
	}
	return -1, nil
}

// SeccompFlagsSupported says whether the kernel knows all of these
// SECCOMP_FILTER_FLAG_*: it looks at them before it fails to read the program.
func SeccompFlagsSupported(flags uint32) bool {
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), 0)
	return errors.Is(errno, unix.EFAULT)
}

// SetNoNewPrivs sets no_new_privs on the calling thread (prctl(2)). It cannot be
// taken back.
func SetNoNewPrivs() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}
