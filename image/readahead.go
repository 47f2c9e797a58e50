package image

import (
	"errors"
	"io"
	"sync"
)

// readAhead decouples decompression from hashing, and both from unpacking: each has a CPU where there are that many.
type readAhead struct {
	hashed chan chunk
	bufs   []*[readAheadChunk]byte
	free   chan []byte
	stop   chan struct{}
	cur    chunk
	err    error
	filled chan struct{}
	done   chan struct{}
}

type chunk struct {
	buf, rest []byte
	err       error
}

const (
	readAheadChunk  = 256 << 10
	readAheadChunks = 5
)

// readAheadBufs are used again by the next layer: the daemon's heap is small, and much garbage is collected often.
var readAheadBufs = sync.Pool{New: func() any { return new([readAheadChunk]byte) }}

// newReadAhead gives what r gives, to hash first. hash has all of it after close.
func newReadAhead(r io.Reader, hash io.Writer) *readAhead {
	a := &readAhead{
		hashed: make(chan chunk, readAheadChunks), free: make(chan []byte, readAheadChunks),
		stop: make(chan struct{}), filled: make(chan struct{}), done: make(chan struct{}),
	}
	for range readAheadChunks {
		b := readAheadBufs.Get().(*[readAheadChunk]byte)
		a.bufs = append(a.bufs, b)
		a.free <- b[:]
	}
	full := make(chan chunk, readAheadChunks)
	go a.fill(r, full)
	go a.digest(hash, full)
	return a
}

func (a *readAhead) fill(r io.Reader, full chan<- chunk) {
	defer close(a.filled)
	defer close(full)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		n, err := io.ReadFull(r, buf)
		if errors.Is(err, io.ErrUnexpectedEOF) && n > 0 {
			// Either the end, or an end too early: the next read tells.
			err = nil
		}
		full <- chunk{buf, buf[:n], err} // there is room for all there are
		if err != nil {
			return
		}
	}
}

// digest goes on to the end of what was filled, so that hash and reader are of one mind about what there was.
func (a *readAhead) digest(hash io.Writer, full <-chan chunk) {
	defer close(a.done)
	for c := range full {
		_, err := hash.Write(c.rest)
		if c.err == nil {
			c.err = err
		}
		a.hashed <- c
	}
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.cur.rest) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.cur.buf != nil {
			a.free <- a.cur.buf
		}
		a.cur = <-a.hashed
		a.err = a.cur.err
	}
	n := copy(p, a.cur.rest)
	a.cur.rest = a.cur.rest[n:]
	return n, nil
}

// close waits until the source is no longer read and the hash no longer written. Whoever makes the source's reads end
// comes first. Nothing is read any more after it.
func (a *readAhead) close() {
	close(a.stop)
	<-a.filled
	<-a.done
	for _, b := range a.bufs {
		readAheadBufs.Put(b)
	}
	a.bufs = nil
}
