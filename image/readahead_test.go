package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"
)

// spares are when there is a processor to run ahead with.
var spares = map[string]func() func() bool{
	"always": func() func() bool { return func() bool { return true } },
	"never":  func() func() bool { return func() bool { return false } },
	"later": func() func() bool {
		calls := 0
		return func() bool { calls++; return calls > 3 }
	},
}

// memory lends what it has, in pieces, as decompressors do.
type memory struct {
	data  []byte
	piece int
	err   error
}

func (m memory) Read([]byte) (int, error) { panic("read") }

func (m memory) WriteTo(w io.Writer) (n int64, err error) {
	lent := make([]byte, m.piece)
	for p := range slices.Chunk(m.data, m.piece) {
		k, err := w.Write(lent[:copy(lent, p)])
		n += int64(k)
		if err != nil {
			return n, err
		}
		clear(lent) // nobody may need it any more
	}
	return n, m.err
}

// TestReadAhead: what is read is what was hashed, whatever the sizes, and an error comes after all that was before it.
func TestReadAhead(t *testing.T) {
	broken := errors.New("broken")
	for _, size := range []int{0, 1, readAheadChunk - 1, readAheadChunk, readAheadChunk + 1, 3*readAheadChunks*readAheadChunk + 7} {
		data := make([]byte, size)
		rand.NewChaCha8([32]byte{1}).Read(data)
		for when, spare := range spares {
			for from, sources := range map[string]map[error]io.Reader{
				"reader": {
					nil:    iotest.HalfReader(bytes.NewReader(data)),
					broken: io.MultiReader(iotest.HalfReader(bytes.NewReader(data)), iotest.ErrReader(broken)),
				},
				"short pieces": {nil: memory{data, 5003, nil}, broken: memory{data, 5003, broken}},
				"long pieces":  {nil: memory{data, 3*readAheadChunk + 1, nil}, broken: memory{data, 3*readAheadChunk + 1, broken}},
			} {
				for want, r := range sources {
					h := sha256.New()
					a := newReadAhead(r, h, spare())
					got, err := io.ReadAll(a)
					a.close()
					if !bytes.Equal(got, data) || !errors.Is(err, want) || !bytes.Equal(h.Sum(nil), sum(data)) {
						t.Errorf("%s, ahead %s, %d bytes, then %v: read %d bytes, %v, the same: %v, hash the same: %v",
							from, when, size, want, len(got), err, bytes.Equal(got, data), bytes.Equal(h.Sum(nil), sum(data)))
					}
				}
			}
		}
	}
}

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

// TestReadAheadClose: whoever has read enough ends both sides, though the source has no end.
func TestReadAheadClose(t *testing.T) {
	for when, spare := range spares {
		for _, pieces := range []int{0, 1, 2, 30} {
			r, w := io.Pipe()
			go func() {
				for {
					if _, err := w.Write(make([]byte, 1000)); err != nil {
						return
					}
				}
			}()
			a := newReadAhead(r, sha256.New(), spare())
			if _, err := io.ReadFull(a, make([]byte, pieces*1000)); err != nil {
				t.Fatalf("ahead %s: %v", when, err)
			}
			r.Close()
			a.close()
		}
	}
}

// TestReadAheadReaderGone: a source that waits for its reader is told when nobody reads any more.
func TestReadAheadReaderGone(t *testing.T) {
	for when, spare := range spares {
		var got error
		a := newReadAhead(writes(func(w io.Writer) error {
			for got == nil {
				_, got = w.Write(make([]byte, 1000))
			}
			return got
		}), sha256.New(), spare())
		if _, err := io.ReadFull(a, make([]byte, 5000)); err != nil {
			t.Fatalf("ahead %s: %v", when, err)
		}
		a.close()
		if !errors.Is(got, errReaderGone) {
			t.Errorf("ahead %s: the source was told %v", when, got)
		}
	}
}

type writes func(io.Writer) error

func (writes) Read([]byte) (int, error)             { panic("read") }
func (f writes) WriteTo(w io.Writer) (int64, error) { return 0, f(w) }
