package erofs

import "math/bits"

// The rules of the LZ4 block format at the end of a block: the last five bytes are literals, and the last match
// begins at least twelve bytes before the end.
const (
	lastLiterals = 5
	matchMargin  = 12
	maxDistance  = 65535
)

const (
	hashBits = 13
	// window is as far as the positions of the table reach.
	window = 1 << 16
	// A cut needs room for this many bytes of literals behind the last match, for the rules above.
	cutRoom = 16
)

// lz4 compresses blocks. The table of positions is not cleared between blocks: what an earlier block left there is a
// guess like any other, to be compared with the bytes. So a small file costs what its bytes cost.
type lz4 struct {
	table [1 << hashBits]uint16

	// For every whole blockSize of output, where it could be cut: behind the last sequence that leaves cutRoom.
	cuts  [maxCluster / blockSize]cut
	nCuts int

	hurry bool
}

type cut struct{ src, dst int32 }

func load32(b []byte, i int) uint32 { return le.Uint32(b[i : i+4]) }
func load64(b []byte, i int) uint64 { return le.Uint64(b[i : i+8]) }

// hash of the low six bytes: shorter matches save little, and cost as much.
func hash(v uint64) uint64 { return v << 16 * 227718039650203 >> (64 - hashBits) }

// compress writes src as one LZ4 block to dst, of at most maxCluster bytes, and returns its length; 0 if it does not
// fit, and then dst is as full as a cut makes it.
func (e *lz4) compress(dst, src []byte) int {
	e.nCuts = 0
	anchor, d := 0, 0
	nextCut := blockSize - cutRoom
	end := len(src) - lastLiterals // where matches end
	base := 0                      // the position that is 0 in the table
	s := 1
	for {
		// How far matches may begin: with literals up to there dst is full.
		limit := min(len(src)-matchMargin, anchor+len(dst)-d)
		if s > limit {
			return e.end(dst, d, anchor, src)
		}
		if s-base >= window-4 {
			base = s
		}
		limit = min(limit, base+window-4)
		m := 0
		if e.hurry {
			s, m = e.skim(src, anchor, s, limit, base)
		} else {
			s, m = e.search(src, anchor, s, limit, base)
		}
		if s > limit {
			continue
		}
		// Back to where it really begins: mostly not far, and never before anchor.
		if m >= 8 {
			n := min(bits.LeadingZeros64(load64(src, s-8)^load64(src, m-8))>>3, s-anchor)
			s, m = s-n, m-n
		}
		for {
			literals := s - anchor
			start := s
			dist := s - m
			s, m = s+4, m+4
			for {
				if s+8 > end {
					for s < end && src[s] == src[m] {
						s++
						m++
					}
					break
				}
				if x := load64(src, s) ^ load64(src, m); x != 0 {
					s += bits.TrailingZeros64(x) >> 3
					break
				}
				s, m = s+8, m+8
			}
			length := s - start - 4
			if d+literals+(literals+length)>>7+20 > len(dst) {
				e.cutUpTo(len(dst), anchor, d)
				return 0
			}
			before := d
			token := d
			d++
			var t byte
			if literals < 15 && anchor+16 <= len(src) {
				t = byte(literals) << 4
				// Sixteen bytes at once are cheaper than a call for some; there is room for them.
				le.PutUint64(dst[d:d+8], load64(src, anchor))
				le.PutUint64(dst[d+8:d+16], load64(src, anchor+8))
				d += literals
			} else if literals < 15 {
				t = byte(literals) << 4
				d += copy(dst[d:], src[anchor:start])
			} else {
				t = 15 << 4
				d = putLength(dst, d, literals-15)
				d += copy(dst[d:], src[anchor:start])
			}
			le.PutUint16(dst[d:d+2], uint16(dist))
			d += 2
			if length < 15 {
				t |= byte(length)
			} else {
				t |= 15
				d = putLength(dst, d, length-15)
			}
			dst[token] = t
			if d > nextCut {
				e.cutUpTo(d+cutRoom-1, anchor, before)
				nextCut = (e.nCuts+1)*blockSize - cutRoom
			}
			anchor = s
			if s > limit {
				break
			}
			v := load64(src, s-2)
			h := hash(v >> 16)
			e.table[hash(v)] = uint16(s - 2 - base)
			m = base + int(e.table[h])
			e.table[h] = uint16(s - base)
			if m >= s || load32(src, m) != uint32(v>>16) {
				s++
				break
			}
		}
	}
}

