// Package erofs writes EROFS file systems (Linux Documentation/filesystems/erofs.rst) in one pass: contents go to
// the image as they come, directories when everything has come.
package erofs

import (
	"errors"
	"io"
	"time"
)

// ErrUnsupported is what the format cannot hold: attributes that are too large, names that are too long, too many
// links of one inode.
var ErrUnsupported = errors.New("not possible in an EROFS image")

// File is what an image is written to: an empty file.
type File interface {
	io.WriterAt
	io.ReaderAt
}

// Options of a Writer.
type Options struct {
	// Compress compresses contents with LZ4 where that saves blocks.
	Compress bool
	// Hurry is asked before each piece that is compressed (at most 256 KiB): true makes it about three times as fast, and
	// what comes of it about a third larger. nil is false.
	Hurry func() bool
}

// Attr is what an inode has beside its content.
type Attr struct {
	Mode         uint32 // st_mode: type and permissions, as in inode(7)
	UID, GID     uint32
	ModTime      time.Time
	Major, Minor uint32 // of a device: 12 and 20 bits
	Xattrs       []Xattr
}

// Xattr is one extended attribute.
type Xattr struct {
	Name  string // with its prefix: "security.capability"
	Value []byte
}

// Dir is a directory of the tree that Close writes.
type Dir struct {
	Attr    Attr
	Entries []Entry // in any order

	at *dirPlace
}

// Entry is a name in a directory: of an Inode or of a Dir. An Inode with several names is a hard link.
type Entry struct {
	Name  string
	Inode *Inode
	Dir   *Dir
}
