package layer

import (
	"bytes"
	"math/rand/v2"
	"testing"
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
