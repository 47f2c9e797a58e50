package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Streams are a client's ends of a process's standard streams. Those that are nil it does not want.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       bool
	// Resizes are the sizes of the client's terminal; nil where it has none. It ends with the client's connection.
	Resizes iter.Seq[TerminalSize]
}

// TerminalSize is in characters.
type TerminalSize struct{ Rows, Cols uint16 }

// drainTime bounds the wait for output after a process's exit: a child that it left in the
// background may hold the pipes open for ever.
const drainTime = 500 * time.Millisecond

const copyBuffer = 32 << 10

// copyBuffers are taken only while there is something to copy.
var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

func takeCopyBuffer() (*[copyBuffer]byte, []byte) {
	b := copyBuffers.Get().(*[copyBuffer]byte)
	return b, b[:]
}

// output copies what a process writes to a writer, which may block as long as it likes: the process alone waits
// for it. What is left when the writer fails is read and dropped.
type output struct {
	r, w *os.File // w until the process has it
	to   io.Writer
	done chan struct{}
	err  error // of the writer, once done
}

// newOutput makes the pipe of an output; to may be nil.
func newOutput(to io.Writer) (*output, error) {
	r, w, err := sys.Pipe(false)
	if err != nil {
		return nil, err
	}
	return &output{r: r, w: w, to: to, done: make(chan struct{})}, nil
}

// start copies in the background; our copy of the writing end must go first, or there would be no end.
func (o *output) start() {
	if o.w != nil {
		o.w.Close()
		o.w = nil
	}
	go func() {
		defer close(o.done)
		raw, err := o.r.SyscallConn()
		if err != nil {
			o.err = err
			return
		}
		for {
			n, b, err := sys.ReadReady(raw, takeCopyBuffer)
			if b != nil {
				o.pass(b[:n])
				copyBuffers.Put(b)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				o.rest(raw)
				return
			}
			if n == 0 || err != nil {
				return
			}
		}
	}()
}

// rest takes what the process left in the pipe, where somebody keeps that open: at most what a pipe holds.
func (o *output) rest(raw syscall.RawConn) {
	b, buf := takeCopyBuffer()
	defer copyBuffers.Put(b)
	const pipeSize = 64 << 10 // pipe(7)
	for left := pipeSize; left > 0; {
		n, err := sys.ReadNow(raw, buf[:min(left, len(buf))])
		if n == 0 || err != nil {
			return
		}
		o.pass(buf[:n])
		left -= n
	}
}

func (o *output) pass(data []byte) {
	if o.err == nil && len(data) > 0 {
		_, o.err = o.to.Write(data)
	}
}

// exited bounds the wait for the end of the output: the process has ended, and what it wrote is in the pipe.
func (o *output) exited() { o.r.SetReadDeadline(time.Now().Add(drainTime)) }

// wait waits until all is copied, or ctx ends; then it may still be copying until close.
func (o *output) wait(ctx context.Context) error {
	if _, memory := o.to.(*capture); memory { // it takes all at once: a command that ended in time has its output
		ctx = context.WithoutCancel(ctx)
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (o *output) close() {
	if o == nil {
		return
	}
	o.r.Close()
	if o.w != nil {
		o.w.Close()
	}
}

// capture keeps what is written, up to a limit.
type capture struct {
	limit int
	bytes.Buffer
}

func (c *capture) Write(p []byte) (int, error) {
	if room := c.limit - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// feed copies a client's input to a pipe or a terminal until either ends. What the process does not want any more is read
// and dropped, so that the client can go on with its other streams.
func feed(to *os.File, from io.Reader, closeAtEnd bool) {
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 16<<10))
	if closeAtEnd {
		to.Close()
	}
	if err != nil {
		io.Copy(io.Discard, struct{ io.Reader }{from})
	}
}
