package sys

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// PassCredentials makes the kernel say with each message which process sent it (unix(7), SO_PASSCRED).
func (c *Conn) PassCredentials() error {
	var optErr error
	err := c.raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	})
	return errors.Join(err, os.NewSyscallError("SO_PASSCRED", optErr))
}

// RecvFrom receives one message and the process ID of its sender, as this process's PID namespace knows it.
// PassCredentials must have been called before it was sent. io.EOF: the other end is gone.
func (c *Conn) RecvFrom(buf []byte) (n, pid int, err error) {
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	var oobn int
	var opErr error
	err = c.raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, opErr = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
		return opErr != unix.EAGAIN && opErr != unix.EINTR
	})
	if err := errors.Join(err, os.NewSyscallError("recvmsg", opErr)); err != nil {
		return 0, 0, err
	}
	if n == 0 {
		return 0, 0, io.EOF
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) == 0 {
		return 0, 0, errors.Join(errors.New("a message without credentials"), err)
	}
	cred, err := unix.ParseUnixCredentials(&msgs[0])
	if err != nil {
		return 0, 0, os.NewSyscallError("control message", err)
	}
	return n, int(cred.Pid), nil
}

// DialStream connects to the SOCK_STREAM unix socket at path. The file blocks, for handing over.
func DialStream(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = shortPath(path, func(short string) error { return unix.Connect(fd, &unix.SockaddrUnix{Name: short}) })
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// SendConsole hands the master of a terminal, which it closes, to who listens at a console socket (runc's terminals.md).
func SendConsole(socket string, master *os.File) error {
	defer master.Close()
	to, err := DialStream(socket)
	if err != nil {
		return fmt.Errorf("console socket: %w", err)
	}
	defer to.Close()
	return SendFile(to, master)
}

// SendFile sends a descriptor over a connected unix socket, as the only one of a message; the file stays the caller's.
func SendFile(to, f *os.File) error {
	err := retryEINTR(func() error {
		return unix.Sendmsg(int(to.Fd()), []byte(f.Name()), unix.UnixRights(int(f.Fd())), nil, unix.MSG_NOSIGNAL)
	})
	keepAlive(to)
	keepAlive(f)
	return os.NewSyscallError("sendmsg", err)
}
