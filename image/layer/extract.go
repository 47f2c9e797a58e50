// Package layer turns a layer's tar stream into a directory or an image that overlayfs can use, and back.
//
// A layer is unpacked without its parents: whiteouts become what overlayfs takes for them, and directories that the
// tar stream does not have entries for are reported, since their owner and mode are those of a lower layer.
package layer

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Kinds of errors: the archive is not one that may be unpacked, or is larger than the limits.
var (
	ErrInvalid  = errors.New("invalid image content")
	ErrTooLarge = errors.New("layer exceeds the limit")
)

// Options bound and direct Unpack.
type Options struct {
	MaxSize    int64     // bytes of the tar stream and of the files in it, each; 0 for no limit
	MaxEntries int64     // 0 for no limit
	Frame      io.Writer // receives the frame file that Reassemble needs; nil for none
	// Replaced is an empty directory on the same file system. Contents that a later entry replaces are put aside
	// there, for Reassemble; with nil they are deleted.
	Replaced *os.File
	// KeepMarks leaves whiteouts out of the tree and returns them as Result.Marks.
	KeepMarks bool
}

// Result says what was unpacked.
type Result struct {
	TarSize   int64  // bytes of the tar stream
	DiskSize  int64  // bytes on disk, in blocks of 4 KiB
	ImageSum  uint64 // erofs.Sum of an image
	Inodes    int64
	Whiteouts int64
	// Opaque: the layer hides everything below it (an opaque whiteout in its root).
	Opaque bool
	// Implied are the directories that exist without an entry of their own, parents first; "." is the root.
	Implied []string
	// Marks are the layer's whiteouts, with Options.KeepMarks; nil is none.
	Marks *Marks
}

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
	overlayXattrs  = "trusted.overlay."
	paxXattr       = "SCHILY.xattr."
	blockSize      = 4096
	copyBuffer     = 128 << 10
	maxCachedDirs  = 64
	maxNoted       = 512 << 20
)

var (
	zeros       [copyBuffer]byte
	copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}
)

type times struct{ access, mod time.Time }

type extractor struct {
	ctx   context.Context
	t     tree
	root  int // of t
	opts  Options
	in    *entries
	raw   *rawReader
	frame *frameWriter
	res   Result
	size  int64 // declared by the entries so far
	count int64
	cache map[string]int // directories of t
	order []string       // of cache, oldest first
	// retired are directories to close before the next entry.
	retired []int
	aside   int64 // contents put aside so far
	noted   int64 // bytes of the keys of hidden, implied and dirTimes
	hidden  map[string]struct{}
	// marks are by path: true is an opaque directory, false what is deleted.
	marks map[string]bool
	// implied and dirTimes are keyed by the clean path of the entry, which may lead through links.
	implied  map[string]struct{}
	dirTimes map[string]dirTimes
}

// dirTimes are those of the directory's entry with the number count.
type dirTimes struct {
	times
	count int64
}

// Unpack reads a tar stream to its end and unpacks it below dir, an empty directory that nobody else touches. It
// must run as root. After an error the directory holds part of the layer.
func Unpack(ctx context.Context, r io.Reader, dir *os.File, o Options) (Result, error) {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	t := &diskTree{root: int(dir.Fd()), replaced: o.Replaced, buf: buf[:]}
	return unpackInto(ctx, r, t, t.root, o)
}

func unpackInto(ctx context.Context, r io.Reader, t tree, root int, o Options) (Result, error) {
	frame, err := newFrameWriter(o.Frame)
	if err != nil {
		return Result{}, fmt.Errorf("unpack layer: frame file: %w", err)
	}
	raw := &rawReader{r: r, frame: frame, limit: o.MaxSize}
	x := &extractor{
		ctx: ctx, t: t, root: root, opts: o, in: &entries{raw: raw}, raw: raw, frame: frame,
		cache: map[string]int{}, hidden: map[string]struct{}{}, marks: map[string]bool{},
		implied: map[string]struct{}{".": {}}, dirTimes: map[string]dirTimes{},
	}
	defer func() {
		x.retireCache()
		x.closeRetired()
	}()
	if err := errors.Join(x.run(), frame.close()); err != nil {
		return Result{}, fmt.Errorf("unpack layer: %w", err)
	}
	x.res.TarSize = raw.n
	for p := range x.implied {
		x.res.Implied = append(x.res.Implied, p)
	}
	slices.Sort(x.res.Implied)
	return x.res, nil
}

