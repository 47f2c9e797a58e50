package layer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/image/erofs"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// Limits of the system calls, which an image does not have.
const (
	nameMax       = 255
	pathMax       = 4096 // with the NUL
	maxLinks      = 40   // on the way to a file
	xattrNameMax  = 255
	xattrValueMax = 64 << 10
)

// maxImageNames bounds the memory of an imageTree. Tests have less.
var maxImageNames = 1 << 20

// imageTree keeps the names of a layer in memory, where they behave like those of a directory, and writes the contents
// of its files to an image. The other inodes are written when all is known.
type imageTree struct {
	w     *erofs.Writer
	dirs  []*inode // by handle; the root is the first
	aside []*inode // contents put aside, by their number less one
	names int      // made so far
	slab  []inode
}

type inode struct {
	mode     uint16 // st_mode
	listed   bool   // in the image's tree already
	uid, gid uint32
	nsec     uint32
	sec      int64
	img      *erofs.Inode // nil as long as it is not in the image
	dir      *directory   // of a directory
	more     *more        // of few
}

type directory struct {
	parent  *inode // of the root: itself
	handle  int
	entries map[string]*inode
	opaque  bool
}

// more is what most inodes lack.
type more struct {
	target       string // of a symbolic link
	major, minor uint32
	xattrs       []erofs.Xattr // by name
}

func newImageTree(w *erofs.Writer) *imageTree {
	t := &imageTree{w: w}
	root := t.newInode(sys.FileDir | 0o755)
	t.newDir(root, root)
	return t
}

func (t *imageTree) newInode(mode uint32) *inode {
	if len(t.slab) == 0 {
		t.slab = make([]inode, 64)
	}
	n := &t.slab[0]
	t.slab = t.slab[1:]
	n.mode = uint16(mode)
	return n
}

func (t *imageTree) newDir(n, parent *inode) {
	n.dir = &directory{parent: parent, handle: len(t.dirs)}
	t.dirs = append(t.dirs, n)
}

func (n *inode) kind() uint32 { return uint32(n.mode) & sys.FileTypeMask }

func (n *inode) extra() *more {
	if n.more == nil {
		n.more = &more{}
	}
	return n.more
}

func (n *inode) xattrs() []erofs.Xattr {
	if n.more == nil {
		return nil
	}
	return n.more.xattrs
}

func (t *imageTree) open(path string) (int, error) {
	if len(path) >= pathMax {
		return -1, syscall.ENAMETOOLONG
	}
	var (
		at   = t.dirs[0]
		rest [maxLinks + 1]string // of the path, and of the links in it
		top  = 0                  // the last one begun
		seen = 0                  // links
	)
	rest[0] = path
	for {
		if rest[top] == "" {
			if top == 0 {
				return at.dir.handle, nil
			}
			top--
			continue
		}
		var name string
		name, rest[top], _ = strings.Cut(rest[top], "/")
		switch name {
		case "", ".":
			continue
		case "..":
			at = at.dir.parent
			continue
		}
		n, err := t.lookup(at, name)
		switch {
		case err != nil:
			return -1, err
		case n.dir != nil:
			at = n
		case n.kind() == sys.FileSymlink:
			if seen++; seen > maxLinks {
				return -1, syscall.ELOOP
			}
			top++
			rest[top] = n.more.target
			if rest[top][0] == '/' {
				at = t.dirs[0]
			}
		default:
			return -1, syscall.ENOTDIR
		}
	}
}

func (t *imageTree) lookup(dir *inode, name string) (*inode, error) {
	if n, ok := dir.dir.entries[name]; ok {
		return n, nil
	}
	if len(name) > nameMax {
		return nil, syscall.ENAMETOOLONG
	}
	return nil, syscall.ENOENT
}

func (t *imageTree) close(int) {}

// find is lookup by handle. Base "." is the directory.
func (t *imageTree) find(dir int, base string) (*inode, error) {
	if base == "." {
		return t.dirs[dir], nil
	}
	return t.lookup(t.dirs[dir], base)
}

