// Package layer turns a layer's tar stream into a directory that overlayfs can use, and back.
//
// A layer is unpacked without its parents: whiteouts become what overlayfs takes for them, and directories that the
// tar stream does not have entries for are reported, since their owner and mode are those of a lower layer.
package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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
	TarSize   int64 // bytes of the tar stream
	DiskSize  int64 // bytes on disk, in blocks of 4 KiB
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
)

var (
	zeros       [copyBuffer]byte
	copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}
)

type times struct{ access, mod time.Time }

type extractor struct {
	ctx   context.Context
	root  int
	opts  Options
	tr    *tar.Reader
	raw   *rawReader
	frame *frameWriter
	res   Result
	buf   []byte
	size  int64 // declared by the entries so far
	count int64
	cache map[string]int // directory fds (O_PATH)
	order []string       // of cache, oldest first
	// retired are descriptors to close before the next entry.
	retired []int
	aside   int64 // contents put aside so far
	hidden  map[string]struct{}
	// marks are by path: true is an opaque directory, false what is deleted.
	marks map[string]bool
	// implied and dirTimes are keyed by the clean path of the entry, which may lead through links.
	implied  map[string]struct{}
	dirTimes map[string]times
}

// Unpack reads a tar stream to its end and unpacks it below dir, an empty directory that nobody else touches. It
// must run as root. After an error the directory holds part of the layer.
func Unpack(ctx context.Context, r io.Reader, dir *os.File, o Options) (Result, error) {
	frame, err := newFrameWriter(o.Frame)
	if err != nil {
		return Result{}, fmt.Errorf("unpack layer: frame file: %w", err)
	}
	raw := &rawReader{r: r, frame: frame, limit: o.MaxSize}
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	x := &extractor{
		ctx: ctx, root: int(dir.Fd()), opts: o, tr: tar.NewReader(raw), raw: raw, frame: frame,
		buf:   buf[:],
		cache: map[string]int{}, hidden: map[string]struct{}{}, marks: map[string]bool{},
		implied: map[string]struct{}{".": {}}, dirTimes: map[string]times{},
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
		hdr, err := x.tr.Next()
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
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{x.raw}, x.buf); err != nil {
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
	dir, base := path.Split(name)
	parent, err := x.dir(path.Clean(dir))
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return x.whiteout(hdr, parent, path.Clean(dir), base)
	}
	if x.opts.KeepMarks && isWhiteoutDevice(hdr) {
		if st, err := sys.Lstatat(parent, base); err == nil {
			if err := x.remove(parent, name, base); err != nil {
				return fmt.Errorf("replace the earlier entry of that name (mode %#o): %w", st.Mode, err)
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

func (x *extractor) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return fmt.Errorf("the root is not a directory (type %q): %w", hdr.Typeflag, ErrInvalid)
	}
	delete(x.implied, ".")
	x.dirTimes["."] = entryTimes(hdr)
	return x.metadata(hdr, x.root, ".", false)
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
		return x.writeFile(hdr, fd, name)
	case tar.TypeDir:
		delete(x.implied, name)
		x.dirTimes[name] = entryTimes(hdr)
		x.res.DiskSize += blockSize
		return x.metadata(hdr, parent, base, false)
	case tar.TypeLink:
		x.res.Inodes--
		st, err := sys.Lstatat(parent, base)
		if err != nil {
			return err
		}
		return x.metadata(hdr, parent, base, st.Mode&sys.FileTypeMask == sys.FileSymlink)
	default:
		return x.metadata(hdr, parent, base, hdr.Typeflag == tar.TypeSymlink)
	}
}

// make creates the entry's inode. It returns a descriptor for a regular file only.
func (x *extractor) make(hdr *tar.Header, parent int, base string) (int, error) {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return sys.OpenBeneath(parent, base, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode(hdr)&0o777)
	case tar.TypeDir:
		return -1, sys.Mkdirat(parent, base, mode(hdr)&0o777)
	case tar.TypeSymlink:
		if hdr.Linkname == "" || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return -1, fmt.Errorf("symbolic link to %q: %w", hdr.Linkname, ErrInvalid)
		}
		return -1, sys.Symlinkat(hdr.Linkname, parent, base)
	case tar.TypeLink:
		return -1, x.link(hdr, parent, base)
	case tar.TypeChar:
		return -1, mknod(hdr, parent, base, sys.FileChar)
	case tar.TypeBlock:
		return -1, mknod(hdr, parent, base, sys.FileBlock)
	case tar.TypeFifo:
		return -1, sys.Mknodat(parent, base, sys.FileFifo|0o600, 0, 0)
	}
	return -1, fmt.Errorf("entry of unknown type %q: %w", hdr.Typeflag, ErrInvalid)
}

func mknod(hdr *tar.Header, parent int, base string, kind uint32) error {
	if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
		return fmt.Errorf("device number %d:%d: %w", hdr.Devmajor, hdr.Devminor, ErrInvalid)
	}
	return sys.Mknodat(parent, base, kind|0o600, uint32(hdr.Devmajor), uint32(hdr.Devminor))
}

func (x *extractor) link(hdr *tar.Header, parent int, base string) error {
	target, err := cleanName(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", hdr.Linkname, err)
	}
	dir, tbase := path.Split(target)
	fd, err := sys.OpenInRoot(x.root, path.Clean("./"+dir), sys.OpenPath|sys.OpenDirectory, 0)
	if err == nil {
		err = sys.Linkat(fd, tbase, parent, base)
		sys.Close(fd)
	}
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("hard link to %.200q, which is no file of this layer: %w", hdr.Linkname, errors.Join(ErrInvalid, err))
	}
	return err
}

