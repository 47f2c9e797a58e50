package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

// TestReadAhead: what is read is what was hashed, whatever the sizes, and an error comes after all that was before it.
func TestReadAhead(t *testing.T) {
	broken := errors.New("broken")
	for _, size := range []int{0, 1, readAheadChunk - 1, readAheadChunk, readAheadChunk + 1, 3*readAheadChunks*readAheadChunk + 7} {
		data := make([]byte, size)
		rand.NewChaCha8([32]byte{1}).Read(data)
		for want, r := range map[error]io.Reader{
			nil:    iotest.HalfReader(bytes.NewReader(data)),
			broken: io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)),
		} {
			h := sha256.New()
			a := newReadAhead(r, h)
			got, err := io.ReadAll(a)
			a.close()
			if !bytes.Equal(got, data) || !errors.Is(err, want) || !bytes.Equal(h.Sum(nil), sum(data)) {
				t.Errorf("%d bytes, then %v: read %d bytes, %v, the same: %v, hash the same: %v", size, want, len(got), err, bytes.Equal(got, data), bytes.Equal(h.Sum(nil), sum(data)))
			}
		}
	}
}

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

// TestReadAheadClose: whoever has read enough ends both sides, though the source has no end.
func TestReadAheadClose(t *testing.T) {
	r, w := io.Pipe()
	go func() {
		for {
			if _, err := w.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	}()
	a := newReadAhead(r, sha256.New())
	if _, err := io.ReadFull(a, make([]byte, 3*readAheadChunk)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	a.close()
}
