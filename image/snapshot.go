package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/opencontainers/go-digest"
)

// How root file systems are made.
const (
	SnapshotAuto    = "auto"
	SnapshotOverlay = "overlay"
	SnapshotNative  = "native"
)

// Snapshotter says how root file systems are made: SnapshotOverlay or SnapshotNative, and why.
type Snapshotter struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
	// Idmapped: owners of copies are mapped by the mount, and not when they are made.
	Idmapped bool `json:"idmappedCopies,omitempty"`
}

// Snapshotter is decided once, when the store is opened.
func (s *Store) Snapshotter() Snapshotter { return s.snapshotter }

// rootDir is the copy in a container's own directory.
const rootDir = "root"

// viewPath is the read-only copy beside an image's record. It is not known to have reached the disk, so it counts until the
// machine goes down.
func (s *Store) viewPath(id digest.Digest) string {
	return filepath.Join(s.imageDir(id), "view-"+s.boot)
}

// chooseSnapshotter tries out whether overlay can be used. A store that is not root's cannot mount anything anyhow.
func (s *Store) chooseSnapshotter() error {
	if err := os.MkdirAll(s.cfg.ContainersDir, 0o700); err != nil {
		return err
	}
	if s.cfg.Snapshotter != SnapshotNative {
		err := s.tryOverlay()
		switch {
		case err == nil:
			s.snapshotter = Snapshotter{Name: SnapshotOverlay, Reason: "overlay works below " + s.cfg.ContainersDir}
			return nil
		case s.cfg.Snapshotter == SnapshotOverlay:
			return fmt.Errorf("overlay cannot be used below %s: %w", s.cfg.ContainersDir, err)
		case os.Geteuid() != 0:
			s.snapshotter = Snapshotter{Name: SnapshotOverlay, Reason: "not tried: needs root"}
			return nil
		}
		s.snapshotter = Snapshotter{Name: SnapshotNative, Reason: "overlay cannot be used below " + s.cfg.ContainersDir + ": " + err.Error()}
		s.log.Warn("root file systems are copies: each container takes the time and, without reflinks, the disk of one",
			"snapshotter", SnapshotNative, "dir", s.cfg.ContainersDir, "err", err)
	} else {
		s.snapshotter = Snapshotter{Name: SnapshotNative, Reason: "configured"}
		s.log.Info("root file systems are copies", "snapshotter", SnapshotNative, "dir", s.cfg.ContainersDir)
	}
	s.copies = true
	s.snapshotter.Idmapped = s.tryIdmap() == nil
	return nil
}

// tryOverlay makes an overlay where containers will have theirs and does what they do: write, delete what is below, and put
// an empty directory in the place of a full one. File systems that cannot be an upper layer refuse the mount, or, such as
// some on FUSE, only that.
func (s *Store) tryOverlay() (err error) {
	dir := filepath.Join(s.cfg.ContainersDir, ".overlay-probe")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, d := range []string{"lower/full/below", "second", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lower/file"), []byte("x"), 0o600); err != nil {
		return err
	}
	// What layers are made of: a whiteout and an opaque directory, on the store's own file system.
	probe := s.path("ingest", "overlay-probe")
	if err := errors.Join(os.RemoveAll(probe), os.Mkdir(probe, 0o700)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(probe)) }()
	if err := makeWhiteouts(probe); err != nil {
		return fmt.Errorf("whiteouts below %s: %w", s.cfg.Root, err)
	}
	return useOverlay(dir)
}

func makeWhiteouts(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := sys.Mknodat(int(f.Fd()), "whiteout", sys.FileChar, 0, 0); err != nil {
		return fmt.Errorf("device 0:0: %w", err)
	}
	if err := sys.Setxattrat(int(f.Fd()), ".", "trusted.overlay.opaque", []byte("y")); err != nil {
		return fmt.Errorf("trusted.overlay.opaque: %w", err)
	}
	return nil
}

