package erofs

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// rootOffset is where the root directory's inode is: its number has 16 bits in the superblock, so it cannot come
// last. Behind the superblock is LZ4's configuration, of 16 bytes.
const rootOffset = (superOffset + superSize + 16 + slotSize - 1) / slotSize * slotSize

// Writer writes one image. It is not for use by several goroutines at once. After an error it is of no further use.
type Writer struct {
	blocks
	compress bool
	hurry    func() bool
	chunked  bool   // there is a file with holes
	count    uint32 // inodes
	linked   []*Inode
	dirs     []*Dir
	err      error
}

// Inode is what WriteFile or WriteNode wrote.
type Inode struct {
	off    int64
	size   int64
	mode   uint32
	names  uint32
	xattrs int32  // bytes of attributes
	where  uint32 // see inodeHead
	body   int64  // bytes behind the attributes, but for tail; without what aligns them
	tail   uint16
	layout uint8
}

// Mode returns type and permissions.
func (i *Inode) Mode() uint32 { return i.mode }

// Size returns the length of the file or of the symbolic link's target.
func (i *Inode) Size() int64 { return i.size }

// bodyAlign is what the bytes behind an inode's attributes are aligned to.
func bodyAlign(layout uint8) int {
	if layout == layoutCompressed {
		return 8
	}
	return 4
}

// NewWriter begins an image in f, which is empty. A Writer that is not closed needs Abort.
func NewWriter(f File, o Options) (*Writer, error) {
	w := &Writer{compress: o.Compress, hurry: o.Hurry}
	w.f = f
	w.b = pool.Get().(*buffers)
	clear(w.b.lz4.table[:]) // what another image left there must not decide how this one comes out
	// The first block is written last.
	w.base = blockSize
	return w, nil
}

// Abort gives up the image and frees the buffers. After Close it does nothing.
func (w *Writer) Abort() {
	if w.b != nil {
		pool.Put(w.b)
		w.b = nil
	}
	if w.err == nil {
		w.err = errors.New("the writer of the image was closed")
	}
}

// fail keeps the first error: what came after it would be written to places that nobody knows.
func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return err
}

func checkAttr(a *Attr) error {
	if entryType(a.Mode) == 0 || a.Mode>>16 != 0 {
		return fmt.Errorf("%w: mode %#o", ErrUnsupported, a.Mode)
	}
	return nil
}

// WriteNode writes a symbolic link to target, a device, a FIFO or a socket.
func (w *Writer) WriteNode(a Attr, target string) (*Inode, error) {
	if w.err != nil {
		return nil, w.err
	}
	if err := checkAttr(&a); err != nil {
		return nil, err
	}
	n := node{attr: &a, head: inodeHead{layout: layoutPlain}}
	switch a.Mode & typeMask {
	case typeLink:
		switch {
		case target == "" || strings.IndexByte(target, 0) >= 0:
			return nil, fmt.Errorf("%w: a symbolic link to %.80q", ErrUnsupported, target)
		case len(target) > maxTarget:
			return nil, fmt.Errorf("%w: a symbolic link's target of %d bytes", ErrUnsupported, len(target))
		}
	case typeChar, typeBlock:
		var err error
		if n.head.where, err = encodeDevice(a.Major, a.Minor); err != nil {
			return nil, err
		}
	case typeFIFO, typeSocket:
	default:
		return nil, fmt.Errorf("%w: a node of mode %#o", ErrUnsupported, a.Mode)
	}
	xattrs, err := appendXattrs(w.b.head[:0], a.Xattrs)
	if err != nil {
		return nil, err
	}
	w.b.head = xattrs
	n.xattrs = xattrs
	n.head.size = int64(len(target))
	if target != "" {
		if inodeSize+len(xattrs)+len(target) <= blockSize {
			n.head.layout = layoutInline
			n.tail = []byte(target)
		} else if n.head.where, err = w.writeBlock(target); err != nil {
			return nil, w.fail(err)
		}
	}
	return w.writeInode(n)
}

// writeBlock writes data that takes one block and returns its number.
func (w *Writer) writeBlock(data string) (uint32, error) {
	b, err := w.room(blockSize)
	if err != nil {
		return 0, err
	}
	clear(b[copy(b, data):blockSize])
	return w.take(blockSize), w.checkSize()
}

// node is an inode to be written: attributes, index and inline data.
type node struct {
	attr               *Attr
	head               inodeHead // layout, size, where
	xattrs, body, tail []byte
	pad                int // between attributes and body
}

// writeInode gives the inode its place and writes it there.
func (w *Writer) writeInode(n node) (*Inode, error) {
	pad := -len(n.xattrs) & (bodyAlign(n.head.layout) - 1)
	size := inodeSize + len(n.xattrs) + pad + len(n.body) + len(n.tail)
	off, err := w.place(size, len(n.tail))
	if err != nil {
		return nil, w.fail(err)
	}
	n.pad = pad
	return w.putInode(n, off, int64(len(n.body)))
}

