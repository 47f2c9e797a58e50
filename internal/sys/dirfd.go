package sys

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// DirFD is an O_PATH descriptor of a directory, below which kernel interface files (cgroupfs, procfs) are read and
// written in the fewest system calls: os.File would try to register every one of them with the poller.
// Names are relative to the directory and may have several components.
type DirFD int

// OpenDirFD opens path, which must be a directory and not a symbolic link to one.
func OpenDirFD(path string) (DirFD, error) {
	fd, err := openat(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return DirFD(fd), nil
}

// Close releases the descriptor.
func (d DirFD) Close() error {
	return unix.Close(int(d))
}

// Dir opens the directory name below d. The last component is never followed if it is a symbolic link.
func (d DirFD) Dir(name string) (DirFD, error) {
	fd, err := openat(int(d), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	return DirFD(fd), err
}

// ReadableDir opens the directory name below d for system calls that do not take an O_PATH descriptor.
func (d DirFD) ReadableDir(name string) (DirFD, error) {
	fd, err := openat(int(d), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	return DirFD(fd), err
}

// Exists reports whether name is there.
func (d DirFD) Exists(name string) (bool, error) {
	var st unix.Stat_t
	switch err := unix.Fstatat(int(d), name, &st, unix.AT_SYMLINK_NOFOLLOW); err {
	case nil:
		return true, nil
	case unix.ENOENT, unix.ENOTDIR:
		return false, nil
	default:
		return false, err
	}
}

// Mkdir makes the directory name with mode 0755; the parent must exist.
func (d DirFD) Mkdir(name string) error {
	return ignoringEINTR(func() error { return unix.Mkdirat(int(d), name, 0o755) })
}

// Rmdir removes the empty directory name.
func (d DirFD) Rmdir(name string) error {
	return ignoringEINTR(func() error { return unix.Unlinkat(int(d), name, unix.AT_REMOVEDIR) })
}

// WriteFile opens the existing file name and writes each value with a write call of its own, as kernel interface
// files demand. It returns how many values were taken before the error.
func (d DirFD) WriteFile(name string, values ...string) (int, error) {
	fd, err := openat(int(d), name, unix.O_WRONLY|unix.O_CLOEXEC)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	for i, v := range values {
		if err := writeAll(fd, v); err != nil {
			return i, err
		}
	}
	return len(values), nil
}

// ReadFile appends the content of the file name to buf and returns it; buf's capacity saves growing.
func (d DirFD) ReadFile(name string, buf []byte) ([]byte, error) { return d.read(name, buf, false) }

// ReadWhole is ReadFile for files that come in one read if buf has room for all of them, as those of a control group do that
// are no lists: it does not look for the end of what was shorter.
func (d DirFD) ReadWhole(name string, buf []byte) ([]byte, error) { return d.read(name, buf, true) }

func (d DirFD) read(name string, buf []byte, whole bool) ([]byte, error) {
	fd, err := openat(int(d), name, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return buf, err
	}
	defer unix.Close(fd)
	for {
		if cap(buf)-len(buf) < 512 {
			buf = append(buf, make([]byte, 4096)...)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return buf, err
		}
		buf = buf[:len(buf)+n]
		if whole && len(buf) < cap(buf) {
			return buf, nil
		}
	}
}

// ReadFile appends the content of a kernel interface file to buf and returns it, as DirFD's does.
func ReadFile(path string, buf []byte) ([]byte, error) {
	return DirFD(unix.AT_FDCWD).ReadFile(path, buf)
}

// leafLinks is how many links a directory without directories in it has, in file systems that count them, as cgroupfs does.
const leafLinks = 2

// Subdirs lists the directories directly below d, symbolic links not among them.
func (d DirFD) Subdirs() ([]string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d), &st); err == nil && st.Nlink == leafLinks {
		return nil, nil // the rule, and listing dozens of interface files is slow
	}
	fd, err := openat(int(d), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "dir")
	defer f.Close()
	entries, err := f.ReadDir(-1)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	if errors.Is(err, fs.ErrNotExist) { // removed between open and read
		err = nil
	}
	return names, err
}

func openat(dir int, name string, flags int) (fd int, err error) {
	err = ignoringEINTR(func() error {
		fd, err = unix.Openat(dir, name, flags, 0)
		return err
	})
	return fd, err
}

func writeAll(fd int, v string) error {
	return ignoringEINTR(func() error {
		n, err := unix.Write(fd, []byte(v))
		if err == nil && n < len(v) {
			return unix.EIO
		}
		return err
	})
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
