package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// RootfsOptions direct Rootfs.
type RootfsOptions struct {
	// Readonly mounts the image alone, without a writable layer. It is not what a container with a read-only root
	// file system needs while mount points are made in it: that one gets a writable layer and is remounted.
	Readonly bool
	// Durable keeps fsync and unmount writing the writable layer out. Without it the mount is volatile (Linux 5.10):
	// the layer is lost in a crash of the machine, and leaving it costs nothing.
	Durable bool
	// SELinuxLabel is the context of every file in the mount; empty for none.
	SELinuxLabel string
	// UserNS maps the owners of the image's files: an open user namespace. The writable layer belongs to its root.
	// The file system of the store must support idmapped mounts, and overlayfs on them needs Linux 5.19.
	UserNS *os.File
	// UIDs and GIDs are the mappings of UserNS, for copies on a file system that has no idmapped mounts.
	UIDs, GIDs []sys.IDMap
}

// Rootfs mounts the image for one container and returns the mount, detached: it is in no mount namespace, and is gone
// when the returned file is closed and whatever it was moved to is gone. dir is the container's own directory; its
// writable layer is made there as upper/ and work/ (not with Readonly; dir may be empty then). When there is an
// upper/ from before, its content is taken over. Where overlay cannot be used (Snapshotter), root/ there is a copy of the
// image.
//
// The caller holds the image (Hold) as long as the mount lives. id is an image ID or a reference.
func (s *Store) Rootfs(ctx context.Context, id, dir string, o RootfsOptions) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("rootfs of image %s: %w", id, err)
		}
	}()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	d, err := s.findHeld(id)
	if err != nil {
		return nil, err
	}
	r := s.record(d)
	if r == nil {
		return nil, ErrNotFound
	}
	if r.Kind == kindArtifact && !o.Readonly {
		return nil, r.noRootfs()
	}
	if s.copies && !o.Readonly {
		return s.nativeRootfs(ctx, r, dir, o)
	}
	lower, err := s.lowerDirs(r, o)
	defer lower.close()
	if err != nil {
		return nil, err
	}
	if s.copies && (!lower.plain || o.SELinuxLabel != "") {
		return s.nativeView(ctx, r, o)
	}
	if o.Readonly {
		return s.readonlyRootfs(lower, o)
	}
	return s.writableRootfs(lower, dir, o)
}

// lowers are the directories of an overlay, top first.
type lowers struct {
	dirs    []*os.File
	closers []io.Closer // of dirs, each with what it is in
	// plain: the first is all there is, and needs no overlay to be seen as it should be.
	plain bool
	// images: not all are on the file system of the store.
	images bool
}

func (l *lowers) close() {
	for _, c := range l.closers {
		c.Close()
	}
}

func (l *lowers) take(dir *os.File, closer io.Closer) {
	l.dirs, l.closers = append(l.dirs, dir), append(l.closers, closer)
}

// add opens a directory, idmapped where asked.
func (l *lowers) add(path string, userns *os.File) error {
	f, err := openLower(path, userns)
	if err == nil {
		l.take(f, f)
	}
	return err
}

func (l *lowers) addTree(t *tree, userns *os.File) error {
	if userns == nil {
		l.take(t.File, t)
		return nil
	}
	defer t.Close()
	f, err := sys.CloneTree(t.File, true, userns)
	if err == nil {
		l.take(f, f)
	}
	return err
}

// lowerDirs opens the image's layers.
func (s *Store) lowerDirs(r *record, o RootfsOptions) (*lowers, error) {
	l := &lowers{plain: true}
	if r.Files {
		if err := l.add(filepath.Join(s.imageDir(r.ID), "files"), o.UserNS); err != nil {
			return l, err
		}
	}
	if r.Attrs {
		if err := l.add(filepath.Join(s.imageDir(r.ID), "attrs"), o.UserNS); err != nil {
			return l, err
		}
	}
	for _, id := range overlayOrder(s.unpackedOf(r.layerIDs()), s.layers.get) {
		info := s.layers.get(id)
		if info == nil {
			return l, fmt.Errorf("layer %s: %w", id, ErrNotFound)
		}
		l.plain = l.plain && info.Whiteouts == 0
		l.images = l.images || info.Format == LayerErofs
		t, err := s.openTree(id, info)
		if err == nil {
			err = l.addTree(t, o.UserNS)
		}
		if err != nil {
			return l, err
		}
	}
	var err error
	switch {
	case !o.Readonly && len(l.dirs) < maxLowers:
		err = l.add(s.path("mountpoints"), o.UserNS)
	case len(l.dirs) == 0:
		err = l.add(s.path("empty"), o.UserNS)
	}
	l.plain = l.plain && len(l.dirs) == 1
	return l, err
}

