package initproc

import (
	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// file is the descriptor of a file index.
func file(index int32) uintptr { return uintptr(initmsg.FirstFile + index) }

// readAll reads a descriptor to its end, into buf as far as it goes.
func readAll(fd int, buf []byte) ([]byte, error) {
	n := 0
	for {
		if n == len(buf) {
			buf = append(buf, make([]byte, len(buf))...)
		}
		r, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if r == 0 {
			return buf[:n], nil
		}
		n += r
	}
}

// writeFile writes to an existing host file.
func writeFile(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return writeOnce(fd, value)
}

// writeOnce writes value with one write(2): kernel files take no second one.
func writeOnce(fd int, value string) error {
	for {
		n, err := unix.Write(fd, []byte(value))
		if err == unix.EINTR {
			continue
		}
		if err == nil && n != len(value) {
			return unix.EIO
		}
		return err
	}
}
