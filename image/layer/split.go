package layer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// The frame file of a layer keeps what its tar stream had besides the contents of its files: headers, padding, and
// the end of the archive, byte by byte. With the unpacked tree it gives the tar stream back, so that a layer can be
// exported under its own diff ID although neither the compressed nor the uncompressed blob is kept. It is the idea of
// tar-split, without that library's fork of archive/tar: entries, like Go's reader, takes no more from its source than it
// uses, so the bytes can be recorded below it.
//
// After the magic it is one S2 stream of records (earlier builds wrote zstd): a kind byte, a length (uvarint), and that
// many bytes. kindRaw is followed by bytes of the tar stream; kindFile by a path below the root and then the file's size
// (uvarint). An archive may have an entry twice; then the content of the first is put aside, and kindMoved has the path that
// it had and the number (uvarint) under which it can be found from there on. Most of a tar header is zeros: kindZeros is so
// many of them, and has no bytes. kindEnd, with no bytes either, is the last; zstd has an end of its own.
const (
	frameMagic     = "cri-shim tar frame 2\n"
	frameMagicZstd = "cri-shim tar frame 1\n"
)

const (
	kindRaw   = 'R'
	kindFile  = 'F'
	kindMoved = 'M'
	kindZeros = 'Z'
	kindEnd   = 'E'
)

const (
	maxRecord   = 64 << 10 // of raw bytes or zeros in one record
	minZeros    = 16       // so many, at least, are a record of their own
	maxPathName = 8 << 10  // a directory of PATH_MAX and a name
	frameBlock  = 64 << 10 // what is compressed at once
)

// frameWriter records; all methods do nothing when it is nil.
type frameWriter struct {
	z    *s2.Writer
	buf  []byte
	head []byte
	err  error
}

func newFrameWriter(w io.Writer) (*frameWriter, error) {
	if w == nil {
		return nil, nil
	}
	if _, err := io.WriteString(w, frameMagic); err != nil {
		return nil, err
	}
	if f, ok := frameWriters.Get().(*frameWriter); ok {
		f.z.Reset(w)
		return f, nil
	}
	// Headers are alike: matches do it.
	z := s2.NewWriter(w, s2.WriterConcurrency(1), s2.WriterBlockSize(frameBlock))
	return &frameWriter{z: z, buf: make([]byte, 0, maxRecord)}, nil
}

// frameWriters are those that are done and can be used again: their tables are larger than what most layers give them.
var frameWriters sync.Pool

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
	for rest := f.buf; len(rest) > 0; {
		from, to := findZeros(rest)
		if from > 0 {
			f.record(kindRaw, rest[:from])
		}
		if to > from {
			f.begin(kindZeros, to-from)
		}
		rest = rest[to:]
	}
	f.buf = f.buf[:0]
}

// findZeros finds the first zeros of which there are minZeros from a multiple of eight on. Without any, both are the
// length of b.
func findZeros(b []byte) (from, to int) {
	for from+minZeros <= len(b) && binary.LittleEndian.Uint64(b[from:])|binary.LittleEndian.Uint64(b[from+8:]) != 0 {
		from += 8
	}
	if from+minZeros > len(b) {
		return len(b), len(b)
	}
	to = from + minZeros
	for from > 0 && b[from-1] == 0 {
		from--
	}
	for to+8 <= len(b) && binary.LittleEndian.Uint64(b[to:]) == 0 {
		to += 8
	}
	for to < len(b) && b[to] == 0 {
		to++
	}
	return from, to
}

func (f *frameWriter) begin(kind byte, n int) {
	f.head = binary.AppendUvarint(append(f.head[:0], kind), uint64(n))
	f.write(f.head)
}

func (f *frameWriter) record(kind byte, p []byte) {
	f.begin(kind, len(p))
	f.write(p)
}

func (f *frameWriter) number(n int64) {
	f.head = binary.AppendUvarint(f.head[:0], uint64(n))
	f.write(f.head)
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
	f.number(size)
}

func (f *frameWriter) moved(path string, n int64) {
	if f == nil {
		return
	}
	f.flush()
	f.record(kindMoved, []byte(path))
	f.number(n)
}

func (f *frameWriter) close() error {
	if f == nil {
		return nil
	}
	f.flush()
	f.begin(kindEnd, 0)
	if err := errors.Join(f.err, f.z.Close()); err != nil {
		return err
	}
	f.z.Reset(nil) // it need not keep the file
	frameWriters.Put(f)
	return nil
}

