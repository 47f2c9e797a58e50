package sys

import (
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ReadInRoot reads the regular file name below the directory root, with root taken for "/" by every symbolic
// link on the way (openat2(2), RESOLVE_IN_ROOT): a container image cannot point it at a file of the host. A file
// of more than limit bytes is an error, as is anything that is not a regular file. A missing
// file matches fs.ErrNotExist.
func ReadInRoot(root *os.File, name string, limit int64) ([]byte, error) {
	how := unix.OpenHow{
		// O_NONBLOCK: a FIFO in the image must not stop us before it is found to be one.
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	var fd int
	for {
		var err error
		fd, err = unix.Openat2(int(root.Fd()), name, &how)
		if err == unix.EINTR || err == unix.EAGAIN { // EAGAIN: a rename raced with the walk
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		break
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: not a regular file (%s)", name, fi.Mode())
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: larger than %d bytes", name, limit)
	}
	return b, nil
}

// PathInRoot finds name below the directory root, with root taken for "/" by every symbolic link on the way, over mounts
// as well. What is found is not opened (O_PATH).
func PathInRoot(root *os.File, name string) (*os.File, error) {
	fd, err := openat2(int(root.Fd()), name, unix.O_PATH, 0, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	keepAlive(root)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