// search finds the next place s that has what m before it has, at least four bytes; none up to limit if s is more. It
// looks at three of four places, and at fewer, the longer nothing is found.
func (e *lz4) search(src []byte, anchor, s, limit, base int) (int, int) {
	for s <= limit {
		v := load64(src, s)
		h0, h1, h2 := hash(v), hash(v>>8), hash(v>>16)
		m0, m1 := base+int(e.table[h0]), base+int(e.table[h1])
		e.table[h0], e.table[h1] = uint16(s-base), uint16(s+1-base)
		if m0 < s && load32(src, m0) == uint32(v) {
			return s, m0
		}
		m2 := base + int(e.table[h2])
		e.table[h2] = uint16(s + 2 - base)
		if m1 <= s && load32(src, m1) == uint32(v>>8) {
			return s + 1, m1
		}
		if m2 <= s+1 && load32(src, m2) == uint32(v>>16) {
			return s + 2, m2
		}
		s += (s-anchor)>>6 + 4
	}
	return s, 0
}

// stride is how far apart the places are that skim looks at, at least.
const stride = 8

// skim is search that looks at fewer places: more than twice as fast, and misses short matches.
func (e *lz4) skim(src []byte, anchor, s, limit, base int) (int, int) {
	for s <= limit {
		v := load64(src, s)
		h := hash(v)
		m := base + int(e.table[h])
		e.table[h] = uint16(s - base)
		if m < s && load32(src, m) == uint32(v) {
			return s, m
		}
		s += (s-anchor)>>5 + stride
	}
	return s, 0
}

// cutUpTo notes that blocks of up to n bytes of output can be cut behind the sequences that end at d.
func (e *lz4) cutUpTo(n, anchor, d int) {
	for (e.nCuts+1)*blockSize <= n && e.nCuts < len(e.cuts) {
		e.cuts[e.nCuts] = cut{int32(anchor), int32(d)}
		e.nCuts++
	}
}

// end ends the block with the literals from anchor on.
func (e *lz4) end(dst []byte, d, anchor int, src []byte) int {
	n := finish(dst, d, src[anchor:])
	if n == 0 {
		e.cutUpTo(len(dst), anchor, d)
	} else {
		e.cutUpTo(n, anchor, d)
	}
	return n
}

func putLength(dst []byte, d, n int) int {
	for n >= 255 {
		dst[d] = 255
		d++
		n -= 255
	}
	dst[d] = byte(n)
	return d + 1
}

// finish ends a block with literals; 0 if they do not fit.
func finish(dst []byte, d int, literals []byte) int {
	if d+lastSize(len(literals)) > len(dst) {
		return 0
	}
	if n := len(literals); n < 15 {
		dst[d] = byte(n) << 4
		d++
	} else {
		dst[d] = 15 << 4
		d = putLength(dst, d+1, n-15)
	}
	return d + copy(dst[d:], literals)
}

// lastSize is what n literals at the end of a block take.
func lastSize(n int) int {
	if n < 15 {
		return 1 + n
	}
	return 1 + (n-15)/255 + 1 + n
}

// cutAt shortens what compress just wrote from src to dst to the given number of output blocks: the sequences that
// fit, and literals. It returns the lengths of input and output.
func (e *lz4) cutAt(dst, src []byte, blocks int) (in, out int) {
	c := e.cuts[blocks-1]
	room := blocks*blockSize - int(c.dst)
	n := min(room-1, len(src)-int(c.src))
	for lastSize(n) > room {
		n--
	}
	in = int(c.src) + n
	return in, finish(dst, int(c.dst), src[c.src:in])
}