// vacant tells that a name can be made.
func (t *imageTree) vacant(dir int, base string) error {
	switch _, err := t.find(dir, base); {
	case err == nil:
		return syscall.EEXIST
	case errors.Is(err, syscall.ENOENT):
		return nil
	default:
		return err
	}
}

// add gives n a name, which is vacant.
func (t *imageTree) add(dir int, base string, n *inode) error {
	if t.names == maxImageNames {
		return fmt.Errorf("more than %d names: %w", maxImageNames, ErrNoImage)
	}
	t.names++
	d := t.dirs[dir].dir
	if d.entries == nil {
		d.entries = map[string]*inode{}
	}
	d.entries[strings.Clone(base)] = n // the whole path need not stay
	return nil
}

func (t *imageTree) make(dir int, base string, mode uint32) (*inode, error) {
	if err := t.vacant(dir, base); err != nil {
		return nil, err
	}
	n := t.newInode(mode)
	return n, t.add(dir, base, n)
}

func (t *imageTree) stat(dir int, base string) (fileStat, error) {
	n, err := t.find(dir, base)
	if err != nil {
		return fileStat{}, err
	}
	st := fileStat{mode: uint32(n.mode)}
	if n.img != nil {
		st.size = n.img.Size()
	}
	if n.more != nil {
		st.rdev = uint64(n.more.major)<<32 | uint64(n.more.minor)
	}
	return st, nil
}

func (t *imageTree) mkdir(dir int, base string, perm uint32) error {
	n, err := t.make(dir, base, sys.FileDir|perm)
	if err != nil {
		return err
	}
	parent := t.dirs[dir]
	if parent.mode&syscall.S_ISGID != 0 {
		n.gid = parent.gid
	}
	t.newDir(n, parent)
	return nil
}

func (t *imageTree) mkdirImplied(dir int, base string) (int, error) {
	if err := t.mkdir(dir, base, 0o755); err != nil {
		return -1, err
	}
	return len(t.dirs) - 1, nil
}

func (t *imageTree) symlink(target string, dir int, base string) error {
	if len(target) >= pathMax {
		return syscall.ENAMETOOLONG
	}
	n, err := t.make(dir, base, sys.FileSymlink|0o777)
	if err != nil {
		return err
	}
	n.extra().target = strings.Clone(target)
	return nil
}

func (t *imageTree) mknod(dir int, base string, mode, major, minor uint32) error {
	n, err := t.make(dir, base, mode)
	if err == nil && (major != 0 || minor != 0) {
		n.extra().major, n.more.minor = major, minor
	}
	return err
}

func (t *imageTree) link(fromDir int, from string, dir int, base string) error {
	n, err := t.find(fromDir, from)
	if err != nil {
		return err
	}
	if err := t.vacant(dir, base); err != nil {
		return err
	}
	if n.dir != nil {
		return syscall.EPERM
	}
	return t.add(dir, base, n)
}

// create leaves the inode to write, which has all of it at once.
func (t *imageTree) create(dir int, base string, _ uint32) (int, error) {
	return -1, t.vacant(dir, base)
}

func (t *imageTree) write(ctx context.Context, _, dir int, base string, a attrs, size int64, r io.Reader) (int64, error) {
	n := t.newInode(sys.FileReg)
	if err := n.set(a); err != nil {
		return 0, err
	}
	if size > 0 {
		var err error
		if n.img, err = t.w.WriteFile(ctx, n.attr(), size, r); err != nil {
			return 0, t.failed(ctx, "content", err)
		}
	}
	return 0, t.add(dir, base, n)
}

