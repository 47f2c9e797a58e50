package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// client is the daemon's end of the connection to one supervisor.
type client struct {
	id   string // the supervisor's
	conn *sys.Conn
	exit func(*client, *api.Exit)
	gone chan struct{} // closed when the connection has ended
	// ownInit: the supervisor's init is of this daemon's build.
	ownInit bool

	sending chan struct{} // holds one while a frame is being sent

	mu      sync.Mutex
	seq     uint64
	waiting map[uint64]chan answer
	closed  error
}

type answer struct {
	reply *api.Reply
	file  *os.File
}

func newClient(id string, conn *sys.Conn, exit func(*client, *api.Exit)) *client {
	c := &client{id: id, conn: conn, exit: exit, gone: make(chan struct{}), sending: make(chan struct{}, 1), waiting: map[uint64]chan answer{}}
	go c.read()
	return c
}

func (c *client) read() {
	buf := make([]byte, api.MaxFrame)
	for {
		n, files, err := c.conn.Recv(buf, api.MaxFiles)
		if err == nil {
			r := new(api.Reply)
			if err = api.Decode(buf[:n], r); err == nil {
				c.dispatch(r, files)
				continue
			}
			closeFiles(files)
		}
		c.end(err)
		return
	}
}

func (c *client) dispatch(r *api.Reply, files []*os.File) {
	if r.Seq == 0 {
		closeFiles(files)
		if r.Exit != nil {
			c.exit(c, r.Exit)
		}
		if r.Err != nil { // it closes the connection after this
			c.end(r.Err)
		}
		return
	}
	a := answer{reply: r}
	if len(files) > 0 {
		a.file = files[0]
		closeFiles(files[1:])
	}
	c.mu.Lock()
	ch := c.waiting[r.Seq]
	delete(c.waiting, r.Seq)
	c.mu.Unlock()
	if ch == nil { // its caller gave up
		if a.file != nil {
			a.file.Close()
		}
		return
	}
	ch <- a
}

func (c *client) end(err error) {
	c.mu.Lock()
	if c.closed != nil {
		c.mu.Unlock()
		return
	}
	c.closed = fmt.Errorf("%w: supervisor %s: %w", ErrUnavailable, c.id, err)
	for seq, ch := range c.waiting {
		delete(c.waiting, seq)
		close(ch)
	}
	c.mu.Unlock()
	c.conn.Close()
	close(c.gone)
}

// call sends a request and waits for its reply; the returned file is the caller's.
func (c *client) call(ctx context.Context, req *api.Request, files ...*os.File) (*api.Reply, *os.File, error) {
	ch := make(chan answer, 1)
	c.mu.Lock()
	if c.closed != nil {
		defer c.mu.Unlock()
		return nil, nil, c.closed
	}
	c.seq++
	req.Seq = c.seq
	c.waiting[req.Seq] = ch
	c.mu.Unlock()
	if err := c.send(ctx, req, files); err != nil {
		c.drop(req.Seq)
		return nil, nil, fmt.Errorf("supervisor %s: send %s: %w", c.id, req.Op, err)
	}
	select {
	case a, ok := <-ch:
		if !ok {
			return nil, nil, c.closed
		}
		if a.reply.Err != nil {
			if a.file != nil {
				a.file.Close()
			}
			return nil, nil, replyError(a.reply.Err)
		}
		return a.reply, a.file, nil
	case <-ctx.Done():
		c.drop(req.Seq)
		return nil, nil, fmt.Errorf("supervisor %s: no answer to %s: %w", c.id, req.Op, ctx.Err())
	}
}

func (c *client) send(ctx context.Context, req *api.Request, files []*os.File) error {
	frame, err := api.Encode(req)
	if err != nil {
		return err
	}
	select {
	case c.sending <- struct{}{}:
		defer func() { <-c.sending }()
	case <-ctx.Done():
		return fmt.Errorf("it does not read: %w", ctx.Err())
	}
	c.conn.SetSendDeadline(time.Time{})
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		c.conn.SetSendDeadline(time.Unix(1, 0))
	})
	err = c.conn.Send(frame, files...)
	if !stop() {
		<-ended // before the next sender sets its own
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it does not read: %w", ctx.Err())
	case err != nil: // the connection is broken: who waits for an answer is told by its reader
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

func (c *client) drop(seq uint64) {
	c.mu.Lock()
	delete(c.waiting, seq)
	c.mu.Unlock()
}

// replyError keeps what a caller can act on.
func replyError(e *api.Error) error {
	if e.NotFound {
		return errors.Join(ErrNotFound, e)
	}
	return e
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
