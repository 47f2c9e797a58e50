package initproc

import (
	"golang.org/x/sys/unix"
)

// maxCopyDepth bounds the descriptors that a copied tree takes: one pair a level.
const maxCopyDepth = 64

// copyUp copies what the directory that src (O_PATH) stands for contains into the
// new tmpfs dst, and gives dst its owner and mode.
func copyUp(src, dst int) error {
	from, err := openIn(src, ".", unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := openIn(dst, ".", unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	return copyDir(from, to, maxCopyDepth)
}

// copyDir copies owner, mode and content from one open directory to another.
func copyDir(from, to, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	if depth == 0 {
		return wrap("directories too deep", "", unix.ELOOP)
	}
	buf := make([]byte, 8<<10)
	for {
		n, err := unix.ReadDirent(from, buf)
		if err != nil || n == 0 {
			return err
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if err := copyEntry(from, to, name, depth); err != nil {
				return wrap("copy", name, err)
			}
		}
	}
}

func copyEntry(from, to int, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(to, name, 0o700); err != nil {
			return err
		}
		return withBoth(from, to, name, unix.O_RDONLY|unix.O_DIRECTORY, unix.O_RDONLY|unix.O_DIRECTORY, func(a, b int) error {
			return copyDir(a, b, depth-1)
		})
	case unix.S_IFREG:
		return withBoth(from, to, name, unix.O_RDONLY, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, func(a, b int) error {
			if err := copyData(a, b); err != nil {
				return err
			}
			if err := unix.Fchown(b, int(st.Uid), int(st.Gid)); err != nil {
				return err
			}
			return unix.Fchmod(b, st.Mode&0o7777) // after chown, which clears set-id bits
		})
	case unix.S_IFLNK:
		link, err := readlinkAt(from, name)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(link, to, name); err != nil {
			return err
		}
	default:
		// A device of the image gets its rights from the device list, not from a copy.
		if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFCHR || kind == unix.S_IFBLK {
			return nil
		}
		if err := unix.Mknodat(to, name, st.Mode, 0); err != nil {
			return err
		}
	}
	return unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
}

// withBoth opens name in two directories, following no link.
func withBoth(from, to int, name string, fromFlags, toFlags int, do func(a, b int) error) error {
	a, err := unix.Openat(from, name, fromFlags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	b, err := unix.Openat(to, name, toFlags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(b)
	return do(a, b)
}

func copyData(from, to int) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(from, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		for b := buf[:n]; len(b) > 0; {
			w, err := unix.Write(to, b)
			if err != nil && err != unix.EINTR {
				return err
			}
			b = b[max(w, 0):]
		}
	}
}
