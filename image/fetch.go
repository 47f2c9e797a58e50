package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fetcher reads blobs of a source with patience: it goes on where a connection broke or stalled, there or elsewhere.
type fetcher struct {
	source
	stall    time.Duration
	progress *progress // of the pull; nil counts nothing
}

const (
	maxFetchTries = 4        // without progress
	minProgress   = 64 << 10 // bytes; a registry that sends less between two stalls is not worth the wait
	firstBackoff  = 100 * time.Millisecond
)

// errNoPlace: nobody is configured to be asked.
var errNoPlace = errors.New("no host has the capability \"pull\"")

// whole calls try with readers of desc's content until it has been given the right one: with all places, and if what
// came was wrong, with each of them alone. try must return errWrongBlob for content with another digest, and undo
// what it did.
func (f fetcher) whole(ctx context.Context, desc ocispec.Descriptor, p *partial, try func(*blobReader) error) error {
	all := f.places()
	if len(all) == 0 {
		return f.wrap(-1, errNoPlace)
	}
	attempt := func(places []int, p *partial) (*blobReader, error) {
		b := f.reader(ctx, desc, places)
		b.partial = p
		defer b.Close()
		return b, try(b)
	}
	b, err := attempt(all, p)
	if p.existed() && errors.Is(err, errWrongBlob) {
		// What an earlier pull left did not fit. It may have been the only thing wrong.
		p.restart()
		b, err = attempt(all, p)
	}
	if !errors.Is(err, errWrongBlob) || len(all) == 1 {
		return err
	}
	// Pieces of several hosts tell nothing about each of them.
	var said tried
	if len(b.used) == 1 {
		f.blame(b.used[0])
	}
	said.add(err)
	for _, place := range all {
		if len(b.used) == 1 && place == b.used[0] {
			continue
		}
		p.restart()
		_, err := attempt([]int{place}, p)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		f.blame(place)
		said.add(err)
	}
	return said.err(f.registry())
}

// reader returns the content of desc, exactly desc.Size bytes of it, from places. It is not verified.
func (f fetcher) reader(ctx context.Context, desc ocispec.Descriptor, places []int) *blobReader {
	return &blobReader{ctx: ctx, f: f, desc: desc, left: places, began: time.Now()}
}

type blobReader struct {
	ctx     context.Context
	f       fetcher
	desc    ocispec.Descriptor
	partial *partial // what there already is of it, and where more of it is put; nil for none
	off     int64
	left    []int // places to try; the first is in use
	used    []int // places that sent something, in the order of their first
	said    tried
	rc      io.ReadCloser
	cancel  context.CancelCauseFunc // of the connection that rc is
	conn    context.Context
	timer   *time.Timer
	tries   int
	// failedAt is where the last failure was.
	failedAt int64
	err      error // sticky: the cause of a failure that a decompressor may hide
	began    time.Time
	waited   atomic.Int64 // nanoseconds in which data was waited for
}

// busy tells whether what the data goes to takes longer than the data takes to come. It may be asked while Read runs.
func (b *blobReader) busy() bool {
	return time.Duration(b.waited.Load()) < time.Since(b.began)/2
}

func (b *blobReader) Read(p []byte) (int, error) {
	for b.err == nil {
		if b.rc == nil && b.off == b.desc.Size && b.off > 0 {
			return 0, io.EOF
		}
		if n := b.partial.readAt(p, b.off); n > 0 {
			b.off += int64(n)
			b.f.progress.had(int64(n))
			return n, nil
		}
		start, place := time.Now(), b.left[0]
		n, err := b.readOnce(p)
		b.waited.Add(int64(time.Since(start)))
		b.f.progress.read(n, start, b.f.host(place))
		b.off += int64(n)
		if n > 0 {
			b.noteUsed()
		}
		if b.off-b.failedAt >= minProgress {
			b.tries = 0
		}
		switch {
		case b.off > b.desc.Size:
			b.err = b.f.wrap(b.left[0], wrongBlob("blob %s: more than the %d bytes that the manifest says", b.desc.Digest, b.desc.Size))
			return 0, b.err
		case errors.Is(err, io.EOF) && b.off == b.desc.Size:
			b.partial.add(p[:n])
			return n, io.EOF
		case errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF
		}
		b.partial.add(p[:n])
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

func (b *blobReader) noteUsed() {
	for _, u := range b.used {
		if u == b.left[0] {
			return
		}
	}
	b.used = append(b.used, b.left[0])
}

// sender is who sent the blob, or a negative number if it was not one host alone.
func (b *blobReader) sender() int {
	if len(b.used) == 1 && !b.partial.existed() {
		return b.used[0]
	}
	return -1
}

// readOnce reads from the connection, which it makes if there is none.
func (b *blobReader) readOnce(p []byte) (int, error) {
	if err := context.Cause(b.ctx); err != nil {
		return 0, err
	}
	if b.rc == nil {
		b.conn, b.cancel = context.WithCancelCause(b.ctx)
		cancel := b.cancel
		b.timer = time.AfterFunc(b.f.stall, func() { cancel(fmt.Errorf("%w for %v", ErrStalled, b.f.stall)) })
		rc, err := b.f.open(b.conn, b.desc, b.off, b.left[0])
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

// failed decides whether to try again, here after a pause or elsewhere at once, or to give up.
func (b *blobReader) failed(err error) {
	b.disconnect()
	b.tries++
	b.failedAt = b.off
	if b.ctx.Err() != nil {
		b.err = context.Cause(b.ctx)
		return
	}
	place, final := b.left[0], permanent(err)
	said := err
	if !final {
		said = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	b.said.add(b.f.wrap(place, fmt.Errorf("blob %s at %d of %d bytes, try %d: %w", b.desc.Digest, b.off, b.desc.Size, b.tries, said)))
	if final {
		b.left = b.left[1:]
	} else {
		b.f.blame(place)
		b.left = append(b.left[1:len(b.left):len(b.left)], place)
	}
	if len(b.left) == 0 || b.tries >= max(maxFetchTries, 2*len(b.left)) {
		b.err = b.lastOfEach().err(b.f.registry())
		return
	}
	if final || b.tries%len(b.left) != 0 {
		return
	}
	select {
	case <-b.ctx.Done():
		b.err = context.Cause(b.ctx)
	case <-time.After(firstBackoff << (2 * (b.tries/len(b.left) - 1))):
	}
}

// lastOfEach leaves of what was said as much as a person wants to read.
func (b *blobReader) lastOfEach() tried {
	if n := len(b.said); n > maxFetchTries {
		return b.said[n-maxFetchTries:]
	}
	if len(b.used)+len(b.left) <= 1 && len(b.said) > 1 {
		return b.said[len(b.said)-1:] // one host, the same again
	}
	return b.said
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
