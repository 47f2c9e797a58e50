package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// decodeLZ4 unpacks a block by the format's description alone, and holds it to the rules for the end of a block.
func decodeLZ4(b []byte) ([]byte, error) {
	var out []byte
	matchAt := -1 // where the last match begins
	for i := 0; i < len(b); {
		token := b[i]
		i++
		number := func(n int) (int, error) {
			if n < 15 {
				return n, nil
			}
			for {
				if i >= len(b) {
					return 0, errors.New("a length is cut off")
				}
				x := b[i]
				i++
				n += int(x)
				if x < 255 {
					return n, nil
				}
			}
		}
		n, err := number(int(token >> 4))
		if err != nil {
			return nil, err
		}
		if i+n > len(b) {
			return nil, errors.New("literals are cut off")
		}
		out = append(out, b[i:i+n]...)
		i += n
		if i == len(b) {
			if matchAt >= 0 && (n < 5 || len(out)-matchAt < 12) {
				return nil, fmt.Errorf("ends with %d literals, the last match %d bytes before", n, len(out)-matchAt)
			}
			return out, nil
		}
		if i+2 > len(b) {
			return nil, errors.New("a distance is cut off")
		}
		distance := int(b[i]) | int(b[i+1])<<8
		i += 2
		if distance == 0 || distance > len(out) {
			return nil, fmt.Errorf("distance %d at %d", distance, len(out))
		}
		if n, err = number(int(token & 15)); err != nil {
			return nil, err
		}
		matchAt = len(out)
		for range n + 4 {
			out = append(out, out[len(out)-distance])
		}
	}
	return nil, errors.New("no literals at the end")
}

// tryLZ4 compresses with room for the given bytes and unpacks that, and every cut of it.
func tryLZ4(t *testing.T, e *lz4, src []byte, room int) {
	t.Helper()
	buf := make([]byte, room+8)
	copy(buf[room:], "sentinel")
	dst := buf[:room:room]
	n := e.compress(dst, src)
	if n > 0 {
		if got, err := decodeLZ4(dst[:n]); err != nil || !bytes.Equal(got, src) {
			t.Fatalf("compress() of %d bytes into %d = %d bytes, which become %d others: %v", len(src), room, n, len(got), err)
		}
	} else if len(src) > 0 && lastSize(len(src)) <= room {
		t.Fatalf("compress() of %d bytes into %d = 0", len(src), room)
	}
	want := room / blockSize
	if n > 0 {
		want = n / blockSize
	}
	if e.nCuts < want {
		t.Fatalf("compress() of %d bytes into %d = %d with %d cuts; want %d", len(src), room, n, e.nCuts, want)
	}
	for blocks := want; blocks > 0; blocks-- {
		in, out := e.cutAt(dst, src, blocks)
		if out > blocks*blockSize || out < blocks*blockSize-1 && in < len(src) {
			t.Fatalf("cutAt(%d) = %d, %d", blocks, in, out)
		}
		if got, err := decodeLZ4(dst[:out]); err != nil || !bytes.Equal(got, src[:in]) {
			t.Fatalf("cutAt(%d) = %d, %d bytes, which become %d others: %v", blocks, in, out, len(got), err)
		}
	}
	if string(buf[room:]) != "sentinel" {
		t.Fatal("compress() wrote behind dst")
	}
}

// pieces is bytes with repetitions of all kinds of lengths and distances.
func pieces(r *rand.Rand, n int) []byte {
	b := make([]byte, 0, n)
	for len(b) < n {
		k := 1 + r.IntN(1<<r.IntN(12))
		switch {
		case r.IntN(3) == 0 || len(b) == 0:
			for range k {
				b = append(b, byte(r.Uint32()))
			}
		default:
			d := 1 + r.IntN(len(b))
			for range k {
				b = append(b, b[len(b)-d])
			}
		}
	}
	return b[:n]
}

func TestLZ4(t *testing.T) {
	for _, hurry := range []bool{false, true} {
		testLZ4(t, &lz4{hurry: hurry})
	}
}

func testLZ4(t *testing.T, e *lz4) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		tryLZ4(t, e, pieces(r, n), maxCluster)
		tryLZ4(t, e, make([]byte, n), maxCluster)
		tryLZ4(t, e, pieces(r, n), n)
	}
	for range 600 {
		src := pieces(r, r.IntN(1<<(8+r.IntN(11))))
		tryLZ4(t, e, src, maxCluster)
		tryLZ4(t, e, src, r.IntN(maxCluster+1))
	}
	for _, n := range []int{window - 1, window, window + 1, 2 * window, inSize} {
		tryLZ4(t, e, make([]byte, n), maxCluster)
		tryLZ4(t, e, bytes.Repeat([]byte("0123456789abcdefghijklmnopqrstuvwxyz"), n/36+1)[:n], maxCluster)
		far := pieces(r, n)
		copy(far[n-3000:], far[:2000])
		tryLZ4(t, e, far, maxCluster)
	}
}

func FuzzLZ4(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	f.Add([]byte(""), uint16(100))
	f.Add([]byte("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), uint16(30))
	for range 10 {
		f.Add(pieces(r, 20000), uint16(r.Uint32()))
	}
	e := new(lz4)
	f.Fuzz(func(t *testing.T, src []byte, room uint16) {
		if len(src) > inSize {
			src = src[:inSize]
		}
		for _, e.hurry = range []bool{false, true} {
			tryLZ4(t, e, src, min(int(room), maxCluster))
			tryLZ4(t, e, src, maxCluster)
		}
	})
}
