package supervisor

import (
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// fanout copies a container's output to attached clients. A client that does not
// keep up is dropped: neither the container nor the log waits for it.
type fanout struct {
	mu      sync.Mutex
	clients []*client
	ended   bool
}

type client struct {
	out, err *pipeEnd
}

type pipeEnd struct {
	f   *os.File
	raw syscall.RawConn
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
}

// attach adds a client; it takes over the files, either of which may be nil.
func (f *fanout) attach(stdout, stderr *os.File) error {
	out, err := newPipeEnd(stdout)
	if err != nil {
		return err
	}
	errEnd, err := newPipeEnd(stderr)
	if err != nil {
		out.close()
		return err
	}
	c := &client{out: out, err: errEnd}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		c.close()
		return nil
	}
	f.clients = append(f.clients, c)
	return nil
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
		if end != nil && !deliver(end, data) {
			c.close()
			continue
		}
		kept = append(kept, c)
	}
	clear(f.clients[len(kept):])
	f.clients = kept
}

func deliver(end *pipeEnd, data []byte) bool {
	for len(data) > 0 {
		n, err := sys.WriteNow(end.raw, data)
		if err != nil || n == 0 {
			return false
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

// input is the writing side of a container's standard input, kept open while nobody is attached.
type input struct {
	mu   sync.Mutex
	w    *os.File          // nil once closed
	from map[*os.File]bool // clients that feed it
	once bool
	// shared: the writer is also the terminal's reader, which end closes.
	shared bool
}

// feed copies from a client until it ends, then closes the input if it is for one client only.
func (in *input) feed(from *os.File) {
	defer from.Close()
	in.mu.Lock()
	w := in.w
	if w == nil {
		in.mu.Unlock()
		return
	}
	if in.from == nil {
		in.from = map[*os.File]bool{}
	}
	in.from[from] = true
	in.mu.Unlock()
	defer func() {
		in.mu.Lock()
		delete(in.from, from)
		in.mu.Unlock()
	}()
	io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{from}, make([]byte, 4<<10))
	if in.once {
		in.close()
	}
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
		f.Close() // wakes a feeder whose client neither writes nor goes
	}
}
