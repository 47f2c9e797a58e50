package erofs_test

import (
	"bytes"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/cri-shim/cri-shim/image/erofs"
)

func sumOf(t *testing.T, r io.Reader) uint64 {
	t.Helper()
	var s erofs.Sum
	if _, err := io.Copy(&s, struct{ io.Reader }{r}); err != nil {
		t.Fatal(err)
	}
	return s.Sum64()
}

// TestSum: the sum is that of the bytes, however they are written, and tells each change of them.
func TestSum(t *testing.T) {
	data := append(noise(1, 5*4096+100), make([]byte, 2*4096)...)
	want := sumOf(t, bytes.NewReader(data))
	for name, r := range map[string]io.Reader{
		"a byte at a time": iotest.OneByteReader(bytes.NewReader(data)), "halves": iotest.HalfReader(bytes.NewReader(data)),
		"all": io.MultiReader(bytes.NewReader(data[:3]), bytes.NewReader(data[3:])),
	} {
		if got := sumOf(t, r); got != want {
			t.Errorf("%s: sum %x; want %x", name, got, want)
		}
	}
	for name, other := range map[string][]byte{
		"a bit":            change(data, 17),
		"a bit at the end": change(data, len(data)-1),
		"shorter":          data[:len(data)-1],
		"a block shorter":  data[:len(data)-4096],
		"longer":           append(bytes.Clone(data), 0),
		"blocks swapped":   slices.Concat(data[4096:2*4096], data[:4096], data[2*4096:]),
		"empty":            nil,
	} {
		if got := sumOf(t, bytes.NewReader(other)); got == want {
			t.Errorf("%s: the same sum", name)
		}
	}
}

func change(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}
