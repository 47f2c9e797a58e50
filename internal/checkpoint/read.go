package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrInvalid is matched by every error about an archive that is not one, or has what none of ours would have.
var ErrInvalid = errors.New("not a checkpoint")

// ErrTooLarge is matched where an archive is larger than the limits.
var ErrTooLarge = errors.New("checkpoint exceeds the limit")

// Limits bound what is read of an archive: it may come from anywhere.
type Limits struct {
	Size    int64 // bytes of all that is unpacked; 0 for no limit
	Entries int   // 0 for no limit
}

// maxJSON bounds an entry that is read into memory, in bytes. A specification with its seccomp profile has 50 KiB.
const maxJSON = 4 << 20

// maxName bounds the name of an image of criu's.
const maxName = 128

// DescriptorsFile is among criu's images: where the standard streams were.
const DescriptorsFile = "descriptors.json"

// kind says what becomes of an entry.
type kind int

const (
	ignored  kind = iota // what other engines have beside, such as podman's volumes
	folder               // ImagesDir
	document             // JSON that is read into memory
	image                // one of criu's
	diff
)

// classify names an entry by its path, which is the archive's own word; target is a plain file name.
func classify(name string) (k kind, target string, err error) {
	clean := path.Clean("/" + name)[1:]
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return 0, "", fmt.Errorf("%w: an entry %.100q", ErrInvalid, name)
		}
	}
	if strings.IndexByte(name, 0) >= 0 {
		return 0, "", fmt.Errorf("%w: an entry %.100q", ErrInvalid, name)
	}
	switch clean {
	case ImagesDir:
		return folder, "", nil
	case ConfigFile, SpecFile, StatusFile, NetworkFile, DeletedFile:
		return document, clean, nil
	case DiffFile:
		return diff, clean, nil
	}
	dir, base := path.Split(clean)
	if dir != ImagesDir+"/" {
		return ignored, "", nil
	}
	switch {
	case len(base) > maxName:
		return 0, "", fmt.Errorf("%w: an image of criu's with a name of %d bytes", ErrInvalid, len(base))
	case strings.HasSuffix(base, ".img"), base == DescriptorsFile:
		return image, base, nil
	}
	return ignored, "", nil
}

// Source gives the entries of an archive one after the other: regular files, and folders with a nil reader.
type Source func(each func(name string, size int64, r io.Reader) error) error

// content says of an archive that ends within one that it is invalid.
type content struct {
	name string
	r    io.Reader
}

func (e content) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it ends within %.100q: %w", ErrInvalid, e.name, err)
	}
	return n, err
}

// Tar reads an archive as it was written.
func Tar(r io.Reader) Source {
	return func(each func(string, int64, io.Reader) error) error {
		tr := tar.NewReader(r)
		for {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("%w: %w", ErrInvalid, err)
			}
			switch h.Typeflag {
			case tar.TypeReg:
				err = each(h.Name, h.Size, content{h.Name, tr})
			case tar.TypeDir:
				err = each(h.Name, 0, nil)
			default:
				err = notRegular(h.Name)
			}
			if err != nil {
				return err
			}
		}
	}
}

// notRegular refuses what an archive of a checkpoint has only where it was made to harm. What is ignored may be anything.
func notRegular(name string) error {
	if k, _, err := classify(name); err != nil || k == ignored {
		return err
	}
	return fmt.Errorf("%w: %.100q is no regular file", ErrInvalid, name)
}

// Dir reads an archive that has been unpacked, as the layer of an image is. Links are not followed.
func Dir(dir string) Source {
	return func(each func(string, int64, io.Reader) error) error {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		if err := eachIn(root, ".", each); err != nil {
			return err
		}
		fi, err := root.Lstat(ImagesDir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !fi.IsDir() {
			return notRegular(ImagesDir)
		}
		if err != nil {
			return err
		}
		return eachIn(root, ImagesDir, each)
	}
}

func eachIn(root *os.Root, dir string, each func(string, int64, io.Reader) error) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		entries, err := d.ReadDir(100)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := oneOf(root, path.Join(dir, e.Name()), e, each); err != nil {
				return err
			}
		}
	}
}