func (x *extractor) replace(hdr *tar.Header, parent int, name, base string) (int, error) {
	st, err := sys.Lstatat(parent, base)
	if err != nil {
		return -1, err
	}
	if st.Mode&sys.FileTypeMask == sys.FileDir && hdr.Typeflag == tar.TypeDir {
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
	return sys.Setxattrat(parent, base, opaqueXattr, []byte("y"))
}

func (x *extractor) writeFile(hdr *tar.Header, fd int, name string) (err error) {
	defer func() { err = errors.Join(err, sys.Close(fd)) }()
	// The payload of a sparse entry is a part of what the reader gives, so it is recorded with the headers.
	if hdr.Size > 0 && !isSparse(hdr) {
		x.frame.file(name, hdr.Size)
		x.raw.payload = true
		defer func() { x.raw.payload = false }()
	}
	var off, end int64
	for off < hdr.Size {
		if x.ctx.Err() != nil {
			return context.Cause(x.ctx)
		}
		n, err := io.ReadFull(x.tr, x.buf[:min(int64(len(x.buf)), hdr.Size-off)])
		if err != nil {
			return fmt.Errorf("content at %d of %d bytes: %w", off, hdr.Size, err)
		}
		if n < blockSize || !bytes.Equal(x.buf[:n], zeros[:n]) {
			if err := sys.WriteAt(fd, x.buf[:n], off); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			x.res.DiskSize += (int64(n) + blockSize - 1) &^ (blockSize - 1)
			end = off + int64(n)
		}
		off += int64(n)
	}
	if end != hdr.Size { // it ends with a hole
		if err := sys.Ftruncate(fd, hdr.Size); err != nil {
			return fmt.Errorf("set size: %w", err)
		}
	}
	// As it was created it is right most of the time, and each change costs the file system a transaction. The umask or a
	// set-group-ID directory can have made it otherwise.
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return err
	}
	// Owner first: chown clears the set-id bits and the capabilities.
	if int(st.Uid) != hdr.Uid || int(st.Gid) != hdr.Gid {
		if err := sys.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
			return fmt.Errorf("chown %d:%d: %w", hdr.Uid, hdr.Gid, err)
		}
	}
	if err := x.xattrs(hdr, func(k string, v []byte) error { return sys.Fsetxattr(fd, k, v) }); err != nil {
		return err
	}
	if st.Mode&modeBits != mode(hdr) {
		if err := sys.Fchmod(fd, mode(hdr)); err != nil {
			return fmt.Errorf("chmod %o: %w", mode(hdr), err)
		}
	}
	t := entryTimes(hdr)
	return sys.Futimes(fd, t.access, t.mod)
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

// metadata applies owner, attributes, mode and times to what is not an open regular file.
func (x *extractor) metadata(hdr *tar.Header, parent int, base string, symlink bool) error {
	st, err := sys.Lstatat(parent, base)
	if err != nil {
		return err
	}
	// A hard link's file loses its capabilities by this, like everywhere, unless the link's entry has them too.
	linked := hdr.Typeflag == tar.TypeLink
	if linked || int(st.Uid) != hdr.Uid || int(st.Gid) != hdr.Gid {
		if err := sys.Chownat(parent, base, hdr.Uid, hdr.Gid); err != nil {
			return fmt.Errorf("chown %d:%d: %w", hdr.Uid, hdr.Gid, err)
		}
	}
	set := func(k string, v []byte) error { return sys.Setxattrat(parent, base, k, v) }
	if err := x.xattrs(hdr, set); err != nil {
		return err
	}
	if !symlink && (linked || st.Mode&modeBits != mode(hdr)) {
		if err := sys.Chmodat(parent, base, mode(hdr)); err != nil {
			return fmt.Errorf("chmod %o: %w", mode(hdr), err)
		}
	}
	if hdr.Typeflag == tar.TypeDir {
		return nil // its times are set when nothing is made in it any more
	}
	t := entryTimes(hdr)
	return sys.Utimesat(parent, base, t.access, t.mod)
}

func (x *extractor) xattrs(hdr *tar.Header, set func(string, []byte) error) error {
	for k, v := range hdr.PAXRecords {
		k, ok := strings.CutPrefix(k, paxXattr)
		// overlayfs would believe its own attributes: an image could redirect directories with them.
		if !ok || strings.HasPrefix(k, overlayXattrs) {
			continue
		}
		err := set(k, []byte(v))
		switch {
		case err == nil, errors.Is(err, syscall.ENOTSUP):
		case errors.Is(err, syscall.EPERM) && strings.HasPrefix(k, "user."):
			// xattr(7): only regular files and directories can have user attributes.
			if hdr.Typeflag == tar.TypeReg || hdr.Typeflag == tar.TypeDir {
				return fmt.Errorf("set attribute %q: %w", k, err)
			}
		default:
			return fmt.Errorf("set attribute %q: %w", k, err)
		}
	}
	return nil
}

func (x *extractor) applyDirTimes() error {
	for name, t := range x.dirTimes {
		fd, err := sys.OpenInRoot(x.root, name, sys.OpenPath|sys.OpenDirectory, 0)
		if err == nil {
			err = sys.Utimesat(fd, "", t.access, t.mod)
			sys.Close(fd)
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