func (t *imageTree) failed(ctx context.Context, what string, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, erofs.ErrUnsupported):
		return fmt.Errorf("%s: %w: %w", what, ErrNoImage, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (t *imageTree) setAttrs(dir int, base string, a attrs) error {
	n, err := t.find(dir, base)
	if err != nil {
		return err
	}
	if n.img == nil {
		return n.set(a)
	}
	before := *n
	had := slices.Clone(n.xattrs())
	if err := n.set(a); err != nil {
		return err
	}
	same := n.mode == before.mode && n.uid == before.uid && n.gid == before.gid && n.sec == before.sec && n.nsec == before.nsec &&
		slices.EqualFunc(n.xattrs(), had, func(a, b erofs.Xattr) bool { return a.Name == b.Name && string(a.Value) == string(b.Value) })
	if same {
		return nil
	}
	if err := t.w.SetAttr(n.img, n.attr()); err != nil {
		return t.failed(context.Background(), "attributes", err)
	}
	return nil
}

// set is chown, setxattr, chmod and utimensat.
func (n *inode) set(a attrs) error {
	n.uid, n.gid = uint32(a.uid), uint32(a.gid)
	// chown takes capabilities away, but sees none in what is empty.
	if a.linked && n.more != nil {
		n.more.xattrs = slices.DeleteFunc(n.more.xattrs, func(x erofs.Xattr) bool { return x.Name == xattrCapability && len(x.Value) > 0 })
	}
	if err := a.xattrs(n.kind(), n.setXattr); err != nil {
		return err
	}
	if n.kind() != sys.FileSymlink {
		n.mode = uint16(n.kind() | a.mode)
	}
	if n.dir == nil {
		n.setTime(a.mod)
	}
	return nil
}

func (n *inode) setTime(t time.Time) { n.sec, n.nsec = t.Unix(), uint32(t.Nanosecond()) }

const xattrCapability = "security.capability"

// setXattr is setxattr(2) of the file systems that hold layers, on a host without a security module that has its say.
func (n *inode) setXattr(name, value string) error {
	switch {
	case name == "" || len(name) > xattrNameMax:
		return syscall.ERANGE
	case len(value) > xattrValueMax:
		return syscall.E2BIG
	case name == "system.posix_acl_access", name == "system.posix_acl_default":
		// The kernel makes one thing of them and the mode, both ways.
		return fmt.Errorf("access control list: %w", ErrNoImage)
	}
	space, rest, _ := strings.Cut(name, ".")
	switch {
	case !slices.Contains([]string{"user", "security", "trusted"}, space) || !strings.Contains(name, "."):
		return syscall.ENOTSUP
	case space == "user" && n.kind() != sys.FileReg && n.kind() != sys.FileDir:
		return syscall.EPERM
	case rest == "", name == xattrCapability && !validCapability(value):
		return syscall.EINVAL
	}
	x := erofs.Xattr{Name: strings.Clone(name), Value: []byte(value)}
	m := n.extra()
	i, found := slices.BinarySearchFunc(m.xattrs, name, func(x erofs.Xattr, name string) int { return strings.Compare(x.Name, name) })
	if found {
		m.xattrs[i] = x
	} else {
		m.xattrs = slices.Insert(m.xattrs, i, x)
	}
	return nil
}

// validCapability tells what the kernel takes for file capabilities (capabilities(7), "File capability extended attribute
// versioning").
func validCapability(v string) bool {
	const revision2, revision3, mask = 0x02000000, 0x03000000, 0xff000000
	switch len(v) {
	case 0:
		return true // setxattr does not look at what is empty
	case 20:
		return binary.LittleEndian.Uint32([]byte(v))&mask == revision2
	case 24:
		return binary.LittleEndian.Uint32([]byte(v))&mask == revision3 && v[20:] != "\xff\xff\xff\xff"
	}
	return false
}

func (n *inode) attr() erofs.Attr {
	a := erofs.Attr{Mode: uint32(n.mode), UID: n.uid, GID: n.gid, ModTime: time.Unix(n.sec, int64(n.nsec))}
	if n.more != nil {
		a.Major, a.Minor, a.Xattrs = n.more.major, n.more.minor, n.more.xattrs
	}
	if n.dir != nil && n.dir.opaque {
		a.Xattrs = append(slices.Clip(a.Xattrs), erofs.Xattr{Name: opaqueXattr, Value: []byte("y")})
	}
	return a
}

func (t *imageTree) setOpaque(dir int, base string) error {
	n, err := t.find(dir, base)
	if err == nil {
		n.dir.opaque = true
	}
	return err
}

func (t *imageTree) setTimes(dir int, ts times) error {
	t.dirs[dir].setTime(ts.mod)
	return nil
}

func (t *imageTree) unlink(dir int, base string) error {
	n, err := t.find(dir, base)
	if err != nil {
		return err
	}
	if n.dir != nil {
		return syscall.EISDIR
	}
	delete(t.dirs[dir].dir.entries, base)
	return nil
}

func (t *imageTree) keepsReplaced() bool { return true }

func (t *imageTree) putAside(dir int, base string, n int64) error {
	if n != int64(len(t.aside))+1 {
		return fmt.Errorf("content %d put aside after %d", n, len(t.aside))
	}
	entries := t.dirs[dir].dir.entries
	t.aside = append(t.aside, entries[base])
	delete(entries, base)
	return nil
}

func (t *imageTree) removeDir(dir int, base string, remove func(dir int, base string) error) error {
	n, err := t.find(dir, base)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(n.dir.entries)) {
		if err := remove(n.dir.handle, name); err != nil {
			return err
		}
	}
	t.dirs[n.dir.handle] = nil
	delete(t.dirs[dir].dir.entries, base)
	return nil
}

