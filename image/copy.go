package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/cri-shim/cri-shim/image/layer"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// copier makes the tree that an overlay of layers would show, as files of their own: nothing is linked to the store, blocks
// are shared where the file system can.
type copier struct {
	ctx    context.Context
	layers []copyLayer // top first
	dst    int
	owners owners
	label  string // SELinux context of every file; "" leaves the image's
	links  map[inode]string
	// noReflink is set once the file system has refused.
	noReflink bool
	inodes    int64
}

type copyLayer struct {
	dir    *os.File
	closer io.Closer // of dir and what it is in
	marks  *layer.Marks
	// gone are the names that the marks delete, by directory.
	gone map[string][]string
}

type inode struct {
	layer int
	ino   uint64
}

func newCopyLayer(dir *os.File, closer io.Closer, m *layer.Marks) copyLayer {
	l := copyLayer{dir: dir, closer: closer, marks: m}
	if m != nil && len(m.Whiteouts) > 0 {
		l.gone = map[string][]string{}
		for _, p := range m.Whiteouts {
			l.gone[path.Dir(p)] = append(l.gone[path.Dir(p)], path.Base(p))
		}
	}
	return l
}

// copyTree fills the empty directory dst.
func copyTree(ctx context.Context, dst *os.File, layers []copyLayer, o owners, label string) (inodes int64, err error) {
	c := &copier{ctx: ctx, layers: layers, dst: int(dst.Fd()), owners: o, label: label, links: map[inode]string{}}
	all := make([]int, len(layers))
	for i := range all {
		all[i] = i
	}
	if err := c.directory(".", all); err != nil {
		return c.inodes, fmt.Errorf("copy root file system: %w", err)
	}
	return c.inodes, nil
}

// child is what shows under a name: the file of one layer, or the directories of some, top first.
type child struct {
	name    string
	layers  []int
	dir     bool
	covered bool // what lower layers have under the name does not show
	st      syscall.Stat_t
}

// directory copies the directory p, which those layers have, into the one that is there, and then gives it its
// attributes. Descriptors are closed before it goes deeper, as trees can be deeper than there are descriptors.
func (c *copier) directory(p string, from []int) error {
	if err := c.ctx.Err(); err != nil {
		return context.Cause(c.ctx)
	}
	children, err := c.children(p, from)
	if err != nil {
		return fmt.Errorf("%.300q: %w", p, err)
	}
	for _, e := range children {
		if e.dir {
			if err := c.directory(path.Join(p, e.name), e.layers); err != nil {
				return err
			}
		}
	}
	if err := c.directoryAttrs(p, from[0]); err != nil {
		return fmt.Errorf("%.300q: %w", p, err)
	}
	return nil
}

// children copies what is in the directory p but for the contents of directories, which it makes, and returns what it
// found.
func (c *copier) children(p string, from []int) ([]*child, error) {
	byName := map[string]*child{}
	for _, l := range from {
		if err := c.list(p, l, byName); err != nil {
			return nil, err
		}
	}
	var all []*child
	for _, e := range byName {
		if len(e.layers) > 0 {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *child) int { return strings.Compare(a.name, b.name) })
	dst, err := sys.OpenBeneath(c.dst, p, sys.OpenPath|sys.OpenDirectory, 0)
	if err != nil {
		return nil, err
	}
	defer sys.Close(dst)
	open := map[int]int{}
	defer func() {
		for _, fd := range open {
			sys.Close(fd)
		}
	}()
	for _, e := range all {
		if err := c.ctx.Err(); err != nil {
			return nil, context.Cause(c.ctx)
		}
		src, ok := open[e.layers[0]]
		if !ok {
			if src, err = sys.OpenBeneath(int(c.layers[e.layers[0]].dir.Fd()), p, sys.OpenPath|sys.OpenDirectory, 0); err != nil {
				return nil, err
			}
			open[e.layers[0]] = src
		}
		if err := c.entry(p, dst, src, e); err != nil {
			return nil, fmt.Errorf("%.200q: %w", e.name, err)
		}
	}
	return all, nil
}

