package sys

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// WriteSysctl writes value to the sysctl name as the calling thread sees it: the net.* and the
// namespaced kernel.* ones belong to the thread's namespaces, so it is meant to be used
// inside PinNamespaces.
//
// name has dots ("net.ipv4.ip_forward") or slashes ("net/ipv4/conf/eth0.100/forwarding"); the
// first of them to appear is the separator and the other one is exchanged for it, as in sysctl(8) and
// sysctl.d(5).
//
// The file is opened beneath a private procfs that nobody can have mounted over, and what is opened is
// verified to be procfs, so that the write cannot be led to another file
// (CVE-2019-16884, CVE-2025-52881).
func WriteSysctl(name, value string) error {
	rel, err := SysctlPath(name)
	if err != nil {
		return err
	}
	fd, err := openSysctl(rel)
	if err != nil {
		return fmt.Errorf("sysctl %s: open: %w", name, err)
	}
	defer unix.Close(fd)
	b := []byte(value)
	n, err := unix.Write(fd, b)
	if err == nil && n != len(b) {
		err = fmt.Errorf("%d of %d bytes written", n, len(b))
	}
	if err != nil {
		return fmt.Errorf("sysctl %s: write %q: %w", name, value, err)
	}
	return nil
}

// SysctlPath is the path of the sysctl name below /proc/sys. Its error says what is wrong with name.
func SysctlPath(name string) (string, error) {
	path := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		path = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	if strings.IndexByte(path, 0) >= 0 {
		return "", fmt.Errorf("sysctl %q: a NUL byte in the name", name)
	}
	for c := range strings.SplitSeq(path, "/") {
		if c == "" || c == "." || c == ".." {
			return "", fmt.Errorf("sysctl %q: %q is not a part of a name", name, c)
		}
	}
	return path, nil
}

func openSysctl(rel string) (int, error) {
	root, err := privateProc()
	if err != nil {
		return -1, err
	}
	how := unix.OpenHow{
		Flags: unix.O_WRONLY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV |
			unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	var fd int
	err = retryEINTR(func() error {
		fd, err = unix.Openat2(root, "sys/"+rel, &how)
		return err
	})
	if err != nil {
		return -1, err
	}
	if err := verifyProc(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

var proc struct {
	mu sync.Mutex
	fd int
	ok bool
}

// privateProc is the root of a procfs of our own, which no mount can cover. It is opened once. A kernel
// or a sandbox that denies fsopen gets /proc, where RESOLVE_NO_XDEV refuses what was mounted over it.
func privateProc() (int, error) {
	proc.mu.Lock()
	defer proc.mu.Unlock()
	if proc.ok {
		return proc.fd, nil
	}
	fd, err := mountProc()
	if err != nil {
		var openErr error
		fd, openErr = unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if openErr != nil {
			return -1, fmt.Errorf("private procfs: %w", errors.Join(err, openErr))
		}
	}
	if err := verifyProc(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	proc.fd, proc.ok = fd, true
	return fd, nil
}

func mountProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen proc: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("fsconfig proc: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC,
		unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return -1, fmt.Errorf("fsmount proc: %w", err)
	}
	return fd, nil
}

func verifyProc(fd int) error {
	var st unix.Statfs_t
	if err := retryEINTR(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return fmt.Errorf("fstatfs: %w", err)
	}
	if int64(st.Type) != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("not procfs (filesystem type %#x)", st.Type)
	}
	return nil
}
