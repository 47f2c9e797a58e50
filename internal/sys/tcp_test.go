package sys

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDialTCPIn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := netip.MustParseAddrPort(l.Addr().String())
	conn, err := DialTCPIn(t.Context(), "", to)
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(server, "hello")
	server.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("it reads %q, %v; want hello", got, err)
	}
	conn.Close()
	l.Close()
	if _, err := DialTCPIn(t.Context(), "", to); !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), to.String()) {
		t.Errorf("DialTCPIn to nothing = %v; want ECONNREFUSED and the address", err)
	}
}

// A server that accepts nothing: the connection is not answered once the backlog is full.
func TestDialTCPInUnanswered(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		conn, err := DialTCPIn(ctx, "", to)
		cancel()
		if err == nil {
			defer conn.Close()
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("DialTCPIn without an answer = %v; want DeadlineExceeded", err)
		}
		return
	}
	t.Error("a full backlog answers")
}

func TestDialTCPInNamespace(t *testing.T) {
	needRoot(t)
	at := filepath.Join(pinDir(t), "net")
	if err := PinNamespaces([]NamespacePin{{NamespaceNet, at}}, LoopbackUp); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"127.0.0.1:81", "[::1]:82"} {
		var l net.Listener
		if err := WithNetns(at, func() (err error) { l, err = net.Listen("tcp", address); return err }); err != nil {
			t.Fatal(err)
		}
		conn, err := DialTCPIn(t.Context(), at, netip.MustParseAddrPort(address))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		l.Close()
	}
	if err := UnpinNamespace(at); err != nil {
		t.Fatal(err)
	}
	if _, err := DialTCPIn(t.Context(), at, netip.MustParseAddrPort("127.0.0.1:81")); err == nil {
		t.Error("DialTCPIn in a namespace that is gone: no error")
	}
}

// The end of a connection is seen behind data that nobody has read.
func TestPeerGone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	io.WriteString(client, "unread")
	if PeerGone(server.(*net.TCPConn)) {
		t.Error("PeerGone of a connection = true; want false")
	}
	client.Close()
	for deadline := time.Now().Add(30 * time.Second); !PeerGone(server.(*net.TCPConn)); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("PeerGone of one that its client has closed = false; want true")
		}
	}
}
