package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// fanout copies a container's output to attached clients. Neither the container nor the log waits for a client:
// what one does not take is skipped, and it is told so before it gets more.
type fanout struct {
	mu      sync.Mutex
	clients []*client
	ended   bool
}

// client is an attached one.
type client struct {
	out, err *pipeEnd
	// session ends when the client has gone, also one that never gets any output. An earlier daemon sends none.
	session *os.File
}

type pipeEnd struct {
	f    *os.File
	raw  syscall.RawConn
	lost int // bytes since it was full
}

func newPipeEnd(f *os.File) (*pipeEnd, error) {
	if f == nil {
		return nil, nil
	}
	f, err := sys.Pollable(f)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &pipeEnd{f: f, raw: raw}, nil
}

func (p *pipeEnd) close() {
	if p != nil {
		p.f.Close()
	}
}

func (c *client) close() {
	c.out.close()
	c.err.close()
	if c.session != nil {
		c.session.Close()
	}
}

// attach adds a client; it takes over the files, any of which may be nil.
func (f *fanout) attach(stdout, stderr, session *os.File) (*client, error) {
	c := &client{session: session}
	var err error
	if c.out, err = newPipeEnd(stdout); err == nil {
		c.err, err = newPipeEnd(stderr)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		c.close()
		return c, nil
	}
	f.clients = append(f.clients, c)
	return c, nil
}

// detach drops a client.
func (f *fanout) detach(c *client) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.clients, c); i >= 0 {
		f.clients = slices.Delete(f.clients, i, i+1)
		c.close()
	}
}

func (f *fanout) output(stream string, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := f.clients[:0]
	for _, c := range f.clients {
		end := c.out
		if stream == streamStderr {
			end = c.err
		}
		if end != nil && !end.deliver(data) {
			c.close()
			continue
		}
		kept = append(kept, c)
	}
	clear(f.clients[len(kept):])
	f.clients = kept
}

// deliver writes what fits; it is false when nobody reads any more.
func (p *pipeEnd) deliver(data []byte) bool {
	if p.lost > 0 {
		// Shorter than PIPE_BUF, so it is written as a whole or not at all.
		note := fmt.Appendf(nil, "\r\n[cri-shim: %d bytes of output skipped: this client does not keep up]\r\n", p.lost)
		switch n, err := sys.WriteNow(p.raw, note); {
		case err != nil:
			return false
		case n == 0:
			p.lost += len(data)
			return true
		}
		p.lost = 0
	}
	for len(data) > 0 {
		n, err := sys.WriteNow(p.raw, data)
		if err != nil {
			return false
		}
		if n == 0 {
			p.lost = len(data)
			return true
		}
		data = data[n:]
	}
	return true
}

// end closes every client: the container's output has ended.
func (f *fanout) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	for _, c := range f.clients {
		c.close()
	}
	f.clients = nil
}

// lingerTime is how long a container may take to read what a client that has gone typed last.
const lingerTime = time.Second

// attend waits until a client has gone, and lets go of what it had.
func (p *process) attend(c *client, fed *feeder) {
	c.session.Read(make([]byte, 1)) // nothing is ever written
	p.fan.detach(c)
	if fed != nil {
		fed.to.SetWriteDeadline(time.Now().Add(lingerTime))
	}
}

// input is the writing side of a container's standard input, kept open while nobody is attached.
type input struct {
	mu   sync.Mutex
	w    *os.File         // nil once closed
	from map[*feeder]bool // clients that feed it
	once bool
	// shared: the writer is also the terminal's reader, which end closes.
	shared bool
}

// feeder copies one client's input. It has a descriptor of its own for each side, so that it can be ended alone.
type feeder struct {
	in       *input
	from, to *os.File
}

// feeder returns nil, and closes from, where the input has been closed.
func (in *input) feeder(from *os.File) (*feeder, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.w == nil {
		return nil, from.Close()
	}
	to, err := sys.Dup(in.w)
	if err != nil {
		return nil, errors.Join(err, from.Close())
	}
	f := &feeder{in: in, from: from, to: to}
	if in.from == nil {
		in.from = map[*feeder]bool{}
	}
	in.from[f] = true
	return f, nil
}

// run copies until the client's input ends, then closes the container's if it is for one client only.
func (f *feeder) run() {
	io.CopyBuffer(struct{ io.Writer }{f.to}, struct{ io.Reader }{f.from}, make([]byte, 4<<10))
	f.close()
	f.in.mu.Lock()
	delete(f.in.from, f)
	f.in.mu.Unlock()
	if f.in.once {
		f.in.close()
	}
}

func (f *feeder) close() {
	f.from.Close()
	f.to.Close()
}

func (in *input) close() {
	if in == nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.w != nil && !in.shared {
		in.w.Close()
	}
	in.w = nil
	for f := range in.from {
		f.close() // wakes one whose client neither writes nor goes, or whose container does not read
	}
}
