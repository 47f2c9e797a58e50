package cri

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

const (
	// peerCheck is how often a connection is looked at whose data nobody reads: its end stands behind the data.
	peerCheck = time.Second
	// lingerTime is how long data is still taken from a client after the last word to it. A connection that is closed
	// with unread data is reset, and the client would lose that word.
	lingerTime = 2 * time.Second
)

// streamListener accepts connections that know when their client has gone.
type streamListener struct {
	net.Listener
	stall time.Duration
}

func (l *streamListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &streamConn{Conn: c, stall: l.stall, gone: func() {}}, nil
}

// streamConn ends the context of its requests when the client has gone or takes nothing for too long: a
// server does not do so for a connection that it gave away.
type streamConn struct {
	net.Conn
	stall time.Duration
	gone  context.CancelFunc
	close sync.Once
}

type connKey struct{}

func streamConnOf(c net.Conn) *streamConn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS
		c = t.NetConn()
	}
	return c.(*streamConn)
}

func connContext(ctx context.Context, c net.Conn) context.Context {
	conn := streamConnOf(c)
	ctx, conn.gone = context.WithCancel(ctx)
	return context.WithValue(ctx, connKey{}, conn)
}

func connOf(ctx context.Context) *streamConn { return ctx.Value(connKey{}).(*streamConn) }

func (c *streamConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.gone()
	}
	return n, err
}

func (c *streamConn) Write(p []byte) (int, error) {
	c.Conn.SetWriteDeadline(time.Now().Add(c.stall))
	n, err := c.Conn.Write(p)
	if err != nil {
		c.gone()
	}
	return n, err
}

// Close closes it for writing at once, and altogether once the client has done the same.
func (c *streamConn) Close() error {
	c.close.Do(func() {
		c.gone()
		tcp, ok := c.Conn.(*net.TCPConn)
		if !ok || tcp.CloseWrite() != nil {
			c.Conn.Close()
			return
		}
		go func() {
			tcp.SetReadDeadline(time.Now().Add(lingerTime))
			io.Copy(io.Discard, struct{ io.Reader }{tcp})
			tcp.Close()
		}()
	})
	return nil
}

// closeLater is for what the protocols leave open: after a client that does not open its streams.
func (c *streamConn) closeLater() { time.AfterFunc(closeTime, func() { c.Close() }) }

// watch looks now and then whether the client is there, until ctx ends.
func (c *streamConn) watch(ctx context.Context) {
	raw, ok := c.Conn.(syscall.Conn)
	if !ok {
		return
	}
	var timer *time.Timer
	var mu sync.Mutex // the function may run before timer is set
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(peerCheck, func() {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case ctx.Err() != nil:
		case sys.PeerGone(raw):
			c.gone()
		default:
			timer.Reset(peerCheck)
		}
	})
}

// splitPath takes a path of two elements apart.
func splitPath(path string) (op, token string) {
	op, token, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return op, token
}
