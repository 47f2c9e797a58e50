package sys

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// OwnGroup puts a child process into a process group of its own, so that KillGroup reaches
// all that it starts.
func OwnGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// KillGroup sends SIGKILL to the process group that pid leads; nil when nothing of it is left.
func KillGroup(pid int) error {
	if pid <= 1 {
		return fmt.Errorf("kill process group %d: %w", pid, unix.EINVAL) // 0 and 1 would be our own and all
	}
	if err := unix.Kill(-pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process group %d: %w", pid, err)
	}
	return nil
}

// OwnNetworkAndMounts puts a child process into new network and mount namespaces, with mounts that
// do not propagate back, and ends it when the starting thread ends.
func OwnNetworkAndMounts() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:    unix.SIGKILL,
	}
}
