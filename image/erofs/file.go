package erofs

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

const (
	// maxCluster is the length of an extent when it is compressed, if there is enough to fill it. The kernel reads and
	// unpacks as much for one page that it needs, and keeps buffers of this size.
	maxCluster = 32 << 10
	// An index of more than this is not kept in memory: it gets its place before the data.
	maxIndex = 64 << 10
	// inlineMin: less is not worth the kernel's work of unpacking it.
	inlineMin = 256
	// padMax is how much of an extent's last block may stay empty; for less the extent is made shorter.
	padMax = 512
	// poorMax is how much of a file stays as it is in a hurry, behind what kept more than poorKeeps sixteenths of its size.
	poorMax   = 256 << 10
	poorKeeps = 11
	// chunkMin is the least that a hole has.
	chunkMin  = 64 << 10
	maxChunks = 64 << 10
)

var zeros [4096]byte

// isZero tells whether b is all zeros.
func isZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// WriteFile writes a regular file of exactly size bytes from r; if r has fewer, the error is
// io.ErrUnexpectedEOF. It reads no more than size bytes.
func (w *Writer) WriteFile(ctx context.Context, a Attr, size int64, r io.Reader) (*Inode, error) {
	if w.err != nil {
		return nil, w.err
	}
	if err := checkAttr(&a); err != nil {
		return nil, err
	}
	if a.Mode&typeMask != typeRegular {
		return nil, fmt.Errorf("write file: mode %#o", a.Mode)
	}
	if size < 0 {
		return nil, fmt.Errorf("write file: size %d", size)
	}
	xattrs, err := appendXattrs(w.b.head[:0], a.Xattrs)
	if err != nil {
		return nil, err
	}
	w.b.head = xattrs
	n := node{attr: &a, xattrs: xattrs, head: inodeHead{size: size}}
	var i *Inode
	switch {
	case size == 0:
		i, err = w.writeInode(n)
	case w.compress:
		i, err = w.writeCompressed(ctx, n, r)
	default:
		i, err = w.writePlain(ctx, n, r)
	}
	if err != nil {
		return nil, w.fail(err)
	}
	return i, nil
}

// inlineRoom is how much of a file can be behind an inode with so many bytes before it.
func inlineRoom(head int) int { return max(blockSize-head, 0) }

// writePlain writes a file as it is, but for chunks of zeros, if there are any.
func (w *Writer) writePlain(ctx context.Context, n node, r io.Reader) (*Inode, error) {
	size := n.head.size
	tail := int(size % blockSize)
	if tail > inlineRoom(inodeSize+len(n.xattrs)) {
		tail = 0
	}
	if size-int64(tail) < chunkMin {
		return w.writeShort(n, r, tail)
	}
	return w.writeChunks(ctx, n, r)
}

// writeShort writes a file that is too short for holes.
func (w *Writer) writeShort(n node, r io.Reader, tail int) (*Inode, error) {
	n.head.layout = layoutPlain
	if whole := int(n.head.size) - tail; whole > 0 {
		b, err := w.room(roundUp(whole, blockSize))
		if err != nil {
			return nil, err
		}
		if err := readFull(r, b[:whole]); err != nil {
			return nil, err
		}
		clear(b[whole:roundUp(whole, blockSize)])
		n.head.where = w.take(roundUp(whole, blockSize))
		if err := w.checkSize(); err != nil {
			return nil, err
		}
	}
	if tail > 0 {
		n.head.layout = layoutInline
		n.tail = w.b.in[:tail]
		if err := readFull(r, n.tail); err != nil {
			return nil, err
		}
	}
	return w.writeInode(n)
}

// writeChunks writes a file in chunks. If none of them was zeros, they follow each other, and need no index.
func (w *Writer) writeChunks(ctx context.Context, n node, r io.Reader) (*Inode, error) {
	size := n.head.size
	shift := 0
	for size>>shift > chunkMin*maxChunks {
		shift++
	}
	chunk := int64(chunkMin) << shift
	index := make([]uint32, 0, (size+chunk-1)/chunk)
	first, holes := uint32(0), false
	for left := size; left > 0; left -= min(left, chunk) {
		block, err := w.writeChunk(ctx, min(left, chunk), r)
		if err != nil {
			return nil, err
		}
		if len(index) == 0 {
			first = block
		}
		holes = holes || block == nullBlock
		index = append(index, block)
	}
	if !holes {
		n.head.layout, n.head.where = layoutPlain, first
		return w.writeInode(n)
	}
	w.chunked = true
	n.head.layout = layoutChunks
	n.head.where = uint32(4 + shift) // chunks of so many blocks as a power of two
	n.body = make([]byte, 0, 4*len(index))
	for _, block := range index {
		n.body = le.AppendUint32(n.body, block)
	}
	return w.writeInode(n)
}

// writeChunk writes the next size bytes of r and returns the number of their first block, or nullBlock if they were
// all zeros.
func (w *Writer) writeChunk(ctx context.Context, size int64, r io.Reader) (uint32, error) {
	var first uint32 = nullBlock
	var skipped int64 // zeros that are not written yet
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n := int(min(size, chunkMin))
		whole := roundUp(n, blockSize)
		b, err := w.room(whole)
		if err != nil {
			return 0, err
		}
		if err := readFull(r, b[:n]); err != nil {
			return 0, err
		}
		size -= int64(n)
		if first == nullBlock && isZero(b[:n]) {
			skipped += int64(whole)
			continue
		}
		if first == nullBlock {
			first = uint32(w.size() >> blockBits)
			if skipped > 0 {
				data := bytes.Clone(b[:n])
				if _, err := w.alloc(skipped / blockSize); err != nil {
					return 0, err
				}
				if b, err = w.room(whole); err != nil {
					return 0, err
				}
				copy(b, data)
			}
		}
		clear(b[n:whole])
		w.take(whole)
		if err := w.checkSize(); err != nil {
			return 0, err
		}
	}
	return first, nil
}