// putInode writes the inode to its place. body is the length of what n.body is, or of what is there already.
func (w *Writer) putInode(n node, off, body int64) (*Inode, error) {
	w.count++
	n.head.attr, n.head.number, n.head.links, n.head.xattrs = n.attr, uint32(off/slotSize), 1, len(n.xattrs)
	i := &Inode{
		off: off, size: n.head.size, mode: n.attr.Mode, xattrs: int32(len(n.xattrs)), where: n.head.where,
		body: body, tail: uint16(len(n.tail)), layout: n.head.layout,
	}
	size := inodeSize + len(n.xattrs) + n.pad + len(n.body) + len(n.tail)
	if b, _ := w.memory(off, size); len(b) == size {
		n.head.put(b)
		b = b[inodeSize:]
		b = b[copy(b, n.xattrs)+n.pad:]
		b = b[copy(b, n.body):]
		copy(b, n.tail)
		return i, nil
	}
	var head [inodeSize]byte
	n.head.put(head[:])
	for _, b := range [][]byte{head[:], n.xattrs, make([]byte, n.pad), n.body, n.tail} {
		if err := w.patch(b, off); err != nil {
			return nil, w.fail(err)
		}
		off += int64(len(b))
	}
	return i, nil
}

// SetAttr gives the inode other attributes: permissions, owner, time and extended attributes. Its type stays, and a
// device's number.
func (w *Writer) SetAttr(i *Inode, a Attr) error {
	if w.err != nil {
		return w.err
	}
	if err := checkAttr(&a); err != nil {
		return err
	}
	if a.Mode&typeMask != i.mode&typeMask {
		return fmt.Errorf("set attributes: the type %#o becomes %#o", i.mode&typeMask, a.Mode&typeMask)
	}
	xattrs, err := appendXattrs(w.b.head[:0], a.Xattrs)
	if err != nil {
		return err
	}
	w.b.head = xattrs
	if err := w.setAttr(i, &a, xattrs); err != nil {
		return w.fail(err)
	}
	return nil
}

func (w *Writer) setAttr(i *Inode, a *Attr, xattrs []byte) error {
	from := i.off + inodeSize + int64(i.xattrs) + int64(-int(i.xattrs)&(bodyAlign(i.layout)-1))
	if len(xattrs) != int(i.xattrs) {
		pad := -len(xattrs) & (bodyAlign(i.layout) - 1)
		size := inodeSize + int64(len(xattrs)+pad) + i.body + int64(i.tail)
		off, err := w.place(int(size), int(i.tail))
		if err != nil {
			return err
		}
		to := off + inodeSize + int64(len(xattrs)+pad)
		var buf [blockSize]byte
		for n := i.body + int64(i.tail); n > 0; {
			b := buf[:min(n, blockSize)]
			if err := w.read(b, from); err != nil {
				return err
			}
			if err := w.patch(b, to); err != nil {
				return err
			}
			n, from, to = n-int64(len(b)), from+int64(len(b)), to+int64(len(b))
		}
		i.off, i.xattrs = off, int32(len(xattrs))
	}
	i.mode = a.Mode
	var head [inodeSize]byte
	inodeHead{
		layout: i.layout, attr: a, size: i.size, where: i.where, number: uint32(i.off / slotSize), links: 1, xattrs: len(xattrs),
	}.put(head[:])
	if err := w.patch(head[:], i.off); err != nil {
		return err
	}
	return w.patch(xattrs, i.off+inodeSize)
}

// Close writes the tree and returns the size of the image in bytes. It sorts the entries of the directories. Links
// are counted by names. A directory may occur once. Until it returned without an error, there is no file system in
// the file.
func (w *Writer) Close(root *Dir) (int64, error) {
	if w.err != nil {
		return 0, w.err
	}
	defer w.Abort()
	if err := w.writeTree(root); err != nil {
		return 0, w.fail(err)
	}
	for _, i := range w.linked {
		if err := w.patch(le.AppendUint32(nil, i.names), i.off+linksOffset); err != nil {
			return 0, w.fail(err)
		}
	}
	if err := w.finish(); err != nil {
		return 0, w.fail(err)
	}
	w.putSuper()
	if err := w.writeAt(w.b.block[:], 0); err != nil {
		return 0, w.fail(err)
	}
	w.sum += sumOf(w.b.block[:], 0)
	return w.size(), nil
}

// Sum is that of the image which Close has written: see the type Sum.
func (w *Writer) Sum() uint64 { return w.sum }

func (w *Writer) putSuper() {
	clear(w.b.block[:superOffset])
	b := w.b.block[superOffset:]
	clear(b[:rootOffset-superOffset])
	le.PutUint32(b, superMagic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], rootOffset/slotSize)
	le.PutUint64(b[16:], uint64(w.count))
	le.PutUint32(b[36:], uint32(w.size()>>blockBits))
	var incompat uint32
	if w.chunked {
		incompat |= incompatChunked
	}
	if w.compress {
		incompat |= incompatPadding0 | incompatBigCluster | incompatTail
		le.PutUint16(b[84:], 1) // LZ4 alone
		le.PutUint16(b[superSize:], 14)
		le.PutUint16(b[superSize+2:], maxDistance)
		le.PutUint16(b[superSize+4:], maxCluster/blockSize)
	}
	le.PutUint32(b[80:], incompat)
	// The kernel's crc32c() does not invert its result.
	le.PutUint32(b[4:], ^crc32.Checksum(b[:blockSize-superOffset], castagnoli))
}

// readFull is io.ReadFull, for which no bytes at all are too few as well.
func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if err == io.EOF && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}
