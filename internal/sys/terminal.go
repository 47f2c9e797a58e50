package sys

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// IsTerminal says whether a file is a terminal.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	runtime.KeepAlive(f)
	return err == nil
}

// GetWinsize is a terminal's size in characters.
func GetWinsize(tty *os.File) (rows, cols uint16, err error) {
	size, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ)
	runtime.KeepAlive(tty)
	if err != nil {
		return 0, 0, os.NewSyscallError("TIOCGWINSZ", err)
	}
	return size.Row, size.Col, nil
}

// MakeRaw puts a terminal into raw mode (cfmakeraw(3)) and returns what undoes it.
func MakeRaw(tty *os.File) (restore func() error, err error) {
	old, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		return nil, os.NewSyscallError("TCGETS", err)
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, &raw); err != nil {
		return nil, os.NewSyscallError("TCSETS", err)
	}
	return func() error {
		err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, old)
		runtime.KeepAlive(tty)
		return os.NewSyscallError("TCSETS", err)
	}, nil
}

// Inherited is a descriptor that this process was started with. It is an error where there is none: whatever
// this process has opened itself is close-on-exec.
func Inherited(fd int) (*os.File, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err == nil && flags&unix.FD_CLOEXEC != 0 {
		err = unix.EBADF
	}
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "inherited"), nil
}