// Reassemble writes the tar stream of a layer to w, from the frame file that Unpack wrote, the tree that it made below
// root, and the contents that it put aside below replaced (nil if it had no such directory). The result is only as
// good as those: the caller compares its digest.
func Reassemble(ctx context.Context, w io.Writer, frame io.ReadSeeker, root, replaced *os.File) error {
	a := &assembler{ctx: ctx, w: w, root: root, replaced: replaced, moved: map[string][]move{}, buf: make([]byte, 128<<10)}
	// What became of a file is recorded after it, so there are two passes.
	for _, visit := range []func(record) error{a.collect, a.write} {
		a.files = 0
		if _, err := frame.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("tar frame: %w", err)
		}
		if err := readFrame(ctx, frame, visit); err != nil {
			return fmt.Errorf("tar frame: %w", err)
		}
	}
	return nil
}

// record is one record of a frame file; raw is valid until the next.
type record struct {
	kind byte
	raw  []byte
	path string
	n    int64 // the size of a file, the number of a replaced one
}

func readFrame(ctx context.Context, frame io.Reader, visit func(record) error) error {
	br := bufio.NewReader(frame)
	z, ends, err := openFrame(br)
	if err != nil {
		return err
	}
	defer z.Close()
	r := bufio.NewReader(z)
	buf := make([]byte, maxRecord)
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		rec, err := readRecord(r, buf)
		switch {
		case rec.kind == kindEnd, errors.Is(err, io.EOF) && !ends:
			return nil
		case err == nil:
			err = visit(rec)
		default:
			err = noEOF(err)
		}
		if err != nil {
			return err
		}
	}
}

// openFrame returns the records of a frame file. ends: with one of kindEnd.
func openFrame(br *bufio.Reader) (z io.ReadCloser, ends bool, err error) {
	magic := make([]byte, len(frameMagic))
	_, err = io.ReadFull(br, magic)
	switch string(magic) {
	case frameMagic:
		return io.NopCloser(s2.NewReader(br, s2.ReaderMaxBlockSize(frameBlock))), true, nil
	case frameMagicZstd:
		d, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, false, err
		}
		return d.IOReadCloser(), false, nil
	}
	return nil, false, fmt.Errorf("not a frame file: %w", errors.Join(ErrInvalid, noEOF(err)))
}

// readRecord returns io.EOF at the end, and only there.
func readRecord(r *bufio.Reader, buf []byte) (record, error) {
	kind, err := r.ReadByte()
	if err != nil {
		return record{}, err
	}
	n, err := binary.ReadUvarint(r)
	raw := kind == kindRaw || kind == kindZeros
	switch {
	case err != nil:
		return record{}, noEOF(err)
	case raw && n > maxRecord, !raw && n > maxPathName:
		return record{}, fmt.Errorf("record of kind %q with %d bytes: %w", kind, n, ErrInvalid)
	case kind == kindZeros:
		return record{kind: kindRaw, raw: zeros[:n]}, nil
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return record{}, noEOF(err)
	}
	rec := record{kind: kind, raw: buf[:n]}
	switch kind {
	case kindRaw, kindEnd:
		return rec, nil
	case kindFile, kindMoved:
		rec.path = string(buf[:n])
		v, err := binary.ReadUvarint(r)
		if err == nil && v > math.MaxInt64 {
			err = fmt.Errorf("record of kind %q for %q with number %d: %w", kind, rec.path, v, ErrInvalid)
		}
		rec.n = int64(v)
		return rec, noEOF(err)
	}
	return record{}, fmt.Errorf("record of kind %q: %w", kind, ErrInvalid)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

type assembler struct {
	ctx            context.Context
	w              io.Writer
	root, replaced *os.File
	files          int // kindFile records so far
	moved          map[string][]move
	buf            []byte
}

// move: the content that path had before the file with this number came is now called n.
type move struct {
	before int
	n      int64
}

func (a *assembler) collect(r record) error {
	switch r.kind {
	case kindFile:
		a.files++
	case kindMoved:
		a.moved[r.path] = append(a.moved[r.path], move{a.files, r.n})
	}
	return nil
}

func (a *assembler) write(r record) error {
	switch r.kind {
	case kindRaw:
		_, err := a.w.Write(r.raw)
		return err
	case kindFile:
		a.files++
		dir, name := a.root, r.path
		for _, m := range a.moved[r.path] {
			if m.before >= a.files {
				dir, name = a.replaced, strconv.FormatInt(m.n, 10)
				break
			}
		}
		if dir == nil {
			return fmt.Errorf("%q was replaced and not put aside: %w", r.path, ErrInvalid)
		}
		return copyFile(a.ctx, a.w, dir, name, r.n, a.buf)
	}
	return nil
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
