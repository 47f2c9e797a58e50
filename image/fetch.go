package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fetcher reads blobs of a source with patience: it goes on where a connection broke or stalled.
type fetcher struct {
	source
	stall time.Duration
}

const (
	maxFetchTries = 4 // without a byte of progress
	firstBackoff  = 100 * time.Millisecond
)

// reader returns the content of desc, exactly desc.Size bytes of it. It is not verified.
func (f fetcher) reader(ctx context.Context, desc ocispec.Descriptor) *blobReader {
	return &blobReader{ctx: ctx, f: f, desc: desc}
}

type blobReader struct {
	ctx    context.Context
	f      fetcher
	desc   ocispec.Descriptor
	off    int64
	rc     io.ReadCloser
	cancel context.CancelCauseFunc // of the connection that rc is
	conn   context.Context
	timer  *time.Timer
	tries  int
	err    error // sticky: the cause of a failure that a decompressor may hide
}

func (b *blobReader) Read(p []byte) (int, error) {
	for b.err == nil {
		n, err := b.readOnce(p)
		b.off += int64(n)
		if n > 0 {
			b.tries = 0
		}
		switch {
		case b.off > b.desc.Size:
			b.err = b.f.wrap(fmt.Errorf("blob %s: more than the %d bytes that the manifest says: %w", b.desc.Digest, b.desc.Size, ErrDigest))
			return 0, b.err
		case errors.Is(err, io.EOF) && b.off == b.desc.Size:
			return n, io.EOF
		case errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF
		}
		if err == nil && n > 0 {
			return n, nil
		}
		if err != nil {
			b.failed(err)
			if n > 0 {
				return n, nil // and the error, if it stays, at the next call
			}
		}
	}
	return 0, b.err
}

// readOnce reads from the connection, which it makes if there is none.
func (b *blobReader) readOnce(p []byte) (int, error) {
	if err := context.Cause(b.ctx); err != nil {
		return 0, err
	}
	if b.rc == nil {
		b.conn, b.cancel = context.WithCancelCause(b.ctx)
		b.timer = time.AfterFunc(b.f.stall, func() { b.cancel(fmt.Errorf("%w for %v", ErrStalled, b.f.stall)) })
		rc, err := b.f.open(b.conn, b.desc, b.off)
		if err != nil {
			return 0, b.cause(err)
		}
		b.rc = rc
	}
	b.timer.Reset(b.f.stall)
	n, err := b.rc.Read(p)
	b.timer.Stop() // a slow consumer is no stall
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.cause(err)
	}
	return n, err
}

// cause prefers the reason for which the connection was cancelled.
func (b *blobReader) cause(err error) error {
	if c := context.Cause(b.conn); c != nil {
		return c
	}
	return err
}

// failed decides whether to try again, after a pause, or to give up.
func (b *blobReader) failed(err error) {
	b.disconnect()
	b.tries++
	if b.ctx.Err() != nil {
		b.err = context.Cause(b.ctx)
		return
	}
	if permanent(err) || b.tries >= maxFetchTries {
		if !permanent(err) {
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		b.err = b.f.wrap(fmt.Errorf("blob %s at %d of %d bytes, try %d: %w", b.desc.Digest, b.off, b.desc.Size, b.tries, err))
		return
	}
	select {
	case <-b.ctx.Done():
		b.err = context.Cause(b.ctx)
	case <-time.After(firstBackoff << (2 * (b.tries - 1))):
	}
}

func (b *blobReader) disconnect() {
	if b.timer != nil {
		b.timer.Stop()
	}
	if b.cancel != nil {
		b.cancel(nil)
	}
	if b.rc != nil {
		b.rc.Close()
	}
	b.rc, b.cancel, b.timer = nil, nil, nil
}

// Close ends the connection.
func (b *blobReader) Close() error {
	b.disconnect()
	if b.err == nil {
		b.err = errors.New("blob reader is closed")
	}
	return nil
}

// readAhead decouples decompression from hashing and unpacking: each side has a CPU.
type readAhead struct {
	full chan chunk
	free chan []byte
	stop chan struct{}
	cur  chunk
	err  error
	done chan struct{}
}

type chunk struct {
	buf, rest []byte
	err       error
}

const (
	readAheadChunk  = 256 << 10
	readAheadChunks = 4
)

func newReadAhead(r io.Reader) *readAhead {
	a := &readAhead{
		full: make(chan chunk, readAheadChunks), free: make(chan []byte, readAheadChunks),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range readAheadChunks {
		a.free <- make([]byte, readAheadChunk)
	}
	go a.fill(r)
	return a
}

func (a *readAhead) fill(r io.Reader) {
	defer close(a.done)
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
		select {
		case a.full <- chunk{buf, buf[:n], err}:
		case <-a.stop:
			return
		}
		if err != nil {
			return
		}
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
		a.cur = <-a.full
		a.err = a.cur.err
	}
	n := copy(p, a.cur.rest)
	a.cur.rest = a.cur.rest[n:]
	return n, nil
}

// close waits until the source is no longer read. Whoever makes its reads end comes first.
func (a *readAhead) close() {
	close(a.stop)
	<-a.done
}
