package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/cri-shim/cri-shim/image/layer"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// How layers are kept (Config.LayerFormat).
const (
	LayerAuto      = "auto"
	LayerDirectory = "directory"
	LayerErofs     = "erofs"
)

// How the contents of files in an EROFS image are compressed (Config.LayerCompression).
const (
	CompressAuto = "auto" // LZ4, less thorough while the processor is what a pull waits for
	CompressLZ4  = "lz4"
	CompressNone = "none"
)

// LayerFormat says how layers are kept that come from now on: LayerDirectory or LayerErofs, and why.
type LayerFormat struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
	// Compression is the store's configuration, of LayerErofs alone.
	Compression string `json:"compression,omitempty"`
}

// LayerFormat is decided once, when the store is opened. Layers of the other format that are there already can be used,
// too, but for EROFS images that the kernel cannot mount.
func (s *Store) LayerFormat() LayerFormat { return s.format }

// noErofs is why layers that are EROFS images cannot be used on this machine, nil if they can. It is tried out once.
func (s *Store) noErofs() error {
	s.erofs.Do(func() {
		if os.Geteuid() != 0 {
			s.erofsErr = fmt.Errorf("not tried: needs root: %w", errors.ErrUnsupported)
			return
		}
		s.erofsErr = s.tryErofs()
		switch {
		case errors.Is(s.erofsErr, syscall.ENOSPC), errors.Is(s.erofsErr, syscall.EDQUOT):
			// It says nothing of the kernel, and must not cost the layers that are there.
			s.log.Warn("EROFS images cannot be tried out, and are taken to work", "err", s.erofsErr)
			s.erofsErr = nil
		case s.erofsErr != nil:
			s.erofsErr = fmt.Errorf("EROFS images cannot be used below %s (that needs Linux 6.15): %w", s.cfg.Root, s.erofsErr)
		}
	})
	return s.erofsErr
}

// chooseLayerFormat tries out whether layers can be EROFS images. The snapshotter is known by now.
func (s *Store) chooseLayerFormat() error {
	switch {
	case s.cfg.LayerFormat == LayerDirectory:
		s.format = LayerFormat{Name: LayerDirectory, Reason: "configured"}
		return nil
	case s.copies && s.cfg.LayerFormat == LayerErofs:
		return fmt.Errorf("layer format %s: root file systems are copies, which are made of directories: %s", LayerErofs, s.snapshotter.Reason)
	case s.copies:
		s.format = LayerFormat{Name: LayerDirectory, Reason: "root file systems are copies"}
		return nil
	}
	err := s.noErofs()
	switch {
	case err == nil:
		s.format = LayerFormat{Name: LayerErofs, Reason: "the kernel mounts EROFS images below " + s.cfg.Root, Compression: s.cfg.LayerCompression}
		if s.cfg.LayerFormat == LayerErofs {
			s.format.Reason = "configured"
		}
		return nil
	case s.cfg.LayerFormat == LayerErofs:
		return fmt.Errorf("layer format %s: %w", LayerErofs, err)
	}
	s.format = LayerFormat{Name: LayerDirectory, Reason: err.Error()}
	s.log.Info("layers are kept as directories", "reason", err)
	return nil
}

// The probe is a layer that has what matters: a file, a whiteout, an opaque directory.
const (
	probeFile  = "dir/file"
	probeGone  = "gone"
	probeSize  = 16 << 10 // bytes of the file; more than a block, so that it is compressed
	probeLayer = "layer-probe"
)

func probeContent() []byte { return bytes.Repeat([]byte("cri-shim"), probeSize/8) }

func probeArchive() (io.Reader, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	content := probeContent()
	for _, h := range []tar.Header{
		{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "dir/.wh..wh..opq", Typeflag: tar.TypeReg},
		{Name: probeFile, Typeflag: tar.TypeReg, Mode: 0o644, Size: probeSize}, {Name: ".wh." + probeGone, Typeflag: tar.TypeReg},
	} {
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if _, err := w.Write(content[:h.Size]); err != nil {
			return nil, err
		}
	}
	return &b, w.Close()
}

