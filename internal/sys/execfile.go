package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrMemfdNoExec says that vm.memfd_noexec=2 is in force: this machine runs no program from a memfd.
var ErrMemfdNoExec = errors.New("vm.memfd_noexec=2 forbids programs in memory files")

// SealedExecutable copies r into an executable memfd that nobody can change any more (memfd_create(2)
// with all of F_SEAL_WRITE, F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL). The name is what
// /proc/PID/exe shows. The descriptor is close-on-exec. The error is ErrMemfdNoExec where the machine's
// administrator has forbidden it; see ReadOnlyExecutable.
func SealedExecutable(name string, r io.Reader) (*os.File, error) {
	// Without MFD_EXEC (Linux 6.3) vm.memfd_noexec=1 would take the execute bits away; older kernels
	// do not know the flag and always set them.
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("memfd_create %s: %w", name, ErrMemfdNoExec)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := fillAndSeal(f, r); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func fillAndSeal(f *os.File, r io.Reader) error {
	if _, err := io.Copy(f, r); err != nil {
		return fmt.Errorf("memfd %s: copy: %w", f.Name(), err)
	}
	// Who may not read it may not trace what runs it either, whatever it may do in a user namespace of its own: the kernel
	// then asks for CAP_SYS_PTRACE where the file's owner is (would_dump in fs/exec.c). That is root of the node.
	if err := f.Chmod(0o711); err != nil {
		return fmt.Errorf("memfd %s: chmod: %w", f.Name(), err)
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("memfd %s: seal: %w", f.Name(), err)
	}
	return nil
}

// ReadOnlyExecutable opens the regular file at path through a read-only mount of its own that is
// attached nowhere. A process that runs it finds EROFS behind /proc/self/exe, whatever its rights
// (CVE-2019-5736), and a noexec mount underneath (Debian's /run) does not matter. Needs CAP_SYS_ADMIN
// and mount_setattr(2), Linux 5.12. The file may be unlinked afterwards; the mount ends with the last
// use of the file.
func ReadOnlyExecutable(path string) (*os.File, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("open_tree %s: %w", path, err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Attr_clr: unix.MOUNT_ATTR_NOEXEC}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, fmt.Errorf("mount_setattr %s: %w", path, err)
	}
	// The tree's descriptor is O_PATH; this one can be read and keeps the mount alive.
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(tree), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s through its read-only mount: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
