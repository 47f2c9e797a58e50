package layer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// The frame file of a layer keeps what its tar stream had besides the contents of its files: headers, padding, and
// the end of the archive, byte by byte. With the unpacked tree it gives the tar stream back, so that a layer can be
// exported under its own diff ID although neither the compressed nor the uncompressed blob is kept. It is the idea of
// tar-split, without that library's fork of archive/tar: Go's reader takes no more from its source than it uses, so
// the bytes can be recorded below it.
//
// After the magic it is one zstd stream of records: a kind byte, a length (uvarint), and that many bytes. kindRaw is
// followed by bytes of the tar stream; kindFile by a path below the root and then the file's size (uvarint).
const frameMagic = "cri-shim tar frame 1\n"

const (
	kindRaw  = 'R'
	kindFile = 'F'
)

const (
	maxRecord   = 64 << 10 // of raw bytes in one record
	maxPathName = 8 << 10  // a directory of PATH_MAX and a name
)

// frameWriter records; all methods do nothing when it is nil.
type frameWriter struct {
	z   *zstd.Encoder
	buf []byte
	err error
}

func newFrameWriter(w io.Writer) (*frameWriter, error) {
	if w == nil {
		return nil, nil
	}
	if _, err := io.WriteString(w, frameMagic); err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(512<<10))
	if err != nil {
		return nil, err
	}
	return &frameWriter{z: z, buf: make([]byte, 0, maxRecord)}, nil
}

func (f *frameWriter) raw(p []byte) {
	if f == nil {
		return
	}
	for len(p) > 0 {
		n := min(len(p), maxRecord-len(f.buf))
		f.buf = append(f.buf, p[:n]...)
		p = p[n:]
		if len(f.buf) == maxRecord {
			f.flush()
		}
	}
}

func (f *frameWriter) flush() {
	if len(f.buf) > 0 {
		f.record(kindRaw, f.buf)
		f.buf = f.buf[:0]
	}
}

func (f *frameWriter) record(kind byte, p []byte) {
	head := binary.AppendUvarint([]byte{kind}, uint64(len(p)))
	f.write(head)
	f.write(p)
}

func (f *frameWriter) write(p []byte) {
	if f.err == nil {
		_, f.err = f.z.Write(p)
	}
}

func (f *frameWriter) file(path string, size int64) {
	if f == nil {
		return
	}
	f.flush()
	f.record(kindFile, []byte(path))
	f.write(binary.AppendUvarint(nil, uint64(size)))
}

func (f *frameWriter) close() error {
	if f == nil {
		return nil
	}
	f.flush()
	return errors.Join(f.err, f.z.Close())
}

// Reassemble writes the tar stream of a layer to w, from the frame file that Unpack wrote and the tree that it made
// below root. The result is only as good as both: the caller compares its digest.
func Reassemble(ctx context.Context, w io.Writer, frame io.Reader, root *os.File) error {
	br := bufio.NewReader(frame)
	magic := make([]byte, len(frameMagic))
	if _, err := io.ReadFull(br, magic); err != nil || string(magic) != frameMagic {
		return fmt.Errorf("tar frame: not a frame file: %w", errors.Join(ErrInvalid, err))
	}
	z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
	if err != nil {
		return fmt.Errorf("tar frame: %w", err)
	}
	defer z.Close()
	r := bufio.NewReader(z)
	buf := make([]byte, 128<<10)
	for {
		kind, err := r.ReadByte()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("tar frame: %w", err)
		}
		if err := reassembleRecord(ctx, w, r, kind, root, buf); err != nil {
			return fmt.Errorf("tar frame: %w", err)
		}
	}
}

func reassembleRecord(ctx context.Context, w io.Writer, r *bufio.Reader, kind byte, root *os.File, buf []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return err
	}
	switch {
	case kind == kindRaw && n <= maxRecord:
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return err
		}
		_, err := w.Write(buf[:n])
		return err
	case kind == kindFile && n <= maxPathName:
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return err
		}
		name := string(buf[:n])
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return err
		}
		return copyFile(ctx, w, root, name, int64(size), buf)
	}
	return fmt.Errorf("record of kind %q with %d bytes: %w", kind, n, ErrInvalid)
}

func copyFile(ctx context.Context, w io.Writer, root *os.File, name string, size int64, buf []byte) error {
	// IN_ROOT and not BENEATH: the entry may have come through a directory that is a link within the layer.
	fd, err := sys.OpenInRoot(int(root.Fd()), name, os.O_RDONLY|sys.OpenNoFollow|sys.OpenNonblock, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != size {
		return fmt.Errorf("%q: is %v of %d bytes now, was a file of %d bytes: %w", name, fi.Mode().Type(), fi.Size(), size, ErrInvalid)
	}
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(buf[:min(int64(len(buf)), size)])
		if err != nil {
			return fmt.Errorf("read %q: %w", name, err)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}
