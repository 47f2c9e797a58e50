package sys

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// CopyFile makes the empty file dst a copy of src, which has size bytes and does not change: by sharing the blocks
// (FICLONE) if reflink is set and the file system can, else by copying what is not a hole. It tells whether blocks are
// shared.
func CopyFile(dst, src int, size int64, reflink bool) (shared bool, err error) {
	if reflink && size > 0 {
		err := noEINTR(func() error { return unix.IoctlFileClone(dst, src) })
		if err == nil {
			return true, nil
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO) {
			return false, err
		}
	}
	for off := int64(0); off < size; {
		begin, err := unix.Seek(src, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		end := size
		if err == nil {
			end, err = unix.Seek(src, begin, unix.SEEK_HOLE)
		}
		if errors.Is(err, unix.EINVAL) { // the file system does not know holes
			begin, end, err = off, size, nil
		}
		if err != nil {
			return false, err
		}
		end = min(end, size)
		if err := copyRange(dst, src, begin, end); err != nil {
			return false, err
		}
		off = end
	}
	return false, Ftruncate(dst, size)
}

// copyRange copies bytes by copy_file_range(2), or through a buffer where that cannot be (two file systems, before Linux
// 5.19, and file systems without it).
func copyRange(dst, src int, off, end int64) error {
	in, out := off, off
	for in < end {
		n, err := unix.CopyFileRange(src, &in, dst, &out, int(min(end-in, 1<<30)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
			return copyBytes(dst, src, in, end)
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

func copyBytes(dst, src int, off, end int64) error {
	buf := make([]byte, min(end-off, 128<<10))
	for off < end {
		n, err := unix.Pread(src, buf[:min(int64(len(buf)), end-off)], off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		if err := WriteAt(dst, buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// Readlinkat reads a symbolic link.
func Readlinkat(dir int, name string) (string, error) {
	for size := 256; ; size *= 2 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(dir, name, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", err
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}
