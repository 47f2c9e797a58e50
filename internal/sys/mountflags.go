package sys

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Mount attributes of mount_setattr(2) and fsmount(2).
const (
	MountAttrReadonly    uint64 = unix.MOUNT_ATTR_RDONLY
	MountAttrNoSUID      uint64 = unix.MOUNT_ATTR_NOSUID
	MountAttrNoDev       uint64 = unix.MOUNT_ATTR_NODEV
	MountAttrNoExec      uint64 = unix.MOUNT_ATTR_NOEXEC
	MountAttrATimeMask   uint64 = unix.MOUNT_ATTR__ATIME
	MountAttrRelATime    uint64 = unix.MOUNT_ATTR_RELATIME
	MountAttrNoATime     uint64 = unix.MOUNT_ATTR_NOATIME
	MountAttrStrictATime uint64 = unix.MOUNT_ATTR_STRICTATIME
	MountAttrNoDirATime  uint64 = unix.MOUNT_ATTR_NODIRATIME
	MountAttrNoSymFollow uint64 = unix.MOUNT_ATTR_NOSYMFOLLOW
)

// Propagation types of mount(2).
const (
	MountRec        uint64 = unix.MS_REC
	MountShared     uint64 = unix.MS_SHARED
	MountSlave      uint64 = unix.MS_SLAVE
	MountPrivate    uint64 = unix.MS_PRIVATE
	MountUnbindable uint64 = unix.MS_UNBINDABLE
)

// CloneMount opens a detached copy of the mount at path, of the tree below it too if recursive is set
// (open_tree(2), Linux 5.2). The copy stays in the original's peer group.
func CloneMount(path string, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return nil, &fs.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// IDMapMount maps the owners of files in a detached mount, in those below it too if recursive is set, by a user namespace
// (mount_setattr(2), Linux 5.12). EINVAL is a file system that cannot be mapped, or a mount that is mapped already.
func IDMapMount(mount, userns *os.File, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	err := unix.MountSetattr(int(mount.Fd()), "", flags, &attr)
	keepAliveAll(mount, userns)
	return os.NewSyscallError("mount_setattr", err)
}

// HasMountSetattr tells whether the kernel has mount_setattr(2), and so attributes of whole trees of mounts (Linux 5.12).
func HasMountSetattr() bool {
	return !errors.Is(unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}), unix.ENOSYS)
}
