package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// SetPipeSize asks for a pipe's buffer of so many bytes (F_SETPIPE_SZ); it stays as it is where the user has as much
// as /proc/sys/fs/pipe-user-pages-soft allows.
func SetPipeSize(pipe *os.File, bytes int) {
	if c, err := pipe.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, bytes) })
	}
}
