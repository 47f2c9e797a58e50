package layer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow bounds the memory that a zstd frame can ask for; `zstd --long` at its default needs 128 MiB.
const maxZstdWindow = 128 << 20

// Decompress returns the content of r, whose compression (gzip, zstd, none) is told from its first bytes: the media
// type of a layer is what its registry claims. The reader must be closed; r is not.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	return decompress(context.Background(), r, "", checked)
}

// DecompressWith is Decompress with a program for gzip ("" for ours), which is killed when ctx ends. The reader is a
// *Program then. r is not read any more once that is closed. What comes out is for somebody who compares its digest: zstd's own
// checksums, which say less, are not looked at.
func DecompressWith(ctx context.Context, r io.Reader, program string) (io.ReadCloser, error) {
	return decompress(ctx, r, program, unchecked)
}

// zstdReaders are decoders that were used and are free, of either kind. They keep the window of their last frame, so that the next
// layer need not have it made.
type zstdReaders struct {
	sync.Pool
	options []zstd.DOption
}

var (
	checked   = newZstdReaders()
	unchecked = newZstdReaders(zstd.IgnoreChecksum(true))
)

func newZstdReaders(options ...zstd.DOption) *zstdReaders {
	return &zstdReaders{options: append(options, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))}
}

// keptZstdWindow is the largest window that is worth keeping: what zstd has at its usual levels.
const keptZstdWindow = 8 << 20

// open returns a decoder of br, which begins with a frame.
func (z *zstdReaders) open(br *bufio.Reader) (io.ReadCloser, error) {
	var first zstd.Header
	start, _ := br.Peek(zstd.HeaderMaxSize) // the reader meets the error again
	keep := first.Decode(start) == nil && !first.Skippable && first.WindowSize <= keptZstdWindow
	d, ok := z.Get().(*zstd.Decoder)
	if ok {
		if err := d.Reset(br); err != nil {
			return nil, err
		}
	} else {
		var err error
		if d, err = zstd.NewReader(br, z.options...); err != nil {
			return nil, err
		}
	}
	return &zstdReader{d, z, keep}, nil
}

type zstdReader struct {
	d    *zstd.Decoder // nil when it was closed
	from *zstdReaders
	keep bool
}

func (z *zstdReader) Read(p []byte) (int, error) {
	if z.d == nil {
		return 0, zstd.ErrDecoderClosed
	}
	return z.d.Read(p)
}

// WriteTo implements io.WriterTo, for w to see the decoder's own memory.
func (z *zstdReader) WriteTo(w io.Writer) (int64, error) {
	if z.d == nil {
		return 0, zstd.ErrDecoderClosed
	}
	return z.d.WriteTo(w)
}

func (z *zstdReader) Close() error {
	switch {
	case z.d == nil:
	case z.keep && z.d.Reset(nil) == nil:
		z.from.Put(z.d)
	default:
		z.d.Close()
	}
	z.d = nil
	return nil
}

func decompress(ctx context.Context, r io.Reader, program string, readers *zstdReaders) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 32<<10) // more is read past it, to where it goes
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		if program != "" {
			if p, err := startProgram(ctx, program, br); err == nil {
				return p, nil
			}
			// Without a process there is still ours.
		}
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return z, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippable(magic):
		z, err := readers.open(br)
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return z, nil
	}
	return io.NopCloser(br), nil
}

// isSkippable tells a zstd skippable frame, with which some builders let a file begin (RFC 8878, section 3.1.2).
func isSkippable(m []byte) bool {
	return len(m) == 4 && m[0]&0xf0 == 0x50 && m[1] == 0x2a && m[2] == 0x4d && m[3] == 0x18
}
