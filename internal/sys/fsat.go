package sys

import (
	"errors"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// File type bits and flags of the *at calls, so that callers need no other package for them.
const (
	FileTypeMask = unix.S_IFMT
	FileDir      = unix.S_IFDIR
	FileReg      = unix.S_IFREG
	FileSymlink  = unix.S_IFLNK
	FileChar     = unix.S_IFCHR
	FileBlock    = unix.S_IFBLK
	FileFifo     = unix.S_IFIFO
)

// noEINTR repeats a system call that a signal interrupted (Go's preemption signals do that).
func noEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// OpenInRoot opens path with root (a directory fd) as the root of all resolution: symbolic links and ".." of the
// tree below root cannot lead out of it, links of /proc and other file systems are refused (openat2, Linux 5.6).
// flags are those of open(2); O_CLOEXEC is added.
func OpenInRoot(root int, path string, flags int, perm uint32) (int, error) {
	return openat2(root, path, flags, perm, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_XDEV)
}

// OpenBeneath opens path below root without following any symbolic link (openat2, Linux 5.6).
func OpenBeneath(root int, path string, flags int, perm uint32) (int, error) {
	return openat2(root, path, flags, perm, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
}

func openat2(root int, path string, flags int, perm uint32, resolve uint64) (fd int, err error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Mode: uint64(perm), Resolve: resolve}
	for range 64 {
		fd, err = unix.Openat2(root, path, &how)
		// EAGAIN: a rename somewhere on the machine raced with the resolution of "..".
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
	return -1, err
}

// Mkdirat is mkdirat(2).
func Mkdirat(dir int, name string, perm uint32) error {
	return noEINTR(func() error { return unix.Mkdirat(dir, name, perm) })
}

// Symlinkat is symlinkat(2).
func Symlinkat(target string, dir int, name string) error {
	return noEINTR(func() error { return unix.Symlinkat(target, dir, name) })
}

// Linkat makes newName a hard link to oldName, which is not followed when it is a symbolic link.
func Linkat(oldDir int, oldName string, newDir int, newName string) error {
	return noEINTR(func() error { return unix.Linkat(oldDir, oldName, newDir, newName, 0) })
}

// Mknodat makes a device or FIFO; mode includes the type bits.
func Mknodat(dir int, name string, mode uint32, major, minor uint32) error {
	return noEINTR(func() error { return unix.Mknodat(dir, name, mode, int(unix.Mkdev(major, minor))) })
}

// Unlinkat removes a file, or an empty directory where isDir is set.
func Unlinkat(dir int, name string, isDir bool) error {
	flags := 0
	if isDir {
		flags = unix.AT_REMOVEDIR
	}
	return noEINTR(func() error { return unix.Unlinkat(dir, name, flags) })
}

// Chownat changes the owner of name, which is not followed when it is a symbolic link.
func Chownat(dir int, name string, uid, gid int) error {
	return noEINTR(func() error { return unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW) })
}

// Chmodat changes the mode (12 bits) of name. The call follows links: name must be known not to be one.
func Chmodat(dir int, name string, mode uint32) error {
	return noEINTR(func() error { return unix.Fchmodat(dir, name, mode, 0) })
}

// Lstatat is fstatat(2) that does not follow name.
func Lstatat(dir int, name string) (syscall.Stat_t, error) {
	var st unix.Stat_t
	err := noEINTR(func() error { return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return toSyscall(&st), err
}

func toSyscall(st *unix.Stat_t) syscall.Stat_t {
	return syscall.Stat_t{
		Dev: st.Dev, Ino: st.Ino, Nlink: st.Nlink, Mode: st.Mode, Uid: st.Uid, Gid: st.Gid, Rdev: st.Rdev,
		Size: st.Size, Blksize: st.Blksize, Blocks: st.Blocks,
		Atim: syscall.Timespec(st.Atim), Mtim: syscall.Timespec(st.Mtim), Ctim: syscall.Timespec(st.Ctim),
	}
}

// Utimesat sets the times of name, which is not followed when it is a symbolic link. An empty name is dir itself
// (AT_EMPTY_PATH: Linux 5.8).
func Utimesat(dir int, name string, atime, mtime time.Time) error {
	ts := make([]unix.Timespec, 2)
	for i, t := range []time.Time{atime, mtime} {
		var err error
		if ts[i], err = unix.TimeToTimespec(t); err != nil {
			return err
		}
	}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	return noEINTR(func() error { return unix.UtimesNanoAt(dir, name, ts, flags) })
}

// procPath names an entry of an open directory for the calls that have no *at form.
func procPath(dir int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
}

// Setxattrat sets an extended attribute of name, which is not followed when it is a symbolic link. name "." is the
// directory itself.
func Setxattrat(dir int, name, attr string, value []byte) error {
	return noEINTR(func() error { return unix.Lsetxattr(procPath(dir, name), attr, value, 0) })
}

// Getxattrat reads an extended attribute of name, which is not followed; nil without error when it has none.
func Getxattrat(dir int, name, attr string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Lgetxattr(procPath(dir, name), attr, buf)
		switch {
		case err == nil:
			return buf[:n], nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ERANGE) && len(buf) < 1<<16:
			buf = make([]byte, 1<<16)
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
			return nil, nil
		default:
			return nil, err
		}
	}
}

// Listxattrat lists the names of the extended attributes of name, which is not followed.
func Listxattrat(dir int, name string) ([]string, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(procPath(dir, name), buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for start, i := 0, 0; i < n; i++ {
		if buf[i] == 0 {
			names = append(names, string(buf[start:i]))
			start = i + 1
		}
	}
	return names, nil
}

// Renameat is renameat(2).
func Renameat(oldDir int, oldName string, newDir int, newName string) error {
	return noEINTR(func() error { return unix.Renameat(oldDir, oldName, newDir, newName) })
}

// RenameExchange swaps two paths on one file system, both of which exist.
func RenameExchange(a, b string) error {
	err := noEINTR(func() error {
		return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	})
	if err != nil {
		return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
	}
	return nil
}

// Syncfs writes out the file system that f is on and reports write errors since f was opened (Linux 5.8).
func Syncfs(f *os.File) error {
	return noEINTR(func() error { return unix.Syncfs(int(f.Fd())) })
}

// Flock takes an exclusive lock on f without waiting; EWOULDBLOCK when another process has it.
func Flock(f *os.File) error {
	return noEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
}

// FreeSpace returns the bytes and inodes that a user without privileges can still take on the file system of path.
// inodes is 0 on file systems that do not count them.
func FreeSpace(path string) (bytes, inodes uint64, err error) {
	var st unix.Statfs_t
	if err := noEINTR(func() error { return unix.Statfs(path, &st) }); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Bavail * uint64(st.Bsize), st.Ffree, nil
}

// WriteAt writes all of p at off.
func WriteAt(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Ftruncate sets the length of a file.
func Ftruncate(fd int, size int64) error {
	return noEINTR(func() error { return unix.Ftruncate(fd, size) })
}

// Fchown changes the owner of an open file.
func Fchown(fd, uid, gid int) error {
	return noEINTR(func() error { return unix.Fchown(fd, uid, gid) })
}

// Fchmod changes the mode (12 bits) of an open file.
func Fchmod(fd int, mode uint32) error { return noEINTR(func() error { return unix.Fchmod(fd, mode) }) }

// Futimes sets the times of an open file.
func Futimes(fd int, atime, mtime time.Time) error {
	return Utimesat(fd, "", atime, mtime)
}

// Fsetxattr sets an extended attribute of an open file.
func Fsetxattr(fd int, attr string, value []byte) error {
	return noEINTR(func() error { return unix.Fsetxattr(fd, attr, value, 0) })
}

// Close closes a raw descriptor.
func Close(fd int) error { return unix.Close(fd) }

// Flags of open(2) that package os does not have.
const (
	OpenPath      = unix.O_PATH
	OpenDirectory = unix.O_DIRECTORY
	OpenNoFollow  = unix.O_NOFOLLOW
	OpenNonblock  = unix.O_NONBLOCK
)
