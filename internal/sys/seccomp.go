package sys

import (
	"errors"

	"golang.org/x/sys/unix"
)

// SeccompFlagsSupported says whether the kernel knows all of these
// SECCOMP_FILTER_FLAG_*: it looks at them before it fails to read the program.
func SeccompFlagsSupported(flags uint32) bool {
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), 0)
	return errors.Is(errno, unix.EFAULT)
}
