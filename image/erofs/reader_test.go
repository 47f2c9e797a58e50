package erofs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/image/erofs"
)

// image is an EROFS image as far as this package writes them, read by the documentation of the format. It knows
// nothing of the writer's constants, and panics where it is not what it should be: see readImage.
type image struct {
	b          []byte
	compressed bool
}

// readImage returns the tree of an image.
func readImage(b []byte) (got map[string]seen, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	le := binary.LittleEndian
	if len(b)%4096 != 0 || len(b) == 0 {
		return nil, fmt.Errorf("%d bytes are not whole blocks", len(b))
	}
	super := bytes.Clone(b[1024:4096])
	sum := le.Uint32(super[4:])
	clear(super[4:8])
	if le.Uint32(super) != 0xE0F5E1E2 || super[12] != 12 || ^crc32.Checksum(super, crc32.MakeTable(crc32.Castagnoli)) != sum {
		return nil, errors.New("no superblock")
	}
	if int(le.Uint32(super[36:]))*4096 != len(b) {
		return nil, fmt.Errorf("%d blocks in %d bytes", le.Uint32(super[36:]), len(b))
	}
	features := le.Uint32(super[80:])
	if features&^0x17 != 0 {
		return nil, fmt.Errorf("features %#x", features)
	}
	im := image{b: b, compressed: features&3 == 3 && le.Uint16(super[84:]) == 1 && le.Uint16(super[128:]) == 14}
	got = map[string]seen{}
	root := uint64(le.Uint16(super[14:]))
	im.walk(got, "", root, root)
	return got, nil
}

func (im *image) walk(got map[string]seen, name string, node, parent uint64) {
	s := im.inode(node)
	if s.mode&unix.S_IFMT != unix.S_IFDIR {
		got[name] = s
		return
	}
	data := s.content
	s.content = nil
	got[name] = s
	last, dots := "", 0
	for len(data) > 0 {
		block := data[:min(4096, len(data))]
		data = data[len(block):]
		n := int(binary.LittleEndian.Uint16(block[8:])) / 12
		for i := range n {
			e := block[12*i:]
			start := int(binary.LittleEndian.Uint16(e[8:]))
			end := len(block)
			if i+1 < n {
				end = int(binary.LittleEndian.Uint16(e[20:]))
			}
			child, kind := binary.LittleEndian.Uint64(e), e[10]
			base, _, _ := strings.Cut(string(block[start:end]), "\x00")
			if base <= last {
				panic(fmt.Sprintf("%q after %q in %q", base, last, name))
			}
			last = base
			switch base {
			case ".", "..":
				if want := map[string]uint64{".": node, "..": parent}[base]; child != want {
					panic(fmt.Sprintf("%q of %q is %d; want %d", base, name, child, want))
				}
				dots++
				continue
			}
			p := base
			if name != "" {
				p = name + "/" + base
			}
			im.walk(got, p, child, node)
			types := map[uint32]byte{
				unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFCHR: 3, unix.S_IFBLK: 4, unix.S_IFIFO: 5, unix.S_IFSOCK: 6, unix.S_IFLNK: 7,
			}
			if types[got[p].mode&unix.S_IFMT] != kind {
				panic(fmt.Sprintf("%q has type %d and mode %o", p, kind, got[p].mode))
			}
		}
	}
	if dots != 2 {
		panic(fmt.Sprintf("%q lacks . or ..", name))
	}
}

func (im *image) inode(node uint64) seen {
	le := binary.LittleEndian
	at := int(node) * 32
	b := im.b[at:]
	if le.Uint16(b)&1 != 1 {
		panic("a short inode")
	}
	s := seen{
		mode: uint32(le.Uint16(b[4:])), size: int64(le.Uint64(b[8:])), uid: le.Uint32(b[24:]), gid: le.Uint32(b[28:]),
		sec: int64(le.Uint64(b[32:])), nsec: int64(le.Uint32(b[40:])), links: le.Uint32(b[44:]), node: node, xattrs: map[string]string{},
	}
	where := le.Uint32(b[16:])
	rest := at + 64
	if n := int(le.Uint16(b[2:])); n > 0 {
		size := 12 + 4*(n-1)
		im.xattrs(s.xattrs, im.b[rest+12:rest+size])
		rest += size
	}
	var data []byte
	switch s.mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
		data = im.data(le.Uint16(b)>>1, rest, int(s.size), where)
	case unix.S_IFCHR, unix.S_IFBLK:
		s.rdevMajor, s.rdevMinor = where>>8&0xfff, where&0xff|where>>12&0xfff00
	}
	if s.mode&unix.S_IFMT == unix.S_IFLNK {
		s.target = string(data)
	} else {
		s.content = data
	}
	return s
}

