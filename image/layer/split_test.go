package layer

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// TestFrameZeros: zeros of any number at any place come back, and cost next to nothing.
func TestFrameZeros(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var want, frame bytes.Buffer
	f, err := newFrameWriter(&frame)
	if err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		p := make([]byte, r.IntN(200))
		for i := range p {
			p[i] = byte(1 + r.IntN(255))
		}
		p = append(p, make([]byte, r.IntN(70))...)
		if r.IntN(300) == 0 {
			p = append(p, make([]byte, 2*maxRecord+r.IntN(20))...)
		}
		want.Write(p)
		f.raw(p)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	err = readFrame(t.Context(), bytes.NewReader(frame.Bytes()), func(rec record) error {
		if rec.kind != kindRaw {
			t.Errorf("a record of kind %q", rec.kind)
		}
		if bytes.Contains(rec.raw, make([]byte, minZeros+7)) && len(bytes.Trim(rec.raw, "\x00")) > 0 {
			t.Errorf("a record of %d bytes has zeros that could be one of their own", len(rec.raw))
		}
		got.Write(rec.raw)
		return nil
	})
	if err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("%d bytes came back, of %d, %v", got.Len(), want.Len(), err)
	}
}

// TestFrameOfEarlierBuilds: what was zstd is read.
func TestFrameOfEarlierBuilds(t *testing.T) {
	needRoot(t)
	stream := makeTar(t, file("a", "hello"), dir("b", 0o755), file("b/c", "world"))
	var frame bytes.Buffer
	root, _, err := unpack(t, stream, Options{Frame: &frame})
	if err != nil {
		t.Fatal(err)
	}
	records, err := io.ReadAll(s2.NewReader(bytes.NewReader(frame.Bytes()[len(frameMagic):])))
	if err != nil {
		t.Fatal(err)
	}
	records, ended := bytes.CutSuffix(records, []byte{kindEnd, 0})
	if !ended {
		t.Fatalf("the records end with %q", records[max(0, len(records)-10):])
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	old := z.EncodeAll(records, []byte(frameMagicZstd))
	var got bytes.Buffer
	if err := Reassemble(t.Context(), &got, bytes.NewReader(old), rootFile(t, root), nil); err != nil || !bytes.Equal(got.Bytes(), stream) {
		t.Errorf("%d bytes came back, of %d, %v", got.Len(), len(stream), err)
	}
}
