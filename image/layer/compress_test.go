package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func compressed(t *testing.T, content []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(content, nil)
}

// TestDecompressAgain: decoders are used again, whatever became of what they read last.
func TestDecompressAgain(t *testing.T) {
	short, long := bytes.Repeat([]byte("short"), 100), make([]byte, 3<<20)
	for i := range long {
		long[i] = byte(i * i >> 7)
	}
	broken := compressed(t, long)
	broken = append(broken[:len(broken)/2:len(broken)/2], bytes.Repeat([]byte{0xff}, 100)...)
	for range 3 {
		for _, content := range [][]byte{short, long, nil} {
			z, err := DecompressWith(context.Background(), bytes.NewReader(append(compressed(t, content), compressed(t, short)...)), "")
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(z)
			if want := append(content[:len(content):len(content)], short...); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
			}
			if err := errors.Join(z.Close(), z.Close()); err != nil {
				t.Error(err)
			}
			if n, err := z.Read(make([]byte, 10)); n != 0 || !errors.Is(err, zstd.ErrDecoderClosed) {
				t.Errorf("Read after Close = %d, %v; want %v", n, err, zstd.ErrDecoderClosed)
			}
		}
		z, err := DecompressWith(context.Background(), bytes.NewReader(broken), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(z); err == nil {
			t.Error("a broken stream is read to its end")
		}
		z.Close()
		// Only half of it is read.
		if z, err = DecompressWith(context.Background(), bytes.NewReader(compressed(t, long)), ""); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(z, make([]byte, len(long)/2)); err != nil {
			t.Error(err)
		}
		z.Close()
	}
}