func (im *image) xattrs(to map[string]string, b []byte) {
	prefixes := map[byte]string{1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}
	for len(b) > 0 {
		n, v := int(b[0]), int(binary.LittleEndian.Uint16(b[2:]))
		prefix, ok := prefixes[b[1]]
		if !ok {
			panic("an unknown prefix of an attribute")
		}
		to[prefix+string(b[4:4+n])] = string(b[4+n : 4+n+v])
		b = b[(4+n+v+3)/4*4:]
	}
}

// data returns the content of an inode by its layout.
func (im *image) data(layout uint16, rest, size int, where uint32) []byte {
	le := binary.LittleEndian
	out := make([]byte, 0, size)
	inline := func(at, n int) []byte {
		if at/4096 != (at+n-1)/4096 {
			panic("data behind an inode that crosses a block")
		}
		return im.b[at : at+n]
	}
	switch layout {
	case 0:
		return append(out, im.b[int(where)*4096:][:size]...)
	case 2:
		tail := size % 4096
		out = append(out, im.b[int(where)*4096:][:size-tail]...)
		return append(out, inline(rest, tail)...)
	case 4:
		chunk := 4096 << (where & 31)
		for i := 0; len(out) < size; i++ {
			n := min(chunk, size-len(out))
			if block := le.Uint32(im.b[rest+4*i:]); block != 1<<32-1 {
				out = append(out, im.b[int(block)*4096:][:n]...)
			} else {
				out = append(out, make([]byte, n)...)
			}
		}
		return out
	case 1:
		return im.unpack(out, (rest+7)&^7, size, inline)
	}
	panic(fmt.Sprintf("layout %d", layout))
}

// unpack reads a compressed file, extent by extent.
func (im *image) unpack(out []byte, header, size int, inline func(at, n int) []byte) []byte {
	if !im.compressed {
		panic("a compressed file where the superblock says there is none")
	}
	le := binary.LittleEndian
	tail := int(le.Uint16(im.b[header+2:]))
	advise := le.Uint16(im.b[header+4:])
	if advise&^8 != 2 || advise&8 != 0 != (tail > 0) || le.Uint16(im.b[header+6:]) != 0 {
		panic("an unknown kind of index")
	}
	entries := (size + 4095) / 4096
	entry := func(i int) (kind uint16, offset int, block uint32, back, ahead uint16) {
		e := im.b[header+16+8*i:]
		return le.Uint16(e), int(le.Uint16(e[2:])), le.Uint32(e[4:]), le.Uint16(e[4:]), le.Uint16(e[6:])
	}
	for i := 0; len(out) < size; {
		kind, offset, block, _, _ := entry(i)
		if start := i*4096 + offset; start != len(out) || kind > 1 {
			panic(fmt.Sprintf("an extent at %d begins with a head of type %d at %d", len(out), kind, start))
		}
		// The next head ends the extent.
		blocks, end, next := 1, size, i+1
		for ; next < entries; next++ {
			k, o, _, back, ahead := entry(next)
			if k != 2 {
				end = next*4096 + o
				break
			}
			switch {
			case next == i+1 && kind == 1:
				if blocks = int(back &^ 2048); back&2048 == 0 {
					panic("no number of blocks")
				}
			case int(back) != next-i:
				panic("a wrong way back to the head")
			}
			if n, _, _, _, _ := entry(min(next+int(ahead), entries-1)); next+int(ahead) < entries && n == 2 {
				panic("a wrong way to the next head")
			}
		}
		var data []byte
		if end == size && tail > 0 {
			data = inline(header+16+8*entries, tail)
		} else {
			data = im.b[int(block)*4096:][:blocks*4096]
		}
		if kind == 0 {
			if end-len(out) > len(data) {
				panic("a plain extent of more than a block")
			}
			out = append(out, data[:end-len(out)]...)
		} else {
			x, err := erofs.UnpackLZ4(bytes.TrimLeft(data, "\x00"))
			if err != nil || len(x) != end-len(out) {
				panic(fmt.Sprintf("an extent of %d bytes: %d unpacked: %v", end-len(out), len(x), err))
			}
			out = append(out, x...)
		}
		i = next
	}
	return out
}
