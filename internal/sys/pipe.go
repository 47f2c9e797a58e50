package sys

import (
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// SetPipeSize asks for a pipe's buffer of so many bytes (F_SETPIPE_SZ); it stays as it is where the user has as much
// as /proc/sys/fs/pipe-user-pages-soft allows.
func SetPipeSize(pipe *os.File, bytes int) {
	if c, err := pipe.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, bytes) })
	}
}

// QuietPipe returns a pipe that the poller knows nothing of: what is written wakes nobody who waits for its end alone.
func QuietPipe() (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

// AwaitHangup blocks its thread until a quiet pipe has no writer left, or the limit is over.
func AwaitHangup(f *os.File, limit time.Duration) {
	fds := []unix.PollFd{{Fd: int32(f.Fd())}}
	unix.Poll(fds, int(limit.Milliseconds()))
	runtime.KeepAlive(f)
}
