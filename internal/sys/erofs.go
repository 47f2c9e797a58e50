package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// NoErofsError says why the kernel cannot mount a file as an EROFS image. It matches errors.ErrUnsupported.
type NoErofsError struct {
	Reason string
	Err    error
}

func (e *NoErofsError) Error() string { return fmt.Sprintf("mount erofs: %s: %v", e.Reason, e.Err) }

func (e *NoErofsError) Unwrap() error { return e.Err }

// Is makes it match errors.ErrUnsupported.
func (e *NoErofsError) Is(target error) bool { return target == errors.ErrUnsupported }

// MountErofs mounts an image file, without a loop device (Linux 6.12, CONFIG_EROFS_FS_BACKED_BY_FILE). The mount is
// detached and read-only: it lives as long as the returned file, which is its root, or as what it is attached to, and f
// need not stay open. Devices in it can be opened, unless what it is used for forbids that.
func MountErofs(f *os.File) (*os.File, error) {
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, &NoErofsError{"the kernel has no EROFS (CONFIG_EROFS_FS)", err}
	case errors.Is(err, unix.ENOSYS):
		return nil, &NoErofsError{"the kernel has no fsopen (Linux 5.2)", err}
	case err != nil:
		return nil, fmt.Errorf("mount erofs: fsopen: %w", err)
	}
	fs := os.NewFile(uintptr(fd), "fsopen:erofs")
	defer fs.Close()
	if err := unix.FsconfigSetString(fd, "source", "/proc/self/fd/"+strconv.Itoa(int(f.Fd()))); err != nil {
		return nil, fsError(fd, "erofs", "source", err)
	}
	err = noEINTR(func() error { return unix.FsconfigCreate(fd) })
	switch {
	case errors.Is(err, unix.ENOTBLK):
		return nil, &NoErofsError{"files cannot be mounted (Linux 6.12, CONFIG_EROFS_FS_BACKED_BY_FILE) or not those of the file system of " + f.Name(), err}
	case err != nil:
		return nil, fsError(fd, "erofs", f.Name(), err)
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return nil, fsError(fd, "erofs", "fsmount", err)
	}
	return os.NewFile(uintptr(m), "erofs"), nil
}