// run unpacks; the whiteouts count once all is there.
func (x *extractor) run() error {
	for {
		if err := x.ctx.Err(); err != nil {
			return context.Cause(x.ctx)
		}
		hdr, err := x.in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", x.count+1, tarError(err))
		}
		if err := x.entry(hdr); err != nil {
			return fmt.Errorf("entry %d %.200q: %w", x.count, hdr.Name, err)
		}
	}
	// What follows the end of the archive belongs to the diff ID too.
	if _, err := io.Copy(io.Discard, x.raw); err != nil {
		return err
	}
	if err := x.settleMarks(); err != nil {
		return err
	}
	return x.applyDirTimes()
}

func tarError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return err
}

func (x *extractor) entry(hdr *tar.Header) error {
	x.closeRetired()
	x.count++
	if x.opts.MaxEntries > 0 && x.count > x.opts.MaxEntries {
		return fmt.Errorf("more than %d entries: %w", x.opts.MaxEntries, ErrTooLarge)
	}
	x.size += hdr.Size
	if hdr.Size < 0 || x.size < 0 || x.opts.MaxSize > 0 && x.size > x.opts.MaxSize {
		return fmt.Errorf("more than %d bytes: %w", x.opts.MaxSize, ErrTooLarge)
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	// The largest id is what chown takes for "leave as it is".
	if hdr.Uid < 0 || hdr.Uid >= 1<<32-1 || hdr.Gid < 0 || hdr.Gid >= 1<<32-1 {
		return fmt.Errorf("owner %d:%d: %w", hdr.Uid, hdr.Gid, ErrInvalid)
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return x.rootEntry(hdr)
	}
	dir, base := split(name)
	parent, err := x.dir(dir)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return x.whiteout(hdr, parent, dir, base)
	}
	if x.opts.KeepMarks && isWhiteoutDevice(hdr) {
		if st, err := x.t.stat(parent, base); err == nil {
			if err := x.remove(parent, name, base); err != nil {
				return fmt.Errorf("replace the earlier entry of that name (mode %#o): %w", st.mode, err)
			}
		}
		return x.mark(parent, base, false)
	}
	return x.create(hdr, parent, name, base)
}

// isWhiteoutDevice tells an entry that overlayfs would take for a whiteout, and that cannot be made everywhere.
func isWhiteoutDevice(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0
}

// cleanName makes an entry's name a path below the root, without "." and "..".
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("name has a NUL byte: %w", ErrInvalid)
	}
	c := path.Clean(strings.TrimLeft(name, "/"))
	if c == ".." || strings.HasPrefix(c, "../") {
		return "", fmt.Errorf("name points outside of the layer: %w", ErrInvalid)
	}
	return c, nil
}

// split is path.Split of a clean relative path, whose directory is clean as well. Both are parts of it, not copies: there
// can be thousands of directories in one name.
func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return ".", name
	}
	return name[:i], name[i+1:]
}

func (x *extractor) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return fmt.Errorf("the root is not a directory (type %q): %w", hdr.Typeflag, ErrInvalid)
	}
	return errors.Join(x.explicit(".", hdr), x.t.setAttrs(x.root, ".", attrsOf(hdr)))
}

// explicit notes that a directory has an entry of its own.
func (x *extractor) explicit(name string, hdr *tar.Header) error {
	delete(x.implied, name)
	x.dirTimes[name] = dirTimes{entryTimes(hdr), x.count}
	return x.note(name)
}