// list adds what layer l has in the directory p to what is known from the layers above.
func (c *copier) list(p string, l int, byName map[string]*child) error {
	from := &c.layers[l]
	fd, err := sys.OpenBeneath(int(from.dir.Fd()), p, os.O_RDONLY|sys.OpenDirectory, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), p)
	defer d.Close()
	at := func(name string) *child {
		if byName[name] == nil {
			byName[name] = &child{name: name}
		}
		return byName[name]
	}
	for {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			if err := c.look(p, l, fd, at(name)); err != nil {
				return fmt.Errorf("%.200q: %w", name, err)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	for _, name := range from.gone[p] {
		at(name).covered = true
	}
	return nil
}

// look takes into account what layer l has under e's name.
func (c *copier) look(p string, l, dir int, e *child) error {
	if e.covered {
		return nil
	}
	st, err := sys.Lstatat(dir, e.name)
	if err != nil {
		return err
	}
	switch {
	case layer.IsWhiteout(st):
		e.covered = true
	case st.Mode&sys.FileTypeMask == sys.FileDir:
		if len(e.layers) == 0 {
			e.dir, e.st = true, st
		}
		e.layers = append(e.layers, l)
		opaque, err := layer.OpaqueDir(dir, e.name)
		if err != nil {
			return err
		}
		e.covered = opaque || c.layers[l].marks.IsOpaque(path.Join(p, e.name))
	default:
		e.covered = true
		if len(e.layers) == 0 {
			e.layers, e.st = []int{l}, st
		}
	}
	return nil
}

// entry makes one entry of the directory p.
func (c *copier) entry(p string, dst, src int, e *child) error {
	c.inodes++
	if e.dir {
		return sys.Mkdirat(dst, e.name, 0o700)
	}
	if e.st.Nlink > 1 {
		key := inode{e.layers[0], e.st.Ino}
		if first, ok := c.links[key]; ok {
			c.inodes--
			return sys.Linkat(c.dst, first, dst, e.name)
		}
		c.links[key] = path.Join(p, e.name)
	}
	switch e.st.Mode & sys.FileTypeMask {
	case sys.FileReg:
		return c.file(dst, src, e)
	case sys.FileSymlink:
		target, err := sys.Readlinkat(src, e.name)
		if err == nil {
			err = sys.Symlinkat(target, dst, e.name)
		}
		if err != nil {
			return err
		}
	default:
		major, minor := sys.DeviceNumbers(e.st.Rdev)
		if err := sys.Mknodat(dst, e.name, e.st.Mode&sys.FileTypeMask|0o600, major, minor); err != nil {
			return err
		}
	}
	return c.attrs(dst, e.name, src, e.name, e.st)
}

func (c *copier) file(dst, src int, e *child) error {
	in, err := sys.OpenBeneath(src, e.name, os.O_RDONLY|sys.OpenNoFollow|sys.OpenNonblock, 0)
	if err != nil {
		return err
	}
	defer sys.Close(in)
	out, err := sys.OpenBeneath(dst, e.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	shared, err := sys.CopyFile(out, in, e.st.Size, !c.noReflink)
	c.noReflink = c.noReflink || !shared && e.st.Size > 0
	if err := errors.Join(err, sys.Close(out)); err != nil {
		return err
	}
	return c.attrs(dst, e.name, src, e.name, e.st)
}

func (c *copier) directoryAttrs(p string, l int) error {
	dst, err := sys.OpenBeneath(c.dst, p, sys.OpenPath|sys.OpenDirectory, 0)
	if err != nil {
		return err
	}
	defer sys.Close(dst)
	src, err := sys.OpenBeneath(int(c.layers[l].dir.Fd()), p, sys.OpenPath|sys.OpenDirectory, 0)
	if err != nil {
		return err
	}
	defer sys.Close(src)
	st, err := sys.Lstatat(src, ".")
	if err != nil {
		return err
	}
	return c.attrs(dst, ".", src, ".", st)
}

// attrs gives what is at dp the attributes of what is at sp. The owner comes first: chown clears set-id bits and
// capabilities.
func (c *copier) attrs(dst int, dp string, src int, sp string, st syscall.Stat_t) error {
	uid, gid, err := c.owners.of(st.Uid, st.Gid)
	if err != nil {
		return err
	}
	if err := sys.Chownat(dst, dp, int(uid), int(gid)); err != nil {
		return err
	}
	names, err := sys.Listxattrat(src, sp)
	if err != nil {
		return err
	}
	for _, n := range names {
		if layer.IsOverlayXattr(n) || n == selinuxXattr && c.label != "" {
			continue
		}
		v, err := sys.Getxattrat(src, sp, n)
		if err == nil {
			if v, err = c.owners.attribute(n, v); err == nil {
				err = sys.Setxattrat(dst, dp, n, v)
			}
		}
		if err != nil && !errors.Is(err, syscall.ENOTSUP) {
			return fmt.Errorf("extended attribute %q: %w", n, err)
		}
	}
	if c.label != "" {
		if err := sys.Setxattrat(dst, dp, selinuxXattr, []byte(c.label)); err != nil {
			return fmt.Errorf("extended attribute %q: %w", selinuxXattr, err)
		}
	}
	if st.Mode&sys.FileTypeMask != sys.FileSymlink {
		if err := sys.Chmodat(dst, dp, st.Mode&0o7777); err != nil {
			return err
		}
	}
	return sys.Utimesat(dst, dp, timespec(st.Atim), timespec(st.Mtim))
}

const selinuxXattr = "security.selinux"

// owners maps the owners of an image's files to those of a user namespace, for a file system that has no idmapped mounts.
// Without mappings nothing changes.
type owners struct{ uids, gids []sys.IDMap }

// IDs that no mapping has belong to nobody.
const overflowID = 65534

func mapID(ids []sys.IDMap, id uint32) uint32 {
	if len(ids) == 0 {
		return id
	}
	for _, m := range ids {
		if id >= m.Inside && id-m.Inside < m.Size {
			return m.Outside + (id - m.Inside)
		}
	}
	return overflowID
}

func (o owners) of(uid, gid uint32) (uint32, uint32, error) {
	if (len(o.uids) == 0) != (len(o.gids) == 0) {
		return 0, 0, fmt.Errorf("mappings of users and groups go together: %w", ErrInvalid)
	}
	return mapID(o.uids, uid), mapID(o.gids, gid), nil
}

// Of linux/capability.h and linux/posix_acl_xattr.h.
const (
	capabilityXattr = "security.capability"
	capRevision2    = 0x02000000
	capRevision3    = 0x03000000
	capRevisionMask = 0xff000000
	capSize2        = 20
	aclUser         = 0x02
	aclGroup        = 0x08
	aclHeader       = 4
	aclEntry        = 8
)

// attribute is an extended attribute with the IDs in it mapped: file capabilities are those of one namespace's root, and
// access control lists name users.
func (o owners) attribute(name string, v []byte) ([]byte, error) {
	if len(o.uids) == 0 {
		return v, nil
	}
	v = slices.Clone(v)
	switch name {
	case capabilityXattr:
		if len(v) < capSize2 {
			return nil, fmt.Errorf("has %d bytes: %w", len(v), ErrInvalid)
		}
		magic, root := binary.LittleEndian.Uint32(v), uint32(0)
		if magic&capRevisionMask == capRevision3 && len(v) >= capSize2+4 {
			root = binary.LittleEndian.Uint32(v[capSize2:])
		}
		binary.LittleEndian.PutUint32(v, magic&^capRevisionMask|capRevision3)
		return binary.LittleEndian.AppendUint32(v[:capSize2], mapID(o.uids, root)), nil
	case "system.posix_acl_access", "system.posix_acl_default":
		for at := aclHeader; at+aclEntry <= len(v); at += aclEntry {
			id := v[at+4 : at+8]
			switch binary.LittleEndian.Uint16(v[at:]) {
			case aclUser:
				binary.LittleEndian.PutUint32(id, mapID(o.uids, binary.LittleEndian.Uint32(id)))
			case aclGroup:
				binary.LittleEndian.PutUint32(id, mapID(o.gids, binary.LittleEndian.Uint32(id)))
			}
		}
	}
	return v, nil
}
