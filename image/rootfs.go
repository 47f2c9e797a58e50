package image

import (
	"context"
	"errors"
	"fmt"
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
	lower, plain, err := s.lowerDirs(r, o)
	defer closeAll(lower)
	if err != nil {
		return nil, err
	}
	if s.copies && (!plain || o.SELinuxLabel != "") {
		return s.nativeView(ctx, r, o)
	}
	if o.Readonly {
		return s.readonlyRootfs(lower, plain, o)
	}
	return s.writableRootfs(lower, dir, o)
}

// lowerDirs opens the image's layers, top first, idmapped where asked. plain: the first needs no overlay to be seen
// as it should be.
func (s *Store) lowerDirs(r *record, o RootfsOptions) (lower []*os.File, plain bool, err error) {
	var paths []string
	if r.Files {
		paths = append(paths, filepath.Join(s.imageDir(r.ID), "files"))
	}
	if r.Attrs {
		paths = append(paths, filepath.Join(s.imageDir(r.ID), "attrs"))
	}
	plain = true
	for _, id := range overlayOrder(s.trees(r.layerIDs()), s.layers.get) {
		info := s.layers.get(id)
		if info == nil {
			return lower, false, fmt.Errorf("layer %s: %w", id, ErrNotFound)
		}
		plain = plain && info.Whiteouts == 0
		paths = append(paths, filepath.Join(s.layerDir(id), "fs"))
	}
	if !o.Readonly && len(paths) < maxLowers {
		paths = append(paths, s.path("mountpoints"))
	}
	if len(paths) == 0 {
		paths = append(paths, s.path("empty"))
	}
	for _, p := range paths {
		f, err := openLower(p, o.UserNS)
		if err != nil {
			return lower, false, err
		}
		lower = append(lower, f)
	}
	return lower, plain && len(lower) == 1, nil
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

func (s *Store) readonlyRootfs(lower []*os.File, plain bool, o RootfsOptions) (*os.File, error) {
	if plain && o.SELinuxLabel == "" {
		// o.UserNS: lower[0] is idmapped already, and a mount is mapped once only.
		return sys.CloneTree(lower[0], true, nil)
	}
	if len(lower) == 1 {
		e, err := openLower(s.path("empty"), o.UserNS)
		if err != nil {
			return nil, err
		}
		defer e.Close()
		lower = append(lower, e)
	}
	return sys.MountOverlay(sys.Overlay{Lower: lower, Context: o.SELinuxLabel, Readonly: true, Detached: o.UserNS != nil})
}

func (s *Store) writableRootfs(lower []*os.File, dir string, o RootfsOptions) (*os.File, error) {
	upper, err := makeUpper(filepath.Join(dir, "upper"), lower[0])
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
		Lower: lower, Upper: upper, Work: w, Volatile: !o.Durable, Context: o.SELinuxLabel, Detached: o.UserNS != nil,
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
	return m.Close()
}

// trialUserNamespace is one to try idmapped mounts with.
func trialUserNamespace() (*os.File, error) {
	ids := []sys.IDMap{{Outside: 1 << 16, Size: 1 << 16}}
	return sys.NewUserNamespace(ids, ids)
}
