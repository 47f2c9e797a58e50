package erofs

import (
	"bytes"
	"context"
	"io"
)

// clusters writes the data of one compressed file and its index: an entry for each 4 KiB of the file, which says
// where the extent that holds it begins. Extents are as long as what fills whole blocks when it is compressed.
type clusters struct {
	w    *Writer
	r    io.Reader
	left int64 // not yet read

	in    []byte // read and not yet written: part of buffers.in
	pos   int64  // of in[0] in the file
	size  int64
	plain bool // nothing was compressed so far
	poor  int  // bytes that are not tried in a hurry: those before them kept more than poorKeeps
	first uint32
	used  uint32 // blocks

	index []byte
	at    int64 // where index goes, if it has its place already; else 0
	space int   // what the inode, its attributes and its index leave of a block
}

// fill reads on, so that as much of the file as one block is made of is in memory.
func (c *clusters) fill(want int) error {
	if len(c.in) >= want || c.left == 0 {
		return nil
	}
	buf := c.w.b.in[:]
	n := copy(buf, c.in)
	more := int(min(int64(len(buf)-n), c.left))
	if err := readFull(c.r, buf[n:n+more]); err != nil {
		return err
	}
	c.left -= int64(more)
	c.in = buf[:n+more]
	return nil
}

func (w *Writer) writeCompressed(ctx context.Context, n node, r io.Reader) (*Inode, error) {
	c := clusters{w: w, r: r, left: n.head.size, size: n.head.size, plain: true}
	entries := (n.head.size + blockSize - 1) / blockSize
	head := roundUp(inodeSize+len(n.xattrs), 8) + indexHeader
	off := int64(0)
	if entries*indexEntry > maxIndex {
		if err := c.fill(inSize / 2); err != nil {
			return nil, err
		}
		if isZero(c.in) {
			return w.writeChunks(ctx, n, io.MultiReader(bytes.NewReader(c.in), r))
		}
		var err error
		if off, err = w.alloc((int64(head) + entries*indexEntry + blockSize - 1) / blockSize); err != nil {
			return nil, err
		}
		c.at = off + int64(head)
	} else {
		c.space = inlineRoom(head + int(entries)*indexEntry)
	}
	c.index = w.b.index[:0]
	var tail []byte
	for c.pos < c.size {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := c.fill(inSize / 2); err != nil {
			return nil, err
		}
		t, err := c.extent()
		if err != nil {
			return nil, err
		}
		if t != nil {
			tail = t
			break
		}
	}
	return c.finish(n, off, head, tail)
}

// extent writes the next extent, or several that are not compressed. What is better kept behind the inode is
// returned instead: with it the file ends.
func (c *clusters) extent() (tail []byte, err error) {
	w, in := c.w, c.in
	last := c.left == 0
	if last && len(in) <= min(c.space, inlineMin) {
		return c.plainTail(len(in))
	}
	w.b.lz4.hurry = w.hurry != nil && w.hurry()
	if n := min(len(in), c.poor, outSize) &^ (blockSize - 1); n > 0 && !last && w.b.lz4.hurry {
		c.poor -= n
		return c.stay(n)
	}
	dst, err := w.room(maxCluster)
	if err != nil {
		return nil, err
	}
	dst = dst[:maxCluster]
	n, size := len(in), w.b.lz4.compress(dst, in)
	if last && size > 0 && size <= c.space && (n > c.space || size+indexHeader+indexEntry < n-n/8) {
		c.plain = false
		tail = w.b.tail[:copy(w.b.tail[:], dst[:size])]
		return tail, c.add(clusterHead, n, 0, 1)
	}
	blocks := roundUp(size, blockSize) / blockSize
	if pad := blocks*blockSize - size; size == 0 || pad > padMax && blocks > 1 {
		if blocks = size / blockSize; size == 0 {
			blocks = w.b.lz4.nCuts
		}
		if blocks > 0 {
			n, size = w.b.lz4.cutAt(dst, in, blocks)
		}
	}
	if blocks == 0 || n < blocks*(blockSize+blockSize/16) {
		return c.stay(min(len(in), max(blocks, 1)*blockSize))
	}
	if pad := blocks*blockSize - size; pad > 0 {
		copy(dst[pad:], dst[:size])
		clear(dst[:pad])
	}
	c.plain = false
	c.used += uint32(blocks)
	c.poor = 0
	if blocks*blockSize > n/16*poorKeeps {
		c.poor = poorMax
	}
	return nil, c.add(clusterHead, n, w.take(blocks*blockSize), blocks)
}

