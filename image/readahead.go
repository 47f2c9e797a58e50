package image

import (
	"errors"
	"io"
	"iter"
	"sync"
)

// readAhead gives what a source gives, and hashes it before. While others keep the processors busy, a piece is made when
// it is asked for, and hashed and used while the processor's cache has it. From when a processor is free on, the source
// runs ahead of the hash, and both ahead of the reader: each has a processor where there are that many.
type readAhead struct {
	hash  io.Writer
	spare func() bool // a processor is free

	next   func() ([]byte, bool) // the source's next piece, valid until the one after it
	end    func()
	srcErr error // after the last piece

	cur  chunk // the reader's
	err  error
	stop chan struct{}

	// Ahead of the reader:
	hashed chan chunk // nil before
	free   chan []byte
	bufs   []*[readAheadChunk]byte
	work   sync.WaitGroup
}

type chunk struct {
	buf, rest []byte
	err       error // behind rest
}

const (
	readAheadChunk  = 128 << 10 // a block of zstd
	readAheadChunks = 8
)

// readAheadBufs are used again by the next layer: the daemon's heap is small, and much garbage is collected often.
var readAheadBufs = sync.Pool{New: func() any { return new([readAheadChunk]byte) }}

var errReaderGone = errors.New("the reader is gone")

// newReadAhead gives what r gives, to hash first. hash has all of it after close.
func newReadAhead(r io.Reader, hash io.Writer, spare func() bool) *readAhead {
	a := &readAhead{hash: hash, spare: spare, stop: make(chan struct{})}
	a.next, a.end = iter.Pull(func(yield func([]byte) bool) {
		a.srcErr = eachPiece(r, yield)
	})
	return a
}

// eachPiece calls yield with what r gives; if it can, in r's own memory.
func eachPiece(r io.Reader, yield func([]byte) bool) error {
	var buf []byte
	if _, ok := r.(io.WriterTo); !ok {
		b := readAheadBufs.Get().(*[readAheadChunk]byte)
		defer readAheadBufs.Put(b)
		buf = b[:]
	}
	_, err := io.CopyBuffer(yieldWriter(yield), r, buf)
	if err == nil {
		err = io.EOF
	}
	return err
}

type yieldWriter func([]byte) bool

func (w yieldWriter) Write(p []byte) (int, error) {
	if len(p) > 0 && !w(p) {
		return 0, errReaderGone
	}
	return len(p), nil
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.cur.rest) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.cur.buf != nil {
			a.free <- a.cur.buf
		}
		a.cur = a.take()
		a.err = a.cur.err
	}
	n := copy(p, a.cur.rest)
	a.cur.rest = a.cur.rest[n:]
	return n, nil
}

func (a *readAhead) take() chunk {
	if a.hashed == nil && a.spare() {
		a.goAhead()
	}
	if a.hashed != nil {
		return <-a.hashed
	}
	p, ok := a.next()
	if !ok {
		return chunk{err: a.srcErr}
	}
	_, err := a.hash.Write(p)
	return chunk{rest: p, err: err}
}

func (a *readAhead) goAhead() {
	a.hashed = make(chan chunk, readAheadChunks)
	a.free = make(chan []byte, readAheadChunks)
	for range readAheadChunks {
		b := readAheadBufs.Get().(*[readAheadChunk]byte)
		a.bufs = append(a.bufs, b)
		a.free <- b[:]
	}
	full := make(chan chunk, readAheadChunks)
	a.work.Go(func() { a.fill(full) })
	a.work.Go(func() { a.digest(full) })
}

// fill copies the pieces to chunks. The last one has the error, and perhaps nothing else.
func (a *readAhead) fill(full chan<- chunk) {
	defer close(full)
	var piece []byte
	for more := true; more; {
		var c chunk
		select {
		case c.buf = <-a.free:
		case <-a.stop:
			return
		}
		n := 0
		for n < len(c.buf) {
			if len(piece) == 0 {
				if piece, more = a.next(); !more {
					c.err = a.srcErr
					break
				}
			}
			m := copy(c.buf[n:], piece)
			piece, n = piece[m:], n+m
		}
		c.rest = c.buf[:n]
		full <- c // there is room for all there are
	}
}

// digest goes on to the end of what was filled, so that hash and reader are of one mind about what there was.
func (a *readAhead) digest(full <-chan chunk) {
	for c := range full {
		if _, err := a.hash.Write(c.rest); err != nil {
			c.err = err
		}
		a.hashed <- c
	}
}

// close waits until the source is no longer read and the hash no longer written. Whoever makes the source's reads end
// comes first. Nothing is read any more after it.
func (a *readAhead) close() {
	close(a.stop)
	a.work.Wait()
	a.end()
	for _, b := range a.bufs {
		readAheadBufs.Put(b)
	}
	a.bufs = nil
}
