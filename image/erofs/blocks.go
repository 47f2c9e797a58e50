package erofs

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	// outSize is what is written at once, nearly: contents are appended up to what the next block may take. More would have
	// left the processor's own cache before the kernel reads it.
	outSize = 96 << 10
	inSize  = 256 << 10
	nBins   = 8
)

// buffers are what a Writer needs while it works: less than 1 MiB, reused by the next image and free to be collected.
type buffers struct {
	out   [outSize]byte
	in    [inSize]byte
	bins  [nBins][blockSize]byte
	block [blockSize]byte // the first block, with superblock and root inode
	lz4   lz4
	head  []byte // attributes
	index []byte
	body  []byte // header and index
	tail  [blockSize]byte
	old   [blockSize]byte
}

var pool = sync.Pool{New: func() any { return new(buffers) }}

// bin is a block with inodes that has room for more. Blocks are numbered as they are opened; the contents of files
// come behind while it fills.
type bin struct {
	off   int64 // in the file
	used  int
	held  bool // no longer in out: in buffers.bins
	dirty bool // held, and with more in it than the file has
}

// blocks is the image as a sequence of blocks, the last of which are in memory.
type blocks struct {
	f    File
	b    *buffers
	base int64  // what out begins with, in the file
	n    int    // bytes in out, whole blocks
	end  int64  // how far the file was written
	sum  uint64 // of the blocks that are not in memory, and of those that are summed
	// summed are the blocks in out that stay as they are. They were summed as they came, while the processor had them at hand.
	summed [outSize / blockSize]bool
	bins   [nBins]bin
	nb     int // bins in use
}

func (s *blocks) size() int64 { return s.base + int64(s.n) }

func (s *blocks) writeAt(b []byte, off int64) error {
	if _, err := s.f.WriteAt(b, off); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	s.end = max(s.end, off+int64(len(b)))
	return nil
}

// flush writes out. Open bins in it stay open, in places of their own.
func (s *blocks) flush() error {
	for i := range s.nb {
		if b := &s.bins[i]; !b.held {
			b.held, b.dirty = true, false
			copy(s.b.bins[i][:], s.b.out[b.off-s.base:][:blockSize])
			s.sum -= sumOf(s.b.bins[i][:], b.off)
		}
	}
	if s.n > 0 {
		for at := 0; at < s.n; at += blockSize {
			if !s.summed[at/blockSize] {
				s.sum += sumOf(s.b.out[at:at+blockSize], s.base+int64(at))
			}
		}
		clear(s.summed[:])
		if err := s.writeAt(s.b.out[:s.n], s.base); err != nil {
			return err
		}
	}
	s.base += int64(s.n)
	s.n = 0
	return nil
}

// room makes room for n bytes at the end of out and returns it, not cleared. Nothing is taken yet.
func (s *blocks) room(n int) ([]byte, error) {
	if s.n+n > outSize {
		if err := s.flush(); err != nil {
			return nil, err
		}
	}
	return s.b.out[s.n:], nil
}

// take makes the next bytes of out part of the image: whole blocks, which stay as they are. It returns the number of
// the first.
func (s *blocks) take(n int) uint32 {
	off := s.size()
	s.sum += sumOfAll(s.b.out[s.n:s.n+n], off)
	for end := s.n + n; s.n < end; s.n += blockSize {
		s.summed[s.n/blockSize] = true
	}
	return uint32(off >> blockBits)
}

// alloc takes blocks that are zero, or, where they are more than fit, a hole.
func (s *blocks) alloc(n int64) (int64, error) {
	if n*blockSize > outSize {
		if err := s.flush(); err != nil {
			return 0, err
		}
		off := s.base
		s.base += n * blockSize
		if err := s.checkSize(); err != nil {
			return 0, err
		}
		for at := off; at < s.base; at += blockSize {
			s.sum += sumOf(zeros[:], at)
		}
		return off, nil
	}
	b, err := s.room(int(n) * blockSize)
	if err != nil {
		return 0, err
	}
	clear(b[:n*blockSize])
	off := s.size()
	s.n += int(n) * blockSize
	return off, s.checkSize()
}

// checkSize is asked before more is written than block numbers have bits for.
func (s *blocks) checkSize() error {
	if s.size()>>blockBits >= nullBlock-outSize/blockSize {
		return fmt.Errorf("%w: more than 16 TiB", ErrUnsupported)
	}
	return nil
}

// place finds room for an inode with what follows it: tail, the end of it, is within one block.
func (s *blocks) place(size, tail int) (int64, error) {
	if size > blockSize {
		return s.placeLong(size, tail)
	}
	size = roundUp(size, slotSize)
	best := -1
	for i := range s.nb {
		if b := &s.bins[i]; b.used+size <= blockSize && (best < 0 || b.used > s.bins[best].used) {
			best = i
		}
	}
	if best < 0 {
		off, err := s.alloc(1)
		if err != nil {
			return 0, err
		}
		if best, err = s.open(off, 0); err != nil {
			return 0, err
		}
	}
	b := &s.bins[best]
	off := b.off + int64(b.used)
	b.used += size
	b.dirty = true
	return off, nil
}

