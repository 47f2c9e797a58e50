package initproc

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// device makes one node. What is already there must be that device: anything
// else was put there by the image.
func (s *setup) device(d *initmsg.Device) error {
	dir, base, err := s.nodeParent(d.Path)
	if err != nil {
		return err
	}
	if d.Bind != "" {
		return s.bindDevice(d, dir, base)
	}
	dev := unix.Mkdev(d.Major, d.Minor)
	if d.Mode&unix.S_IFMT == unix.S_IFIFO {
		dev = 0
	}
	err = unix.Mknodat(dir, base, d.Mode, int(dev))
	if err != nil && err != unix.EEXIST {
		return wrap("mknod", "", err)
	}
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != d.Mode&unix.S_IFMT || st.Rdev != dev {
			return text("the image has something else at this path")
		}
	} else if d.UID == 0 && d.GID == 0 && !s.nodes.setgid {
		return nil // it is root's, who has made it
	}
	return wrap("chown", "", unix.Fchownat(dir, base, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW))
}

func (s *setup) bindDevice(d *initmsg.Device, dir int, base string) error {
	src, err := unix.OpenTree(unix.AT_FDCWD, d.Bind, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return wrap("clone the mount of", d.Bind, err)
	}
	defer unix.Close(src)
	if err := verifyDevice(src, d.Bind, d.Mode&unix.S_IFMT, d.Major, d.Minor); err != nil {
		return err
	}
	return bindOver(src, dir, base)
}

// bindOver puts a detached mount of a file on base in dir, which is made where it is
// missing and must not be a link.
func bindOver(src, dir int, base string) error {
	if err := unix.Mknodat(dir, base, unix.S_IFREG|0o644, 0); err != nil && err != unix.EEXIST {
		return wrap("create", base, err)
	}
	// Without O_NOFOLLOW, with which O_PATH would open a link itself (openat2(2)).
	target, err := openIn(dir, base, unix.O_PATH, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return wrap("open", base, err)
	}
	defer unix.Close(target)
	return move(src, target)
}

// symlink makes a link, unless something is there.
func (s *setup) symlink(l initmsg.Symlink) error {
	dir, base, err := s.nodeParent(l.Path)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(l.Target, dir, base); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// nodeDir is the directory of the last device or link, which mostly is that of the next one too.
type nodeDir struct {
	path   string
	fd     int // or -1
	setgid bool
}

// nodeParent is parent, but the descriptor stays open for the next call, and until closeNodes.
func (s *setup) nodeParent(path string) (dir int, base string, err error) {
	i := strings.LastIndexByte(path, '/') + 1
	if base := path[i:]; s.nodes.fd >= 0 && path[:i] == s.nodes.path && base != "" && base != "." && base != ".." {
		return s.nodes.fd, base, nil
	}
	s.closeNodes()
	if dir, base, err = parent(s.root, path); err != nil {
		return -1, "", err
	}
	s.nodes = nodeDir{path[:i], dir, true}
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err == nil {
		s.nodes.setgid = st.Mode&unix.S_ISGID != 0
	}
	return dir, base, nil
}

func (s *setup) closeNodes() {
	if s.nodes.fd >= 0 {
		unix.Close(s.nodes.fd)
	}
	s.nodes = nodeDir{fd: -1}
}