func useOverlay(dir string) (err error) {
	open := func(name string) (f *os.File) {
		if err == nil {
			f, err = os.OpenFile(filepath.Join(dir, name), sys.OpenPath|sys.OpenDirectory, 0)
		}
		return f
	}
	lower, upper, work := open("lower"), open("upper"), open("work")
	defer closeAll([]*os.File{lower, upper, work})
	if err != nil {
		return err
	}
	m, err := sys.MountOverlay(sys.Overlay{Lower: []*os.File{lower}, Upper: upper, Work: work, Volatile: true})
	if err != nil {
		return err
	}
	defer m.Close()
	at := "/proc/self/fd/" + strconv.Itoa(int(m.Fd()))
	full := at + "/full"
	steps := []struct {
		what string
		do   func() error
	}{
		{"write", func() error { return os.WriteFile(at+"/new", []byte("x"), 0o600) }},
		{"write to a file of the image", func() error { return os.WriteFile(at+"/file", []byte("y"), 0o600) }},
		{"delete a file of the image", func() error { return os.Remove(at + "/file") }},
		{"replace a directory", func() error { return errors.Join(os.RemoveAll(full), os.Mkdir(full, 0o700)) }},
	}
	for _, st := range steps {
		if err := st.do(); err != nil {
			return fmt.Errorf("%s: %w", st.what, err)
		}
	}
	names, err := os.ReadDir(full)
	if err != nil || len(names) != 0 {
		return fmt.Errorf("replace a directory: the new one has %d entries of the old one: %w", len(names), errors.Join(err, errors.ErrUnsupported))
	}
	if _, err := os.Lstat(at + "/file"); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete a file of the image: it is still there: %w", errors.Join(err, errors.ErrUnsupported))
	}
	return nil
}