// stay writes the next n bytes as they are: an extent for each block.
func (c *clusters) stay(n int) (tail []byte, err error) {
	if n == len(c.in) && c.left == 0 && n%blockSize <= c.space {
		n -= n % blockSize
	}
	dst, err := c.w.room(roundUp(n, blockSize))
	if err != nil {
		return nil, err
	}
	clear(dst[copy(dst, c.in[:n]):roundUp(n, blockSize)])
	for n > 0 {
		m := min(n, blockSize)
		block := c.w.take(blockSize)
		if c.pos == 0 {
			c.first = block
		}
		c.used++
		if err := c.add(clusterPlain, m, block, 1); err != nil {
			return nil, err
		}
		n -= m
	}
	if c.left == 0 && len(c.in) > 0 && len(c.in) <= min(c.space, blockSize-1) {
		return c.plainTail(len(c.in))
	}
	return nil, nil
}

func (c *clusters) plainTail(n int) ([]byte, error) {
	tail := c.w.b.tail[:copy(c.w.b.tail[:], c.in[:n])]
	return tail, c.add(clusterPlain, n, 0, 1)
}

// add puts an extent of the next n bytes into the index.
func (c *clusters) add(kind uint16, n int, block uint32, blocks int) error {
	if err := c.w.checkSize(); err != nil {
		return err
	}
	start, end := c.pos, c.pos+int64(n)
	c.in, c.pos = c.in[n:], end
	from, to := start/blockSize, end/blockSize
	c.index = le.AppendUint16(c.index, kind)
	c.index = le.AppendUint16(c.index, uint16(start%blockSize))
	c.index = le.AppendUint32(c.index, block)
	for i := from + 1; i < to; i++ {
		back := uint16(i - from)
		if back == 1 && kind == clusterHead {
			back = clusterBlocks | uint16(blocks)
		}
		c.index = le.AppendUint32(c.index, clusterNext)
		c.index = le.AppendUint16(c.index, back)
		c.index = le.AppendUint16(c.index, uint16(to-i))
	}
	if end == c.size && end%blockSize != 0 && to > from {
		// A head that no data follows ends the extent: the kernel refuses a plain one that seems to have more than a block.
		c.index = le.AppendUint16(c.index, clusterPlain)
		c.index = le.AppendUint16(c.index, uint16(end%blockSize))
		c.index = le.AppendUint32(c.index, 0)
	}
	if c.at != 0 && len(c.index) > maxIndex/2 {
		return c.flushIndex()
	}
	return nil
}

func (c *clusters) flushIndex() error {
	err := c.w.patch(c.index, c.at)
	c.at += int64(len(c.index))
	c.index = c.index[:0]
	return err
}

// finish writes the inode: of a plain file, if nothing of it was compressed.
func (c *clusters) finish(n node, off int64, head int, tail []byte) (*Inode, error) {
	w := c.w
	w.b.index = c.index[:0]
	n.tail = tail
	if c.plain {
		n.head.layout, n.head.where = layoutPlain, c.first
		if len(tail) > 0 {
			n.head.layout = layoutInline
		}
	} else {
		n.head.layout, n.head.where = layoutCompressed, c.used
	}
	var header [indexHeader]byte
	le.PutUint16(header[4:], adviseBig)
	if len(tail) > 0 {
		le.PutUint16(header[2:], uint16(len(tail)))
		le.PutUint16(header[4:], adviseBig|adviseInline)
	}
	if off == 0 {
		if !c.plain {
			n.body = append(w.b.body[:0], header[:]...)
			n.body = append(n.body, c.index...)
			w.b.body = n.body
		}
		return w.writeInode(n)
	}
	if err := c.flushIndex(); err != nil {
		return nil, err
	}
	if err := w.patch(header[:], off+int64(head)-indexHeader); err != nil {
		return nil, err
	}
	body := c.at - (off + int64(head) - indexHeader)
	if c.plain {
		body = 0
	}
	return w.putInode(n, off, body)
}