func oneOf(root *os.Root, name string, e fs.DirEntry, each func(string, int64, io.Reader) error) error {
	switch {
	case e.IsDir():
		return each(name, 0, nil)
	case !e.Type().IsRegular():
		return notRegular(name)
	}
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return notRegular(name)
	}
	return each(name, fi.Size(), f)
}

// Documents are the parts of an archive in JSON.
type Documents struct {
	Config  Config
	Spec    json.RawMessage // the OCI specification
	Network map[string]Network
	Deleted []string // paths of the root file system, as the archive has them
}

// reader bounds what is taken of a source.
type reader struct {
	ctx     context.Context
	limits  Limits
	size    int64
	entries int
	seen    map[string]bool
}

// admit says whether an entry is one that may be, and only once.
func (r *reader) admit(name string, size int64, isDir bool) (kind, string, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, "", err
	}
	if r.entries++; r.limits.Entries > 0 && r.entries > r.limits.Entries {
		return 0, "", fmt.Errorf("%w: more than %d entries", ErrTooLarge, r.limits.Entries)
	}
	k, target, err := classify(name)
	if err != nil || k == ignored {
		return ignored, "", err
	}
	if isDir != (k == folder) {
		return 0, "", fmt.Errorf("%w: %q is no regular file, or no folder", ErrInvalid, name)
	}
	if k == folder {
		return k, "", nil
	}
	if r.seen[target] {
		return 0, "", fmt.Errorf("%w: %q is there twice", ErrInvalid, name)
	}
	r.seen[target] = true
	if r.size += size; size < 0 || r.limits.Size > 0 && r.size > r.limits.Size {
		return 0, "", fmt.Errorf("%w: more than %d bytes", ErrTooLarge, r.limits.Size)
	}
	return k, target, nil
}

func newReader(ctx context.Context, l Limits) *reader {
	return &reader{ctx: ctx, limits: l, seen: map[string]bool{}}
}

// Inspect reads the documents of an archive, and nothing else.
func Inspect(ctx context.Context, from Source, l Limits) (*Documents, error) {
	raw := map[string][]byte{}
	r := newReader(ctx, l)
	err := from(func(name string, size int64, content io.Reader) error {
		k, target, err := r.admit(name, size, content == nil)
		if err != nil || k != document {
			return err
		}
		if size > maxJSON {
			return fmt.Errorf("%w: %s has %d bytes, the limit is %d", ErrTooLarge, target, size, maxJSON)
		}
		raw[target], err = io.ReadAll(io.LimitReader(content, maxJSON))
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, need := range []string{ConfigFile, SpecFile} {
		if raw[need] == nil {
			return nil, fmt.Errorf("%w: it has no %s", ErrInvalid, need)
		}
	}
	return parse(raw)
}

func parse(raw map[string][]byte) (*Documents, error) {
	d := new(Documents)
	for name, into := range map[string]any{ConfigFile: &d.Config, SpecFile: &d.Spec, DeletedFile: &d.Deleted} {
		if raw[name] == nil {
			continue
		}
		if err := json.Unmarshal(raw[name], into); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
		}
	}
	// Each engine has its own form of this one, and none of it is needed.
	if json.Unmarshal(raw[NetworkFile], &d.Network) != nil {
		d.Network = nil
	}
	return d, nil
}

// Unpack writes criu's images to the folder images, which is made, and hands over the difference of the root file system.
func Unpack(ctx context.Context, from Source, images string, l Limits, layer func(io.Reader) error) error {
	if err := os.Mkdir(images, 0o700); err != nil {
		return err
	}
	r := newReader(ctx, l)
	return from(func(name string, size int64, content io.Reader) error {
		k, target, err := r.admit(name, size, content == nil)
		switch {
		case err != nil:
			return err
		case k == diff:
			return layer(content)
		case k == image:
			return writeFile(ctx, filepath.Join(images, target), content, size)
		}
		return nil
	})
}

func writeFile(ctx context.Context, to string, r io.Reader, size int64) (err error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	const piece = 8 << 20
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.CopyN(f, r, min(size, piece))
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: %w", ErrInvalid, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return err
		}
		size -= n
	}
	return nil
}