func (s *blocks) placeLong(size, tail int) (int64, error) {
	head := size - tail
	skip := 0
	if tail > 0 && head%blockSize+tail > blockSize {
		skip = roundUp(blockSize-head%blockSize, slotSize)
		if (skip+head)%blockSize+tail > blockSize {
			return 0, fmt.Errorf("%w: attributes and %d bytes behind them", ErrUnsupported, tail)
		}
	}
	n := roundUp(skip+size, blockSize)
	off, err := s.alloc(int64(n / blockSize))
	if err != nil {
		return 0, err
	}
	// The rest of the last block is for others, if it is in memory.
	if used := roundUp((skip+size)%blockSize, slotSize); used > 0 && used < blockSize*3/4 && off >= s.base {
		if _, err := s.open(off+int64(n)-blockSize, used); err != nil {
			return 0, err
		}
	}
	return off + int64(skip), nil
}

// open makes the block at off, which is in out, a bin; the fullest one ends where there are too many.
func (s *blocks) open(off int64, used int) (int, error) {
	i := s.nb
	if i == nBins {
		i = 0
		for j := range s.nb {
			if s.bins[j].used > s.bins[i].used {
				i = j
			}
		}
		if err := s.settle(i); err != nil {
			return 0, err
		}
	} else {
		s.nb++
	}
	s.bins[i] = bin{off: off, used: used}
	return i, nil
}

// settle writes a bin, if the file has not all of it.
func (s *blocks) settle(i int) error {
	b := &s.bins[i]
	if !b.held {
		return nil
	}
	s.sum += sumOf(s.b.bins[i][:], b.off)
	if !b.dirty {
		return nil
	}
	b.dirty = false
	return s.writeAt(s.b.bins[i][:], b.off)
}

// memory returns the part of the image from off that is in memory without a gap, if any: at most n bytes.
func (s *blocks) memory(off int64, n int) (b []byte, held *bin) {
	if off >= s.base {
		b := s.b.out[min(off-s.base, int64(s.n)):s.n]
		return b[:min(n, len(b))], nil
	}
	for i := range s.nb {
		if h := &s.bins[i]; h.held && off >= h.off && off < h.off+blockSize {
			b := s.b.bins[i][off-h.off:]
			return b[:min(n, len(b))], h
		}
	}
	return nil, nil
}

// patch writes to a place that is part of the image.
func (s *blocks) patch(data []byte, off int64) error {
	for len(data) > 0 {
		b, held := s.memory(off, len(data))
		n := len(b)
		if n > 0 {
			copy(b, data)
			if held != nil {
				held.dirty = true
			}
		} else {
			// Up to the end of the block at least nothing of it is in memory, or all of it.
			n = min(len(data), int(blockSize-off%blockSize))
			for n < len(data) {
				if b, _ := s.memory(off+int64(n), 1); b != nil {
					break
				}
				n = min(len(data), n+blockSize)
			}
			if err := s.rewrite(data[:n], off); err != nil {
				return err
			}
		}
		data = data[n:]
		off += int64(n)
	}
	return nil
}

// rewrite writes to blocks that are in the file.
func (s *blocks) rewrite(data []byte, off int64) error {
	for at, left := off, data; len(left) > 0; {
		from := at % blockSize
		old := s.b.old[:]
		n, err := s.f.ReadAt(old, at-from)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read image: %w", err)
		}
		clear(old[n:]) // a hole up to the end
		s.sum -= sumOf(old, at-from)
		n = copy(old[from:], left)
		s.sum += sumOf(old, at-from)
		left, at = left[n:], at+int64(n)
	}
	return s.writeAt(data, off)
}

// read is the opposite of patch.
func (s *blocks) read(data []byte, off int64) error {
	for len(data) > 0 {
		b, _ := s.memory(off, len(data))
		n := len(b)
		if n > 0 {
			copy(data, b)
		} else {
			n = min(len(data), int(blockSize-off%blockSize))
			if _, err := s.f.ReadAt(data[:n], off); err != nil {
				return fmt.Errorf("read image: %w", err)
			}
		}
		data = data[n:]
		off += int64(n)
	}
	return nil
}

// finish writes what is in memory, except for the first block.
func (s *blocks) finish() error {
	for i := range s.nb {
		if err := s.settle(i); err != nil {
			return err
		}
	}
	s.nb = 0
	if err := s.flush(); err != nil {
		return err
	}
	if s.end < s.base {
		return s.writeAt([]byte{0}, s.base-1)
	}
	return nil
}