// tryIdmap is nil if mounts of the containers' directories can be idmapped.
func (s *Store) tryIdmap() error {
	ns, err := trialUserNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	dir, err := os.OpenFile(s.cfg.ContainersDir, sys.OpenPath|sys.OpenDirectory, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	m, err := sys.CloneWritable(dir, ns)
	if err != nil {
		return err
	}
	return m.Close()
}

// copyLayers opens what a copy of the image is made of, top first; writable ones have what is mounted over in every
// container, as overlays do.
func (s *Store) copyLayers(r *record, writable bool) (_ []copyLayer, err error) {
	var all []copyLayer
	defer func() {
		if err != nil {
			closeLayers(all)
		}
	}()
	add := func(p string) error {
		f, err := os.OpenFile(p, sys.OpenPath|sys.OpenDirectory, 0)
		if err == nil {
			all = append(all, newCopyLayer(f, f, nil))
		}
		return err
	}
	if r.Files {
		if err := add(filepath.Join(s.imageDir(r.ID), "files")); err != nil {
			return all, err
		}
	}
	if r.Attrs {
		if err := add(filepath.Join(s.imageDir(r.ID), "attrs")); err != nil {
			return all, err
		}
	}
	for _, id := range overlayOrder(s.unpackedOf(r.layerIDs()), s.layers.get) {
		info := s.layers.get(id)
		if info == nil {
			return all, fmt.Errorf("layer %s: %w", id, ErrNotFound)
		}
		t, err := s.openTree(id, info)
		if err != nil {
			return all, err
		}
		all = append(all, newCopyLayer(t.File, t, info.Marks))
	}
	switch {
	case writable:
		err = add(s.path("mountpoints"))
	case len(all) == 0:
		err = add(s.path("empty"))
	}
	return all, err
}

func closeLayers(all []copyLayer) {
	for _, l := range all {
		l.closer.Close()
	}
}

// copyTo makes the tree at path, which is there as a whole or not at all: after a crash it is made anew.
func (s *Store) copyTo(ctx context.Context, r *record, path string, writable bool, o owners, label string) (inodes int64, err error) {
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return 0, err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	dst, err := os.OpenFile(tmp, sys.OpenPath|sys.OpenDirectory|sys.OpenNoFollow, 0)
	if err != nil {
		return 0, err
	}
	defer dst.Close()
	layers, err := s.copyLayers(r, writable)
	if err != nil {
		return 0, err
	}
	defer closeLayers(layers)
	if inodes, err = copyTree(ctx, dst, layers, o, label); err != nil {
		return inodes, err
	}
	return inodes, os.Rename(tmp, path)
}

// nativeRootfs is a container's root as a copy of its own. One from before is taken over, as an upper directory would be.
func (s *Store) nativeRootfs(ctx context.Context, r *record, dir string, o RootfsOptions) (*os.File, error) {
	root := filepath.Join(dir, rootDir)
	userns, own := o.UserNS, owners{}
	if userns != nil && !s.snapshotter.Idmapped {
		userns, own = nil, owners{o.UIDs, o.GIDs}
		if len(o.UIDs) == 0 {
			return nil, fmt.Errorf("user namespace: %s has no idmapped mounts, and the mappings are not known: %w", s.cfg.ContainersDir, errors.ErrUnsupported)
		}
	}
	if _, err := os.Lstat(root); errors.Is(err, fs.ErrNotExist) {
		if _, err := s.copyTo(ctx, r, root, true, own, o.SELinuxLabel); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(root, sys.OpenPath|sys.OpenDirectory|sys.OpenNoFollow, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return sys.CloneWritable(f, userns)
}

// nativeView is the image read-only: one copy for all, beside the image's record, so that it goes with it.
func (s *Store) nativeView(ctx context.Context, r *record, o RootfsOptions) (*os.File, error) {
	if o.SELinuxLabel != "" {
		return nil, fmt.Errorf("an image volume with SELinux label %q, where root file systems are copies: %w", o.SELinuxLabel, errors.ErrUnsupported)
	}
	path := s.viewPath(r.ID)
	if err := s.makeView(ctx, r, path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, sys.OpenPath|sys.OpenDirectory|sys.OpenNoFollow, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return sys.CloneTree(f, true, o.UserNS)
}

func (s *Store) makeView(ctx context.Context, r *record, path string) error {
	select {
	case s.viewing <- struct{}{}:
		defer func() { <-s.viewing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := s.copyTo(ctx, r, path, false, owners{}, ""); err != nil {
		return err
	}
	return s.countView(ctx, r.ID)
}

// countView adds an image's view, if it has one, to what the store takes.
func (s *Store) countView(ctx context.Context, id digest.Digest) error {
	bytes, inodes, err := DirUsage(ctx, s.viewPath(id))
	if err != nil || inodes == 0 {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.viewUse[id] = FSInfo{Bytes: bytes, Inodes: inodes}
	return nil
}

// recoverViews takes up those that containers may have mounted, and removes those from before the machine went down.
func (s *Store) recoverViews(ctx context.Context, id digest.Digest) error {
	found, _ := filepath.Glob(filepath.Join(s.imageDir(id), "view-*")) // fails for a bad pattern only
	for _, path := range found {
		if path == s.viewPath(id) {
			if err := s.countView(ctx, id); err != nil {
				return err
			}
		} else if err := s.discard(path); err != nil {
			return err
		}
	}
	return nil
}

// setViewsAside takes the copies of images out of use that have a layer which was damaged, as long as a container may have
// them mounted.
func (s *Store) setViewsAside(images []*record, layer digest.Digest) error {
	s.viewing <- struct{}{}
	defer func() { <-s.viewing }()
	var errs []error
	for _, r := range images {
		aside := s.path("damaged", fmt.Sprintf("%s-%s-%d", layer.Algorithm(), layer.Encoded(), time.Now().UnixNano()))
		err := os.Rename(s.viewPath(r.ID), aside)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, err)
		s.mu.Lock()
		delete(s.viewUse, r.ID)
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

// settleMarks puts the whiteouts of a layer that was unpacked for copies into its tree, for overlays. It may be interrupted
// anywhere.
func (s *Store) settleMarks(dir string, info *layerInfo) error {
	root, err := os.Open(filepath.Join(dir, "fs"))
	if err != nil {
		return err
	}
	defer root.Close()
	if err := info.Marks.Apply(root); err != nil {
		return err
	}
	if err := sys.Syncfs(root); err != nil {
		return err
	}
	info.Marks = nil
	b, err := layerJSON(info)
	if err != nil {
		return err
	}
	return writeDurable(filepath.Join(dir, "layer.json"), b)
}
