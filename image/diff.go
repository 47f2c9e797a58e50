package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/cri-shim/cri-shim/image/layer"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// DiffLimits bound what a difference may hold, see layer.Options.
type DiffLimits struct{ Size, Entries int64 }

// maxDeleted bounds the list of what a difference takes away.
const maxDeleted = 1 << 20

// ApplyDiff makes the difference of a checkpoint, in the form of an image's layer, the writable layer upper, which was just
// made. root is the image, mounted without it. deleted are paths that are gone, where the difference does not say so itself.
func ApplyDiff(ctx context.Context, root *os.File, upper string, diff io.Reader, deleted []string, l DiffLimits) error {
	gone, err := whiteouts(deleted)
	if err != nil {
		return err
	}
	dir, err := os.OpenFile(upper, sys.OpenPath|sys.OpenDirectory|sys.OpenNoFollow, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	// What is gone comes first: the difference may have something new in its place.
	res, err := layer.Unpack(ctx, io.MultiReader(gone, diff), dir, layer.Options{MaxSize: l.Size, MaxEntries: l.Entries})
	if err != nil {
		return err
	}
	for _, name := range res.Implied {
		if name == "." {
			continue
		}
		if err := sameAttrs(root, dir, name); err != nil {
			return fmt.Errorf("folder %s: %w", name, err)
		}
	}
	return nil
}

// whiteouts is the beginning of a tar stream that takes paths away.
func whiteouts(deleted []string) (io.Reader, error) {
	if len(deleted) > maxDeleted {
		return nil, fmt.Errorf("%w: %d deleted files", ErrTooLarge, len(deleted))
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range deleted {
		clean := path.Clean("/" + name)[1:]
		dir, base := path.Split(clean)
		if base == "" || base == ".." || strings.HasPrefix(base, ".wh.") || strings.IndexByte(name, 0) >= 0 {
			return nil, fmt.Errorf("%w: deleted file %.200q", ErrInvalid, name)
		}
		if err := w.WriteHeader(&tar.Header{Name: dir + ".wh." + base, Mode: 0o600, Format: tar.FormatPAX}); err != nil {
			return nil, fmt.Errorf("%w: deleted file %.200q: %w", ErrInvalid, name, err)
		}
	}
	return &out, w.Flush() // not its end: the difference follows
}

// sameAttrs gives a folder of the writable layer that the difference has no entry for the owner and mode that it has in the
// image.
func sameAttrs(root, upper *os.File, name string) error {
	below, err := sys.PathInRoot(root, name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer below.Close()
	st, err := sys.Lstatat(int(below.Fd()), ".")
	if errors.Is(err, syscall.ENOTDIR) {
		return nil // the difference has a folder where the image has none
	}
	if err != nil {
		return err
	}
	dir, err := sys.OpenInRoot(int(upper.Fd()), name, os.O_RDONLY|sys.OpenDirectory, 0)
	if err != nil {
		return err
	}
	defer sys.Close(dir)
	if err := sys.Fchown(dir, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return sys.Fchmod(dir, st.Mode&0o7777)
}
