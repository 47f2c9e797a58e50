package layer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow bounds the memory that a zstd frame can ask for; `zstd --long` at its default needs 128 MiB.
const maxZstdWindow = 128 << 20

// Decompress returns the content of r, whose compression (gzip, zstd, none) is told from its first bytes: the media
// type of a layer is what its registry claims. The reader must be closed; r is not.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	return decompress(context.Background(), r, "")
}

// DecompressWith is Decompress with a program for gzip ("" for ours), which is killed when ctx ends. The reader is a
// *Program then. r is not read any more once that is closed. What comes out is for somebody who compares its digest: zstd's own
// checksums, which say less, are not looked at.
func DecompressWith(ctx context.Context, r io.Reader, program string) (io.ReadCloser, error) {
	return decompress(ctx, r, program, zstd.IgnoreChecksum(true))
}

func decompress(ctx context.Context, r io.Reader, program string, options ...zstd.DOption) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 128<<10)
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
		options = append(options, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		z, err := zstd.NewReader(br, options...)
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}

// isSkippable tells a zstd skippable frame, with which some builders let a file begin (RFC 8878, section 3.1.2).
func isSkippable(m []byte) bool {
	return len(m) == 4 && m[0]&0xf0 == 0x50 && m[1] == 0x2a && m[2] == 0x4d && m[3] == 0x18
}