func openLower(path string, userns *os.File) (*os.File, error) {
	f, err := os.OpenFile(path, sys.OpenPath|sys.OpenDirectory, 0)
	if err != nil || userns == nil {
		return f, err
	}
	defer f.Close()
	return sys.CloneTree(f, true, userns)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func (s *Store) readonlyRootfs(lower *lowers, o RootfsOptions) (*os.File, error) {
	if lower.plain && o.SELinuxLabel == "" {
		// o.UserNS: it is idmapped already, and a mount is mapped once only.
		return sys.CloneTree(lower.dirs[0], true, nil)
	}
	if len(lower.dirs) == 1 {
		if err := lower.add(s.path("empty"), o.UserNS); err != nil {
			return nil, err
		}
	}
	return sys.MountOverlay(sys.Overlay{
		Lower: lower.dirs, Context: o.SELinuxLabel, Readonly: true, XIno: lower.images, Detached: o.UserNS != nil,
	})
}

func (s *Store) writableRootfs(lower *lowers, dir string, o RootfsOptions) (*os.File, error) {
	upper, err := makeUpper(filepath.Join(dir, "upper"), lower.dirs[0])
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	work := filepath.Join(dir, "work")
	// What a mount that ended without being unmounted left there makes the kernel refuse a volatile one.
	if err := os.RemoveAll(work); err != nil {
		return nil, err
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return nil, err
	}
	w, err := os.OpenFile(work, sys.OpenPath|sys.OpenDirectory, 0)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	return sys.MountOverlay(sys.Overlay{
		Lower: lower.dirs, Upper: upper, Work: w, Volatile: !o.Durable, Context: o.SELinuxLabel, XIno: lower.images, Detached: o.UserNS != nil,
	})
}

// makeUpper makes the upper directory: its attributes are those of the root directory that the container sees, so
// they are copied from the topmost layer (through its idmapped mount, if it is one).
func makeUpper(path string, top *os.File) (*os.File, error) {
	err := os.Mkdir(path, 0o700)
	exists := errors.Is(err, os.ErrExist)
	if err != nil && !exists {
		return nil, err
	}
	f, err := os.OpenFile(path, sys.OpenPath|sys.OpenDirectory|sys.OpenNoFollow, 0)
	if err != nil || exists {
		return f, err
	}
	st, err := sys.Lstatat(int(top.Fd()), ".")
	if err == nil {
		err = copyAttrs(f, ".", dirAttrs{path: ".", from: top, st: st})
	}
	if err != nil {
		f.Close()
		// A retry must not take it for one that is in order.
		return nil, errors.Join(fmt.Errorf("attributes of %s: %w", path, err), os.Remove(path))
	}
	return f, nil
}

// UserNamespaces is nil if images can be mounted for containers in user namespaces: Rootfs with UserNS. It is tried out.
func (s *Store) UserNamespaces() error {
	if s.copies {
		// Where mounts of copies cannot be idmapped, their files are given to the namespace's users.
		ns, err := trialUserNamespace()
		if err != nil {
			return err
		}
		return ns.Close()
	}
	ns, err := trialUserNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	var lower []*os.File
	defer func() { closeAll(lower) }()
	for _, dir := range []string{"empty", "layers"} {
		f, err := openLower(s.path(dir), ns)
		if err != nil {
			return err
		}
		lower = append(lower, f)
	}
	m, err := sys.MountOverlay(sys.Overlay{Lower: lower, Readonly: true, Detached: true})
	if err != nil {
		return err
	}
	if err := m.Close(); err != nil || s.format.Name != LayerErofs {
		return err
	}
	return s.tryMappedErofs(ns, lower[0])
}

// trialUserNamespace is one to try idmapped mounts with.
func trialUserNamespace() (*os.File, error) {
	ids := []sys.IDMap{{Outside: 1 << 16, Size: 1 << 16}}
	return sys.NewUserNamespace(ids, ids)
}
