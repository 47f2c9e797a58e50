package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// MountTmpfs mounts a tmpfs of at most size bytes, without set-user-ID, devices and execution.
func MountTmpfs(path string, size int64, mode uint32) error {
	options := "mode=" + strconv.FormatUint(uint64(mode), 8) + ",size=" + strconv.FormatInt(size, 10)
	if err := unix.Mount("shm", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", path, err)
	}
	return nil
}

// AttachMount mounts a detached mount at path, which must be of its kind, a directory or none.
func AttachMount(mount *os.File, path string) error {
	err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
	runtime.KeepAlive(mount)
	if err != nil {
		return fmt.Errorf("mount on %s: %w", path, err)
	}
	return nil
}

// UnmountDetach takes path's mount out of the tree; nil when nothing is mounted there.
func UnmountDetach(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", path, err)
}

// BindMount mounts from, with all that is mounted below it, on to as well. Nothing that is mounted in the one later
// appears in the other.
func BindMount(from, to string) error {
	err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
	if err == nil {
		if err = unix.Mount("", to, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			err = errors.Join(err, unix.Unmount(to, unix.MNT_DETACH))
		}
	}
	if err != nil {
		return fmt.Errorf("bind %s on %s: %w", from, to, err)
	}
	return nil
}
