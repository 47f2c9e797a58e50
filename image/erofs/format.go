package erofs

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// What of the format on disk is used here. Everything is little-endian. An inode's number is its offset in units of
// 32 bytes; blocks are numbered from the start of the file.
const (
	blockBits = 12
	blockSize = 1 << blockBits
	slotSize  = 32 // what inodes are aligned to

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2

	compatChecksum = 1 << 0
	compatMtime    = 1 << 1

	incompatPadding0   = 1 << 0 // compressed data is at the end of its blocks
	incompatBigCluster = 1 << 1 // of several blocks; also: configurations of algorithms follow the superblock
	incompatChunked    = 1 << 2
	incompatTail       = 1 << 4 // a file's last compressed data can be behind its inode

	inodeSize = 64

	layoutPlain      = 0
	layoutCompressed = 1
	layoutInline     = 2 // plain, what follows the last whole block is behind the inode
	layoutChunks     = 4

	clusterPlain  = 0
	clusterHead   = 1
	clusterNext   = 2
	clusterBlocks = 1 << 11 // in the distance of the first cluster behind a head: the number of blocks instead

	adviseBig    = 1 << 1
	adviseInline = 1 << 3

	indexHeader = 16
	indexEntry  = 8

	nullBlock = 1<<32 - 1

	maxName   = 255
	maxTarget = 4095
)

// Types of files in st_mode.
const (
	typeMask    = 0o170000
	typeSocket  = 0o140000
	typeLink    = 0o120000
	typeRegular = 0o100000
	typeBlock   = 0o060000
	typeDir     = 0o040000
	typeChar    = 0o020000
	typeFIFO    = 0o010000
)

// entryType is the type of a file in a directory's entry.
func entryType(mode uint32) byte {
	switch mode & typeMask {
	case typeRegular:
		return 1
	case typeDir:
		return 2
	case typeChar:
		return 3
	case typeBlock:
		return 4
	case typeFIFO:
		return 5
	case typeSocket:
		return 6
	case typeLink:
		return 7
	}
	return 0
}

var le = binary.LittleEndian

func roundUp[T int | int64](n, to T) T { return (n + to - 1) / to * to }

// inodeHead is an inode as it is written.
type inodeHead struct {
	layout uint8
	attr   *Attr
	size   int64
	where  uint32 // first block, number of blocks, device or format of chunks: by layout and type
	number uint32
	links  uint32
	xattrs int // bytes
}

func (h inodeHead) put(b []byte) {
	_ = b[inodeSize-1]
	le.PutUint16(b, 1|uint16(h.layout)<<1)
	icount := 0
	if h.xattrs > 0 {
		icount = (h.xattrs-12)/4 + 1
	}
	le.PutUint16(b[2:], uint16(icount))
	le.PutUint16(b[4:], uint16(h.attr.Mode))
	le.PutUint16(b[6:], 0)
	le.PutUint64(b[8:], uint64(h.size))
	le.PutUint32(b[16:], h.where)
	le.PutUint32(b[20:], h.number)
	le.PutUint32(b[24:], h.attr.UID)
	le.PutUint32(b[28:], h.attr.GID)
	le.PutUint64(b[32:], uint64(h.attr.ModTime.Unix()))
	le.PutUint32(b[40:], uint32(h.attr.ModTime.Nanosecond()))
	le.PutUint32(b[44:], h.links)
	clear(b[48:inodeSize])
}

// linksOffset is where an inode has its number of links.
const linksOffset = 44

// encodeDevice is the kernel's new_encode_dev.
func encodeDevice(major, minor uint32) (uint32, error) {
	if major >= 1<<12 || minor >= 1<<20 {
		return 0, fmt.Errorf("%w: device %d:%d is not within 12 and 20 bits", ErrUnsupported, major, minor)
	}
	return minor&0xff | major<<8 | minor&^0xff<<12, nil
}

var xattrPrefixes = []struct {
	name  string
	index byte
	whole bool
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// splitXattr returns the number of a name's prefix and what follows it.
func splitXattr(name string) (byte, string, error) {
	for _, p := range xattrPrefixes {
		rest, found := strings.CutPrefix(name, p.name)
		if !found || p.whole != (rest == "") {
			continue
		}
		if len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
			break
		}
		return p.index, rest, nil
	}
	return 0, "", fmt.Errorf("%w: extended attribute %.80q", ErrUnsupported, name)
}

// appendXattrs appends the attributes as they follow an inode.
func appendXattrs(b []byte, xs []Xattr) ([]byte, error) {
	if len(xs) == 0 {
		return b, nil
	}
	start := len(b)
	b = append(b, make([]byte, 12)...)
	for i, x := range xs {
		for _, y := range xs[:i] {
			if x.Name == y.Name {
				return nil, fmt.Errorf("extended attribute %q twice", x.Name)
			}
		}
		index, rest, err := splitXattr(x.Name)
		if err != nil {
			return nil, err
		}
		if len(x.Value) > 1<<16-1 {
			return nil, fmt.Errorf("%w: extended attribute %q has %d bytes, more than %d", ErrUnsupported, x.Name, len(x.Value), 1<<16-1)
		}
		b = append(b, byte(len(rest)), index)
		b = le.AppendUint16(b, uint16(len(x.Value)))
		b = append(b, rest...)
		b = append(b, x.Value...)
		for (len(b)-start)%4 != 0 {
			b = append(b, 0)
		}
	}
	if n := len(b) - start; (n-12)/4+1 > 1<<16-1 {
		return nil, fmt.Errorf("%w: extended attributes take %d bytes", ErrUnsupported, n)
	}
	return b, nil
}
