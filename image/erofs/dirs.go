package erofs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const direntSize = 12

// dirPlace is where a directory is to be written. It is known before any is, for their entries name each other.
type dirPlace struct {
	off    int64 // the inode
	blocks int   // whole blocks of entries, not behind the inode
	tail   int   // bytes of entries behind the inode, or in a block more if plain
	plain  bool
	first  uint32
	subs   uint32
	xattrs int
	parent *Dir
}

// writeTree writes the directories: first, of all of them, the blocks that are full; then the inodes with the rest.
func (w *Writer) writeTree(root *Dir) error {
	if root == nil {
		return errors.New("no root directory")
	}
	if err := w.collect(root); err != nil {
		return err
	}
	if err := w.placeDirs(); err != nil {
		return err
	}
	for _, d := range w.dirs {
		if err := w.writeDirBlocks(d); err != nil {
			return err
		}
	}
	for _, d := range w.dirs {
		if err := w.writeDirInode(d, d == root); err != nil {
			return err
		}
	}
	return nil
}

// collect lists the directories, parents before children, and sorts and checks their entries.
func (w *Writer) collect(root *Dir) error {
	root.at = &dirPlace{parent: root}
	w.dirs = append(w.dirs, root)
	for i := 0; i < len(w.dirs); i++ {
		d := w.dirs[i]
		if err := checkAttr(&d.Attr); err != nil {
			return err
		}
		if d.Attr.Mode&typeMask != typeDir {
			return fmt.Errorf("a directory of mode %#o", d.Attr.Mode)
		}
		slices.SortFunc(d.Entries, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
		for j := range d.Entries {
			e := &d.Entries[j]
			if err := checkName(e.Name); err != nil {
				return err
			}
			if j > 0 && d.Entries[j-1].Name == e.Name {
				return fmt.Errorf("the name %q twice in a directory", e.Name)
			}
			switch {
			case (e.Inode == nil) == (e.Dir == nil):
				return fmt.Errorf("the entry %q is not of one inode or directory", e.Name)
			case e.Inode != nil:
				if e.Inode.names++; e.Inode.names == 2 {
					w.linked = append(w.linked, e.Inode)
				}
			case e.Dir.at != nil:
				return fmt.Errorf("the directory %q occurs twice", e.Name)
			default:
				e.Dir.at = &dirPlace{parent: d}
				d.at.subs++
				w.dirs = append(w.dirs, e.Dir)
			}
		}
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("the name %q in a directory", name)
	case len(name) > maxName:
		return fmt.Errorf("%w: a name of %d bytes", ErrUnsupported, len(name))
	case strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%w: the name %q", ErrUnsupported, name)
	}
	return nil
}

// dirent is an entry of a directory as it is written.
type dirent struct {
	name string
	off  int64
	kind byte
}

// entries calls yield with the entries in order. "." and ".." have their place among the others, which the kernel's
// binary search needs.
func (d *Dir) entries(yield func(dirent) bool) {
	own := [...]dirent{{".", d.at.off, 2}, {"..", d.at.parent.at.off, 2}}
	next := 0
	for i := range d.Entries {
		e := &d.Entries[i]
		for next < len(own) && own[next].name < e.Name {
			if !yield(own[next]) {
				return
			}
			next++
		}
		x := dirent{name: e.Name, kind: 2}
		if e.Dir != nil {
			x.off = e.Dir.at.off
		} else {
			x.off, x.kind = e.Inode.off, entryType(e.Inode.mode)
		}
		if !yield(x) {
			return
		}
	}
	for ; next < len(own); next++ {
		if !yield(own[next]) {
			return
		}
	}
}

// placeDirs decides where the directories will be: in blocks that follow each other from the end of the image.
func (w *Writer) placeDirs() error {
	off := w.size()
	for i, d := range w.dirs {
		p := d.at
		used := 0
		for e := range d.entries {
			if n := direntSize + len(e.name); used+n > blockSize {
				p.blocks++
				used = n
			} else {
				used += n
			}
		}
		p.tail = used
		xattrs, err := appendXattrs(w.b.head[:0], d.Attr.Xattrs)
		if err != nil {
			return err
		}
		w.b.head = xattrs
		p.xattrs = len(xattrs)
		room := blockSize
		if i == 0 {
			room -= rootOffset
			if inodeSize+p.xattrs > room {
				return fmt.Errorf("%w: attributes of %d bytes of the root directory", ErrUnsupported, p.xattrs)
			}
		}
		p.plain = inodeSize+p.xattrs+p.tail > room
		p.first = uint32(off >> blockBits)
		off += int64(p.blocks) * blockSize
		if p.plain {
			off += blockSize
		}
	}
	for i, d := range w.dirs {
		p := d.at
		if i == 0 {
			p.off = rootOffset
			continue
		}
		size := int64(inodeSize + p.xattrs)
		if !p.plain {
			size += int64(p.tail)
		}
		// What fits into a block is in one block; what does not, begins with one. So it is in memory when it is written.
		if off%blockSize+size > blockSize {
			off = roundUp(off, blockSize)
		}
		p.off = off
		off = roundUp(off+size, slotSize)
	}
	return nil
}

// writeDirBlocks writes the blocks of a directory that are not behind its inode.
func (w *Writer) writeDirBlocks(d *Dir) error {
	n := d.at.blocks
	if d.at.plain {
		n++
	}
	if n == 0 {
		return nil
	}
	return d.eachBlock(func(i int, es []dirent) error {
		if i >= n {
			return nil
		}
		b, err := w.room(blockSize)
		if err != nil {
			return err
		}
		clear(b[putEntries(b, es):blockSize])
		w.take(blockSize)
		return w.checkSize()
	})
}

// eachBlock calls f with the entries of each block.
func (d *Dir) eachBlock(f func(int, []dirent) error) error {
	var es []dirent
	i, used := 0, 0
	for e := range d.entries {
		n := direntSize + len(e.name)
		if used+n > blockSize {
			if err := f(i, es); err != nil {
				return err
			}
			i++
			es, used = es[:0], 0
		}
		es = append(es, e)
		used += n
	}
	return f(i, es)
}

// putEntries writes a block of a directory, or the beginning of one, and returns its length.
func putEntries(b []byte, es []dirent) int {
	names := direntSize * len(es)
	for i, e := range es {
		x := b[direntSize*i:]
		le.PutUint64(x, uint64(e.off/slotSize))
		le.PutUint16(x[8:], uint16(names))
		x[10], x[11] = e.kind, 0
		names += copy(b[names:], e.name)
	}
	return names
}

// writeDirInode writes the inode of a directory and the entries behind it.
func (w *Writer) writeDirInode(d *Dir, root bool) error {
	p := d.at
	xattrs, err := appendXattrs(w.b.head[:0], d.Attr.Xattrs)
	if err != nil {
		return err
	}
	w.b.head = xattrs
	w.count++
	h := inodeHead{
		layout: layoutPlain, attr: &d.Attr, size: int64(p.blocks)*blockSize + int64(p.tail), where: p.first,
		number: uint32(p.off / slotSize), links: 2 + p.subs, xattrs: p.xattrs,
	}
	size := inodeSize + p.xattrs
	if !p.plain {
		h.layout = layoutInline
		size += p.tail
	}
	var b []byte
	if root {
		b = w.b.block[rootOffset:]
		clear(b)
	} else {
		if end := p.off + int64(size); end > w.size() {
			if _, err := w.alloc((end - w.size() + blockSize - 1) / blockSize); err != nil {
				return err
			}
		}
		b, _ = w.memory(p.off, size)
	}
	h.put(b)
	copy(b[inodeSize:], xattrs)
	if p.plain {
		return nil
	}
	return d.eachBlock(func(i int, es []dirent) error {
		if i == p.blocks {
			putEntries(b[inodeSize+p.xattrs:size], es)
		}
		return nil
	})
}