// tryErofs makes an image as layers are made and uses it as containers do, alone and in overlays.
func (s *Store) tryErofs() (err error) {
	dir := s.path("ingest", probeLayer)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.discard(dir)) }() // deleting it takes as long as the rest: later
	for _, d := range []string{"below/dir", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	for _, name := range []string{probeGone, "dir/hidden"} {
		if err := os.WriteFile(filepath.Join(dir, "below", name), nil, 0o600); err != nil {
			return err
		}
	}
	m, tree, err := s.mountProbe(filepath.Join(dir, imageFile))
	if err != nil {
		return err
	}
	defer closeAll([]*os.File{tree, m})
	if err := readProbe(tree); err != nil || s.copies {
		return err
	}
	return overlayProbe(tree, dir)
}

// mountProbe makes the image and mounts it. It returns the mount and the layer's tree in it.
func (s *Store) mountProbe(path string) (m, tree *os.File, err error) {
	archive, err := probeArchive()
	if err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if _, err := s.unpackImage(context.Background(), archive, f, layer.ImageOptions{Plain: s.cfg.LayerCompression == CompressNone}); err != nil {
		return nil, nil, err
	}
	if m, err = sys.MountErofs(f); err != nil {
		return nil, nil, err
	}
	if tree, err = openDirAt(m, "fs"); err != nil {
		m.Close()
		return nil, nil, err
	}
	return m, tree, nil
}

func readProbe(tree *os.File) error {
	b, err := os.ReadFile(filepath.Join(procPath(tree), probeFile))
	if err != nil {
		return err
	}
	if !bytes.Equal(b, probeContent()) {
		return fmt.Errorf("a file has another content: %w", errors.ErrUnsupported)
	}
	return nil
}

// overlayProbe has the tree as the upper of two layers.
func overlayProbe(tree *os.File, dir string) error {
	var open []*os.File
	defer func() { closeAll(open) }()
	for _, name := range []string{"below", "upper", "work"} {
		f, err := os.OpenFile(filepath.Join(dir, name), sys.OpenPath|sys.OpenDirectory, 0)
		if err != nil {
			return err
		}
		open = append(open, f)
	}
	below, upper, work := open[0], open[1], open[2]
	lower := []*os.File{tree, below}
	if err := useProbe(sys.Overlay{Lower: lower, Readonly: true, XIno: true}); err != nil {
		return fmt.Errorf("read-only: %w", err)
	}
	if err := useProbe(sys.Overlay{Lower: lower, Upper: upper, Work: work, Volatile: true, XIno: true}); err != nil {
		return err
	}
	// Image volumes of one layer are such mounts.
	c, err := sys.CloneTree(tree, true, nil)
	if err != nil {
		return err
	}
	return c.Close()
}

func useProbe(o sys.Overlay) error {
	m, err := sys.MountOverlay(o)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := readProbe(m); err != nil {
		return err
	}
	at := procPath(m)
	for _, name := range []string{probeGone, "dir/hidden"} {
		if _, err := os.Lstat(filepath.Join(at, name)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("what a layer deletes is still there: %w", errors.Join(err, errors.ErrUnsupported))
		}
	}
	if o.Upper == nil {
		return nil
	}
	if err := os.WriteFile(filepath.Join(at, probeFile), []byte("y"), 0o600); err != nil {
		return fmt.Errorf("write to a file of the image: %w", err)
	}
	return nil
}

// tryMappedErofs is nil if an image can be mounted for containers in the user namespace.
func (s *Store) tryMappedErofs(ns, below *os.File) (err error) {
	dir, err := os.MkdirTemp(s.path("ingest"), "idmap-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	m, tree, err := s.mountProbe(filepath.Join(dir, imageFile))
	if err != nil {
		return err
	}
	defer closeAll([]*os.File{tree, m})
	mapped, err := sys.CloneTree(tree, true, ns)
	if err != nil {
		return err
	}
	defer mapped.Close()
	o, err := sys.MountOverlay(sys.Overlay{Lower: []*os.File{mapped, below}, Readonly: true, XIno: true, Detached: true})
	if err != nil {
		return err
	}
	return o.Close()
}

// procPath is a path to what is open.
func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// openDirAt opens a directory in an open one, for its name only.
func openDirAt(dir *os.File, name string) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	fd, err := sys.OpenBeneath(int(dir.Fd()), name, sys.OpenPath|sys.OpenDirectory, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