// note bounds the memory that is spent on names: links within the layer give a directory any number of them, and one entry
// can imply a thousand directories.
func (x *extractor) note(name string) error {
	if x.noted += int64(len(name)); x.noted > maxNoted {
		return fmt.Errorf("more than %d bytes of names of directories and whiteouts: %w", maxNoted, ErrTooLarge)
	}
	return nil
}

// create makes anything but a whiteout. What already has the name, from an earlier entry, is replaced, except that a
// directory stays a directory.
func (x *extractor) create(hdr *tar.Header, parent int, name, base string) error {
	fd, err := x.make(hdr, parent, base)
	if errors.Is(err, syscall.EEXIST) {
		if fd, err = x.replace(hdr, parent, name, base); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	x.res.Inodes++
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return x.writeFile(hdr, fd, parent, base, name)
	case tar.TypeDir:
		if err := x.explicit(name, hdr); err != nil {
			return err
		}
		x.res.DiskSize += blockSize
	case tar.TypeLink:
		x.res.Inodes--
	}
	return x.t.setAttrs(parent, base, attrsOf(hdr))
}

// make creates the entry's inode. What it returns is for the content of a regular file.
func (x *extractor) make(hdr *tar.Header, parent int, base string) (int, error) {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return x.t.create(parent, base, mode(hdr)&0o777)
	case tar.TypeDir:
		return -1, x.t.mkdir(parent, base, mode(hdr)&0o777)
	case tar.TypeSymlink:
		if hdr.Linkname == "" || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return -1, fmt.Errorf("symbolic link to %q: %w", hdr.Linkname, ErrInvalid)
		}
		return -1, x.t.symlink(hdr.Linkname, parent, base)
	case tar.TypeLink:
		return -1, x.link(hdr, parent, base)
	case tar.TypeChar:
		return -1, x.mknod(hdr, parent, base, sys.FileChar)
	case tar.TypeBlock:
		return -1, x.mknod(hdr, parent, base, sys.FileBlock)
	case tar.TypeFifo:
		return -1, x.t.mknod(parent, base, sys.FileFifo|0o600, 0, 0)
	}
	return -1, fmt.Errorf("entry of unknown type %q: %w", hdr.Typeflag, ErrInvalid)
}

func (x *extractor) mknod(hdr *tar.Header, parent int, base string, kind uint32) error {
	if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
		return fmt.Errorf("device number %d:%d: %w", hdr.Devmajor, hdr.Devminor, ErrInvalid)
	}
	return x.t.mknod(parent, base, kind|0o600, uint32(hdr.Devmajor), uint32(hdr.Devminor))
}

func (x *extractor) link(hdr *tar.Header, parent int, base string) error {
	target, err := cleanName(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", hdr.Linkname, err)
	}
	dir, tbase := split(target)
	fd, err := x.t.open(dir)
	if err == nil {
		err = x.t.link(fd, tbase, parent, base)
		x.t.close(fd)
	}
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("hard link to %.200q, which is no file of this layer: %w", hdr.Linkname, errors.Join(ErrInvalid, err))
	}
	return err
}

func (x *extractor) replace(hdr *tar.Header, parent int, name, base string) (int, error) {
	st, err := x.t.stat(parent, base)
	if err != nil {
		return -1, err
	}
	if st.isDir() && hdr.Typeflag == tar.TypeDir {
		x.res.Inodes--
		x.res.DiskSize -= blockSize
		return -1, nil
	}
	if hdr.Typeflag == tar.TypeLink {
		if target, err := cleanName(hdr.Linkname); err != nil || target == name {
			return -1, fmt.Errorf("hard link to itself: %w", errors.Join(ErrInvalid, err))
		}
	}
	if err := x.remove(parent, name, base); err != nil {
		return -1, fmt.Errorf("replace the earlier entry of that name: %w", err)
	}
	fd, err := x.make(hdr, parent, base)
	if err == nil && hdr.Typeflag == tar.TypeDir {
		err = x.opaqueIfHidden(parent, name, base)
	}
	return fd, err
}

