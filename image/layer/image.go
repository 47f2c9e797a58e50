package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cri-shim/cri-shim/image/erofs"
)

// ErrNoImage: a layer that cannot be an image, because it has more names than are kept in memory or something that the
// format cannot hold, but might be a directory.
var ErrNoImage = errors.New("the layer cannot be an image")

// ImageOptions bound and direct UnpackImage.
type ImageOptions struct {
	MaxSize    int64     // bytes of the tar stream and of the files in it, each; 0 for no limit
	MaxEntries int64     // 0 for no limit
	Frame      io.Writer // receives the frame file that Reassemble needs; nil for none
	// Plain leaves contents uncompressed.
	Plain bool
	// Hurry is erofs.Options.Hurry: less thorough compression, as long as it says so.
	Hurry func() bool
}

// UnpackImage reads a tar stream to its end and writes it to f, an empty file, as an EROFS file system. The image's
// directory fs is what Unpack would make of the layer, and its directory replaced, if it has one, what Unpack would put
// aside. After an error f holds part of it. It needs no privileges, and gives the same image for the same stream.
//
// It differs from Unpack in what depends on the file system there and on the time: directories without entries have the
// epoch as their time, access times are the modification times, and a file may have any number of links. Result.DiskSize
// is the size of the image, Result.Inodes all inodes in it. POSIX access control lists are ErrNoImage.
func UnpackImage(ctx context.Context, r io.Reader, f *os.File, o ImageOptions) (Result, error) {
	w, err := erofs.NewWriter(f, erofs.Options{Compress: !o.Plain, Hurry: o.Hurry})
	if err != nil {
		return Result{}, fmt.Errorf("unpack layer: %w", err)
	}
	defer w.Abort()
	t := newImageTree(w)
	res, err := unpackInto(ctx, r, t, t.dirs[0].dir.handle, Options{MaxSize: o.MaxSize, MaxEntries: o.MaxEntries, Frame: o.Frame})
	if err != nil {
		return Result{}, err
	}
	if res.DiskSize, res.Inodes, err = t.finish(ctx); err != nil {
		return Result{}, fmt.Errorf("unpack layer: %w", err)
	}
	res.ImageSum = w.Sum()
	return res, nil
}
