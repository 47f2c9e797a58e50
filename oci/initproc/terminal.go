package initproc

import (
	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// openTerminal opens a terminal in the container's own devpts, sends the master
// to the parent and makes the slave the stdio. Everything goes through
// descriptors whose file system was verified: paths below /dev/pts are the
// image's to fake (CVE-2025-52565).
func (s *setup) openTerminal() error {
	p := &s.m.Process
	const resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS
	master, err := openIn(s.root, "dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, resolve)
	if err != nil {
		return wrap("open", "/dev/pts/ptmx", err)
	}
	defer unix.Close(master)
	if err := verifyPTS(master, "/dev/pts/ptmx"); err != nil {
		return err
	}
	if err := verifyDevice(master, "/dev/pts/ptmx", unix.S_IFCHR, 5, 2); err != nil {
		return err
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return wrap("unlock the terminal", "", err)
	}
	slave, err := ioctlInt(master, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err != nil {
		return wrap("open the terminal's slave", "", err)
	}
	defer unix.Close(slave)
	if err := verifyPTS(slave, "the terminal's slave"); err != nil {
		return err
	}
	if p.ConsoleRows != 0 || p.ConsoleCols != 0 {
		size := unix.Winsize{Row: uint16(p.ConsoleRows), Col: uint16(p.ConsoleCols)}
		if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &size); err != nil {
			return wrap("set the terminal's size", "", err)
		}
	}
	if p.ConsoleFile == initmsg.NoFile {
		return text("message: a terminal needs a console socket")
	}
	if err := sendFile(int(file(p.ConsoleFile)), []byte("/dev/ptmx"), master); err != nil {
		return wrap("send the terminal's master", "", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return wrap("dup the terminal to", itoa(fd), err)
		}
	}
	return nil
}

func verifyPTS(fd int, name string) error {
	t, err := fsType(fd)
	if err == nil && t != unix.DEVPTS_SUPER_MAGIC {
		err = text("not on a devpts")
	}
	return wrap("verify", name, err)
}

// bindConsole puts the terminal, which is stdin by now, on /dev/console.
func (s *setup) bindConsole() error {
	src, err := cloneMount(0)
	if err != nil {
		return wrap("clone", "the terminal", err)
	}
	defer unix.Close(src)
	dir, base, err := parent(s.root, "/dev/console")
	if err != nil {
		return wrap("open", "/dev", err)
	}
	defer unix.Close(dir)
	return wrap("bind", "/dev/console", bindOver(src, dir, base))
}

// sendFile sends a message with a descriptor over a unix socket.
func sendFile(sock int, data []byte, fd int) error {
	rights := unix.UnixRights(fd)
	for {
		err := unix.Sendmsg(sock, data, rights, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

func ioctlInt(fd int, request, arg uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// session makes the process the leader of a session of its own, so that a signal or a
// hangup of the parent's terminal does not reach it, and gives it its terminal.
func (s *setup) session() error {
	// EPERM: it is one already.
	if _, err := unix.Setsid(); err != nil && err != unix.EPERM {
		return wrap("setsid", "", err)
	}
	if !s.m.Process.Terminal {
		return nil
	}
	return wrap("set the controlling terminal", "", unix.IoctlSetPointerInt(0, unix.TIOCSCTTY, 0))
}
