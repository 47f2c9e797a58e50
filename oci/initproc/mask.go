package initproc

import (
	"golang.org/x/sys/unix"
)

// openNull opens the host's /dev/null before there is any root of the container, and
// proves that it is the null device: an image that can swap it would have
// its own file bound over /proc/kcore and the like (CVE-2025-31133).
func (s *setup) openNull() error {
	if len(s.m.Masked) == 0 {
		return nil
	}
	if s.ahead != nil {
		s.null = s.ahead.null
		return verifyDevice(s.null, "/dev/null", unix.S_IFCHR, 1, 3)
	}
	fd, err := unix.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("open", "/dev/null", err)
	}
	s.null = fd
	return verifyDevice(fd, "/dev/null", unix.S_IFCHR, 1, 3)
}

func verifyDevice(fd int, name string, kind, major, minor uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return wrap("stat", name, err)
	}
	if st.Mode&unix.S_IFMT != kind || st.Rdev != unix.Mkdev(major, minor) {
		return wrap("verify", name, text("not the device it should be"))
	}
	return nil
}

// cloneMount is a detached bind of what fd stands for. Its mount must be attached.
func cloneMount(fd int) (int, error) {
	return unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
}

// openPath opens a path to be masked or made read-only; -1 where there is none.
func (s *setup) openPath(path string) (int, error) {
	fd, err := openIn(s.root, path, unix.O_PATH, beneath)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return -1, nil
	}
	return fd, err
}

// mask covers a file with the null device and a directory with an empty
// read-only tmpfs, one for all.
func (s *setup) mask(path string) error {
	fd, err := s.openPath(path)
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	cover := s.null
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if s.empty < 0 {
			if s.empty, err = emptyDir(); err != nil {
				return err
			}
			// Attached itself, it can be cloned for the next ones.
			return move(s.empty, fd)
		}
		cover = s.empty
	}
	if cover, err = cloneMount(cover); err != nil {
		return wrap("clone", "", err)
	}
	defer unix.Close(cover)
	return move(cover, fd)
}

func move(from, to int) error {
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	return wrap("attach", "", unix.MoveMount(from, "", to, "", flags))
}

// emptyDir makes an empty tmpfs that cannot be written to, not even by who may remount.
func emptyDir() (int, error) {
	return newTmpfs([]string{"nr_blocks=1", "nr_inodes=1", "mode=0555", "ro"}, unix.MOUNT_ATTR_RDONLY)
}

// newTmpfs makes a tmpfs with nothing that could be executed in it.
func newTmpfs(options []string, attrs int) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, wrap("fsopen", "tmpfs", err)
	}
	defer unix.Close(fs)
	if err := configure(fs, options); err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, wrap("fsconfig create", "tmpfs", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	return fd, wrap("fsmount", "tmpfs", err)
}

// readonly binds a path onto itself, read-only.
func (s *setup) readonly(path string) error {
	fd, err := s.openPath(path)
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	// With what is mounted below; only the top becomes read-only, as with runc,
	// so that a volume below stays what it was asked to be.
	clone, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return wrap("clone", "", err)
	}
	defer unix.Close(clone)
	if err := setAttr(clone, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return wrap("set attributes", "", err)
	}
	return move(clone, fd)
}
