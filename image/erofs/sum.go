package erofs

import "hash/crc32"

// Sum is an io.Writer for an image, from its beginning to its end, that tells whether it is still what a Writer wrote:
// Sum64 is then Writer.Sum. It is the sum, modulo 2^64, of a number for each block, which is made of its place and its
// CRC-32C, so that the order in which blocks become known does not matter.
type Sum struct {
	block [blockSize]byte
	n     int64 // bytes
	sum   uint64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumOf is the number of the block at off.
func sumOf(b []byte, off int64) uint64 {
	// The finalizer of SplitMix64.
	x := uint64(off>>blockBits)<<32 | uint64(crc32.Checksum(b, castagnoli))
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// sumOfAll is the sum of the blocks from off on.
func sumOfAll(b []byte, off int64) (sum uint64) {
	for ; len(b) > 0; b, off = b[blockSize:], off+blockSize {
		sum += sumOf(b[:blockSize], off)
	}
	return sum
}

// Write implements io.Writer. It does not fail.
func (s *Sum) Write(p []byte) (int, error) {
	n := len(p)
	if used := int(s.n % blockSize); used > 0 {
		k := copy(s.block[used:], p)
		p, s.n = p[k:], s.n+int64(k)
		if s.n%blockSize == 0 {
			s.sum += sumOf(s.block[:], s.n-blockSize)
		}
	}
	whole := len(p) &^ (blockSize - 1)
	s.sum += sumOfAll(p[:whole], s.n)
	s.n += int64(whole)
	if whole < len(p) {
		s.n += int64(copy(s.block[:], p[whole:]))
	}
	return n, nil
}

// Sum64 is the sum of what was written so far. A block that is not complete counts as what there is of it.
func (s *Sum) Sum64() uint64 {
	if used := s.n % blockSize; used > 0 {
		return s.sum + sumOf(s.block[:used], s.n)
	}
	return s.sum
}
