package sys

import (
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Caller is one end of a SOCK_SEQPACKET socket whose only user asks and waits: it blocks its thread in the kernel,
// which wakes it faster than the poller would. It is for one goroutine at a time.
type Caller struct{ f *os.File }

// NewCaller returns an end and the other one, to be handed over.
func NewCaller() (*Caller, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return &Caller{os.NewFile(uintptr(fds[0]), "caller")}, os.NewFile(uintptr(fds[1]), "callee"), nil
}

// Send sends one message; the files stay the caller's.
func (c *Caller) Send(data []byte, files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	err := retryEINTR(func() error {
		return unix.Sendmsg(int(c.f.Fd()), data, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
	})
	for _, f := range files {
		keepAlive(f)
	}
	return os.NewSyscallError("sendmsg", err)
}

// Recv receives one message, at most len(buf) bytes; io.EOF when the other end is gone.
func (c *Caller) Recv(buf []byte) (n int, err error) {
	err = retryEINTR(func() (err error) {
		n, err = unix.Read(int(c.f.Fd()), buf)
		return err
	})
	if err == nil && n == 0 || err == unix.ECONNRESET {
		return 0, io.EOF
	}
	return n, os.NewSyscallError("recv", err)
}

// SetTimeout bounds each Recv from now on; 0 is no bound. What takes longer is EAGAIN.
func (c *Caller) SetTimeout(d time.Duration) error {
	tv := unix.NsecToTimeval(int64(d))
	return os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(int(c.f.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
}

// Close closes this end.
func (c *Caller) Close() error { return c.f.Close() }
