package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// ErrNoImage: a layer that cannot be an image, because it has too many files to keep their names in memory or something
// that the format cannot hold, but might be a directory.
var ErrNoImage = errors.New("the layer cannot be an image")

// ImageOptions bound and direct UnpackImage.
type ImageOptions struct {
	MaxSize    int64     // bytes of the tar stream and of the files in it, each; 0 for no limit
	MaxEntries int64     // 0 for no limit
	Frame      io.Writer // receives the frame file that Reassemble needs; nil for none
	// Plain leaves contents uncompressed.
	Plain bool
}

// UnpackImage reads a tar stream to its end and writes it to f, an empty file, as an EROFS file system: the layer's tree
// is its directory fs.
func UnpackImage(_ context.Context, _ io.Reader, _ *os.File, _ ImageOptions) (Result, error) {
	return Result{}, fmt.Errorf("unpack layer: %w", ErrNoImage)
}
