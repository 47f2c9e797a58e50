package sys

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ReadReady waits until raw can be read, calls take for a buffer only then, and
// reads once. It returns the count of bytes, 0 at the end, and the buffer.
func ReadReady[B any](raw syscall.RawConn, take func() (B, []byte)) (int, B, error) {
	var (
		n     int
		held  B
		buf   []byte
		opErr error
	)
	err := raw.Read(func(fd uintptr) bool {
		if !readable(int(fd)) {
			return false
		}
		if buf == nil {
			held, buf = take()
		}
		n, opErr = unix.Read(int(fd), buf)
		if opErr == unix.EINTR || opErr == unix.EAGAIN {
			return false
		}
		return true
	})
	if err != nil {
		return 0, held, err
	}
	if opErr == unix.EIO { // a terminal whose other side is closed has ended
		return 0, held, nil
	}
	return max(n, 0), held, opErr
}

func readable(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err != nil || n > 0
}

// ReadNow reads what is there without waiting, whatever deadline the file has: 0 when there is nothing, or the end is reached.
func ReadNow(raw syscall.RawConn, buf []byte) (int, error) {
	var n int
	var opErr error
	err := raw.Control(func(fd uintptr) {
		for {
			n, opErr = unix.Read(int(fd), buf)
			if opErr != unix.EINTR {
				break
			}
		}
	})
	if err != nil {
		return 0, err
	}
	if opErr == unix.EAGAIN || opErr == unix.EIO { // EIO: of a terminal, the end
		return 0, nil
	}
	return max(n, 0), opErr
}

// WriteNow writes without waiting: it returns how much was taken, which may be 0.
func WriteNow(raw syscall.RawConn, data []byte) (int, error) {
	var n int
	var opErr error
	err := raw.Write(func(fd uintptr) bool {
		for {
			n, opErr = unix.Write(int(fd), data)
			if opErr != unix.EINTR {
				break
			}
		}
		return true // never wait
	})
	if err != nil {
		return 0, err
	}
	if opErr == unix.EAGAIN {
		return 0, nil
	}
	return max(n, 0), opErr
}

// Pollable takes over a received descriptor: it becomes non-blocking and uses the poller.
// f is closed. O_NONBLOCK belongs to the open file, so whoever shares it sees it too.
func Pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
