package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// InNewMounts runs f, which starts a process, in a mount namespace of its own. What is mounted in the old one is mounted in
// the new one too, but not the other way round, and what the process leaves mounted ends with it.
func InNewMounts(f func() error) error {
	return onDoomedThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("unshare(CLONE_NEWNS)", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return os.NewSyscallError("mount(MS_SLAVE)", err)
		}
		return f()
	})
}