// finish writes what is not in the image yet. It returns the size of the image and its inodes.
func (t *imageTree) finish(ctx context.Context) (size, inodes int64, err error) {
	top := t.newInode(sys.FileDir | 0o755)
	t.newDir(top, top)
	top.dir.entries = map[string]*inode{"fs": t.dirs[0]}
	if len(t.aside) > 0 {
		replaced := t.newInode(sys.FileDir | 0o755)
		t.newDir(replaced, top)
		replaced.dir.entries = make(map[string]*inode, len(t.aside))
		for i, n := range t.aside {
			replaced.dir.entries[strconv.Itoa(i+1)] = n
		}
		top.dir.entries["replaced"] = replaced
	}
	root, err := t.list(ctx, top, &inodes)
	if err != nil {
		return 0, 0, err
	}
	size, err = t.w.Close(root)
	if err != nil {
		return 0, 0, t.failed(ctx, "directories", err)
	}
	return size, inodes, nil
}

// list is a directory as the image's writer wants it. It takes the names out of the tree.
func (t *imageTree) list(ctx context.Context, n *inode, inodes *int64) (*erofs.Dir, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	*inodes++
	d := &erofs.Dir{Attr: n.attr(), Entries: make([]erofs.Entry, 0, len(n.dir.entries))}
	for _, name := range slices.Sorted(maps.Keys(n.dir.entries)) {
		e := erofs.Entry{Name: name}
		c := n.dir.entries[name]
		var err error
		if c.dir != nil {
			e.Dir, err = t.list(ctx, c, inodes)
		} else {
			if !c.listed {
				*inodes++
				c.listed = true
			}
			e.Inode, err = t.written(ctx, c)
		}
		if err != nil {
			return nil, err
		}
		d.Entries = append(d.Entries, e)
	}
	n.dir.entries = nil
	return d, nil
}

func (t *imageTree) written(ctx context.Context, n *inode) (*erofs.Inode, error) {
	var err error
	switch {
	case n.img != nil:
	case n.kind() == sys.FileReg:
		n.img, err = t.w.WriteFile(ctx, n.attr(), 0, eof{})
	case n.kind() == sys.FileSymlink:
		n.img, err = t.w.WriteNode(n.attr(), n.more.target)
	default:
		n.img, err = t.w.WriteNode(n.attr(), "")
	}
	if err != nil {
		return nil, t.failed(ctx, "inode", err)
	}
	return n.img, nil
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }
