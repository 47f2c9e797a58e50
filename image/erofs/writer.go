package erofs

import (
	"context"
	"io"
)

// Writer writes one image. It is not for use by several goroutines at once. After an error it is of no further use.
type Writer struct{}

// Inode is what WriteFile or WriteNode wrote.
type Inode struct {
	mode uint32
	size int64
}

// Mode returns type and permissions.
func (i *Inode) Mode() uint32 { return i.mode }

// Size returns the length of the file or of the symbolic link's target.
func (i *Inode) Size() int64 { return i.size }

// NewWriter begins an image in f, which is empty. A Writer that is not closed needs Abort.
func NewWriter(f File, o Options) (*Writer, error) { return nil, ErrUnsupported }

// WriteFile writes a regular file of exactly size bytes from r; if r has fewer, the error is
// io.ErrUnexpectedEOF. It reads no more than size bytes.
func (w *Writer) WriteFile(ctx context.Context, a Attr, size int64, r io.Reader) (*Inode, error) {
	return nil, ErrUnsupported
}

// WriteNode writes a symbolic link to target, a device, a FIFO or a socket.
func (w *Writer) WriteNode(a Attr, target string) (*Inode, error) { return nil, ErrUnsupported }

// SetAttr gives the inode other attributes: permissions, owner, time and extended attributes. Its type stays, and a
// device's number.
func (w *Writer) SetAttr(i *Inode, a Attr) error { return ErrUnsupported }

// Close writes the tree and returns the size of the image in bytes. Links are counted by names. A directory may
// occur once. Until it returned without an error, there is no file system in the file.
func (w *Writer) Close(root *Dir) (int64, error) { return 0, ErrUnsupported }

// Abort gives up the image and frees the buffers. After Close it does nothing.
func (w *Writer) Abort() {}
