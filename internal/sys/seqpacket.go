package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is one end of a SOCK_SEQPACKET unix socket: whole messages, with
// descriptors beside them (unix(7), SCM_RIGHTS). Send and Recv are each for
// one goroutine at a time.
type Conn struct {
	f   *os.File
	raw syscall.RawConn
	oob []byte
}

func newConn(fd int, name string) (*Conn, error) {
	f := os.NewFile(uintptr(fd), name) // non-blocking, so it uses the poller
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Conn{f: f, raw: raw}, nil
}

// ListenSeqpacket makes a listening socket at path with mode 0600. The file is
// for handing over to another process, or for FileListener.
func ListenSeqpacket(path string) (*os.File, error) { return listenUnix(path, unix.SOCK_SEQPACKET) }

// ListenStream is ListenSeqpacket for peers that know stream sockets only. What Recv of a connection gets is then no
// whole message, but descriptors come with the bytes that they were sent with.
func ListenStream(path string) (*os.File, error) { return listenUnix(path, unix.SOCK_STREAM) }

func listenUnix(path string, kind int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	err = shortPath(path, func(short string) error { return unix.Bind(fd, &unix.SockaddrUnix{Name: short}) })
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("bind %s: %w", path, err)
	}
	if err := errors.Join(os.Chmod(path, 0o600), os.NewSyscallError("listen", unix.Listen(fd, 8))); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// shortPath calls use with a name for path that fits a socket address, which has 108 bytes
// (unix(7)): through a descriptor of the folder where path itself is too long.
func shortPath(path string, use func(string) error) error {
	if len(path) < 108 {
		return use(path)
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return use("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(path))
}

// Accept waits for the next connection on a listening socket.
func Accept(listener *os.File) (*Conn, error) {
	raw, err := listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var opErr error
	err = raw.Read(func(l uintptr) bool {
		fd, _, opErr = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return opErr != unix.EAGAIN && opErr != unix.EINTR
	})
	if err := errors.Join(err, opErr); err != nil {
		return nil, err
	}
	return newConn(fd, "seqpacket")
}

// DialSeqpacket connects to the socket at path.
func DialSeqpacket(path string) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = shortPath(path, func(short string) error { return unix.Connect(fd, &unix.SockaddrUnix{Name: short}) })
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect %s: %w", path, err)
	}
	return newConn(fd, path)
}

// Close closes the connection; a blocked Recv returns.
func (c *Conn) Close() error { return c.f.Close() }

// SetSendDeadline bounds Send.
func (c *Conn) SetSendDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }

// Send sends one message. The files stay the caller's.
func (c *Conn) Send(data []byte, files ...*os.File) error {
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	var opErr error
	err := c.raw.Write(func(fd uintptr) bool {
		opErr = unix.Sendmsg(int(fd), data, oob, nil, unix.MSG_NOSIGNAL)
		return opErr != unix.EAGAIN && opErr != unix.EINTR
	})
	for _, f := range files {
		keepAlive(f)
	}
	return errors.Join(err, os.NewSyscallError("sendmsg", opErr))
}

// Recv receives one message into buf and returns its length and the files beside
// it, which are the caller's. A message or a list of files that does not
// fit is an error, and nothing of it is kept. io.EOF: the other end is gone.
func (c *Conn) Recv(buf []byte, maxFiles int) (int, []*os.File, error) {
	if need := unix.CmsgSpace(4 * maxFiles); len(c.oob) < need {
		c.oob = make([]byte, need)
	}
	var n, oobn, flags int
	var opErr error
	err := c.raw.Read(func(fd uintptr) bool {
		n, oobn, flags, _, opErr = unix.Recvmsg(int(fd), buf, c.oob, unix.MSG_CMSG_CLOEXEC)
		return opErr != unix.EAGAIN && opErr != unix.EINTR
	})
	if opErr == unix.ECONNRESET || (err == nil && opErr == nil && n == 0 && oobn == 0) {
		return 0, nil, io.EOF
	}
	if err := errors.Join(err, os.NewSyscallError("recvmsg", opErr)); err != nil {
		return 0, nil, err
	}
	files, err := parseRights(c.oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("message larger than %d bytes or %d files", len(buf), maxFiles)
	}
	if err != nil {
		closeAll(files)
		return 0, nil, err
	}
	return n, files, nil
}

func parseRights(oob []byte) ([]*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, os.NewSyscallError("control message", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // credentials and the like carry no descriptors
		}
		for _, fd := range fds {
			files = append(files, newFile(fd))
		}
	}
	return files, nil
}

// newFile wraps a received descriptor without changing its mode: O_NONBLOCK is
// a property of the open file that the sender shares.
func newFile(fd int) *os.File { return os.NewFile(uintptr(fd), "received") }

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// Socketpair returns two connected SOCK_SEQPACKET ends: one to receive from, and one to hand over.
func Socketpair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	c, err := newConn(fds[0], "socketpair")
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	return c, os.NewFile(uintptr(fds[1]), "socketpair"), nil
}

// SetRecvDeadline bounds Recv.
func (c *Conn) SetRecvDeadline(t time.Time) error { return c.f.SetReadDeadline(t) }

// FileConn takes over the end of a socket pair that was handed over.
func FileConn(f *os.File) (*Conn, error) {
	f, err := Pollable(f)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Conn{f: f, raw: raw}, nil
}

// ReceiveFile takes a descriptor that was sent as the only one of a message, for the poller.
func ReceiveFile(c *Conn) (*os.File, error) {
	n, files, err := c.Recv(make([]byte, 16), 1)
	if err != nil {
		return nil, err
	}
	if n == 0 || len(files) != 1 {
		closeAll(files)
		return nil, errors.New("a message without a descriptor")
	}
	return Pollable(files[0])
}