// opaqueIfHidden: a directory that the layer both deletes and makes does not merge with the one below.
func (x *extractor) opaqueIfHidden(parent int, name, base string) error {
	if _, ok := x.hidden[name]; !ok {
		return nil
	}
	return x.t.setOpaque(parent, base)
}

func (x *extractor) writeFile(hdr *tar.Header, fd, parent int, base, name string) error {
	// The payload of a sparse entry is a part of what the reader gives, so it is recorded with the headers.
	if hdr.Size > 0 && !isSparse(hdr) {
		x.frame.file(name, hdr.Size)
		x.raw.payload = true
		defer func() { x.raw.payload = false }()
	}
	disk, err := x.t.write(x.ctx, fd, parent, base, attrsOf(hdr), hdr.Size, x.in)
	x.res.DiskSize += disk
	return err
}

func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range hdr.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

const modeBits = 0o7777 // set-user-ID, set-group-ID, sticky, rwxrwxrwx

func mode(hdr *tar.Header) uint32 { return uint32(hdr.Mode) & modeBits }

// entryTimes: the access time is the later of both where the entry has one; what no file system can hold becomes the
// epoch (as in containerd).
func entryTimes(hdr *tar.Header) times {
	bound := func(t time.Time) time.Time {
		if t.Unix() < 0 || t.Unix() > 1<<40 {
			return time.Unix(0, 0)
		}
		return t
	}
	access := hdr.AccessTime
	if access.Before(hdr.ModTime) {
		access = hdr.ModTime
	}
	return times{bound(access), bound(hdr.ModTime)}
}

// attrs are what an entry says of its inode, beside type and content.
type attrs struct {
	uid, gid int
	mode     uint32 // 12 bits
	times
	pax    map[string]string // has the extended attributes
	linked bool              // the entry is a hard link
}

func attrsOf(hdr *tar.Header) attrs {
	return attrs{hdr.Uid, hdr.Gid, mode(hdr), entryTimes(hdr), hdr.PAXRecords, hdr.Typeflag == tar.TypeLink}
}

// xattrs calls set for the extended attributes of a file of the type kind.
func (a *attrs) xattrs(kind uint32, set func(name, value string) error) error {
	for k, v := range a.pax {
		k, ok := strings.CutPrefix(k, paxXattr)
		// overlayfs would believe its own attributes: an image could redirect directories with them.
		if !ok || strings.HasPrefix(k, overlayXattrs) {
			continue
		}
		err := set(k, v)
		switch {
		case err == nil, errors.Is(err, syscall.ENOTSUP):
		case errors.Is(err, syscall.EPERM) && strings.HasPrefix(k, "user.") && kind != sys.FileReg && kind != sys.FileDir:
			// xattr(7): only regular files and directories can have user attributes.
		default:
			return fmt.Errorf("set attribute %q: %w", k, err)
		}
	}
	return nil
}

// applyDirTimes sets the times of directories. Links can give one of them several entries: the last one counts.
func (x *extractor) applyDirTimes() error {
	names := slices.SortedFunc(maps.Keys(x.dirTimes), func(a, b string) int {
		return cmp.Compare(x.dirTimes[a].count, x.dirTimes[b].count)
	})
	for _, name := range names {
		fd, err := x.t.open(name)
		if err == nil {
			err = x.t.setTimes(fd, x.dirTimes[name].times)
			x.t.close(fd)
		}
		// ENOENT, ENOTDIR: replaced under another name that leads to it.
		if err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR) {
			return fmt.Errorf("set times of %.200q: %w", name, err)
		}
	}
	return nil
}

// rawReader counts the bytes of the stream and gives all but the contents of files to the frame file.
type rawReader struct {
	r       io.Reader
	frame   *frameWriter
	n       int64
	limit   int64
	payload bool
}

func (r *rawReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.n += int64(n)
	if r.limit > 0 && r.n > r.limit {
		return 0, fmt.Errorf("more than %d bytes: %w", r.limit, ErrTooLarge)
	}
	if !r.payload {
		r.frame.raw(p[:n])
	}
	return n, err
}
