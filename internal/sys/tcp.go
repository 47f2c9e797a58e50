package sys

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DialTCPIn connects to an address in the network namespace at netns ("" is the process's own). Only the making of the socket
// takes a thread into the namespace: a socket belongs to the namespace in which it was made.
func DialTCPIn(ctx context.Context, netns string, to netip.AddrPort) (net.Conn, error) {
	var s *os.File
	open := func() (err error) {
		s, err = tcpSocket(to.Addr().Is4())
		return err
	}
	var err error
	if netns == "" {
		err = open()
	} else {
		err = WithNetns(netns, open)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	defer s.Close() // FileConn duplicates it
	if err := connect(ctx, s, to); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return net.FileConn(s)
}

func tcpSocket(v4 bool) (*os.File, error) {
	family := unix.AF_INET6
	if v4 {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return os.NewFile(uintptr(fd), "tcp"), nil
}

func connect(ctx context.Context, s *os.File, to netip.AddrPort) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var address unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Is4() {
		address = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	// Before the call: the poller knows a socket only once it is connecting.
	var opErr error
	if err := raw.Control(func(fd uintptr) { opErr = unix.Connect(int(fd), address) }); err != nil {
		return err
	}
	if opErr == nil || opErr != unix.EINPROGRESS {
		return os.NewSyscallError("connect", opErr)
	}
	stop := context.AfterFunc(ctx, func() { s.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	err = raw.Write(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(p, 0); err == nil && n == 0 {
			return false
		}
		var code int
		if code, opErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); opErr == nil && code != 0 {
			opErr = syscall.Errno(code)
		}
		return true
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("no answer: %w", ctx.Err())
	}
	return errors.Join(err, os.NewSyscallError("connect", opErr))
}

// PeerGone tells whether the peer of a TCP connection has closed it, also while there is data from it to be read: then a
// reader would not learn it before it has read that.
func PeerGone(conn syscall.Conn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	established := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		const tcpEstablished = 1 // enum in include/net/tcp_states.h
		established = err == nil && info.State == tcpEstablished
	})
	return err != nil || !established
}
