package checkpoint

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Names by which a layer says what it takes away (image-spec, "Whiteouts").
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// writeDiff writes an overlay's upper folder as a layer of an image, and returns the paths that it takes away.
func writeDiff(to, upper string) (deleted []string, err error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	root, err := os.OpenRoot(upper) // links of the container lead nowhere else
	if err != nil {
		return nil, err
	}
	defer root.Close()
	d := differ{w: tar.NewWriter(f), root: root, links: map[inode]string{}, deleted: []string{}}
	if err := fs.WalkDir(root.FS(), ".", d.add); err != nil {
		return nil, err
	}
	return d.deleted, d.w.Close()
}

type inode struct{ dev, ino uint64 }

type differ struct {
	w       *tar.Writer
	root    *os.Root
	links   map[inode]string
	deleted []string
}

func (d *differ) add(name string, e fs.DirEntry, err error) error {
	if err != nil || name == "." {
		return err
	}
	fi, err := d.root.Lstat(name)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if fi.Mode()&os.ModeCharDevice != 0 && st.Rdev == 0 { // overlayfs: nothing is here any more
		d.deleted = append(d.deleted, "/"+name)
		dir, base := filepath.Split(name)
		return d.w.WriteHeader(&tar.Header{Name: dir + whiteout + base, Mode: 0o600, ModTime: fi.ModTime()})
	}
	if fi.Mode()&os.ModeSocket != 0 {
		return nil // tar has none, and its listener makes it anew
	}
	h, err := d.header(name, fi, st)
	if err != nil {
		return err
	}
	if err := d.w.WriteHeader(h); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return d.content(name, h.Size)
	case tar.TypeDir:
		return d.opaque(name, fi)
	}
	return nil
}

func (d *differ) header(name string, fi fs.FileInfo, st *syscall.Stat_t) (*tar.Header, error) {
	link := ""
	if fi.Mode()&os.ModeSymlink != 0 {
		var err error
		if link, err = d.root.Readlink(name); err != nil {
			return nil, err
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return nil, err
	}
	h.Name, h.Format = name, tar.FormatPAX
	h.Uname, h.Gname, h.AccessTime, h.ChangeTime = "", "", h.ModTime, h.ModTime
	if fi.IsDir() {
		h.Name += "/"
	} else if st.Nlink > 1 {
		at := inode{uint64(st.Dev), st.Ino}
		if first, ok := d.links[at]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return h, nil
		}
		d.links[at] = name
	}
	return h, d.attributes(name, fi, h)
}

// attributes adds the extended attributes that an image may have; those of overlayfs are not among them.
func (d *differ) attributes(name string, fi fs.FileInfo, h *tar.Header) error {
	if !fi.IsDir() && !fi.Mode().IsRegular() {
		return nil
	}
	dir, err := d.root.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	at, base := int(dir.Fd()), filepath.Base(name)
	names, err := sys.Listxattrat(at, base)
	if err != nil {
		return err
	}
	for _, n := range names {
		if n != "security.capability" && !strings.HasPrefix(n, "user.") || strings.HasPrefix(n, "user.overlay.") {
			continue
		}
		value, err := sys.Getxattrat(at, base, n)
		if err != nil {
			return err
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+n] = string(value)
	}
	return nil
}

func (d *differ) content(name string, size int64) error {
	// What was a file may be a FIFO by now.
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("%s: no regular file any more", name))
	}
	_, err = io.CopyN(d.w, f, size)
	return err
}

// opaque says of a folder that what the layers below have in it is gone.
func (d *differ) opaque(name string, fi fs.FileInfo) error {
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	value, err := sys.Getxattrat(int(f.Fd()), ".", "trusted.overlay.opaque")
	if err != nil || string(value) != "y" {
		return err
	}
	return d.w.WriteHeader(&tar.Header{Name: name + "/" + opaque, Mode: 0o600, ModTime: fi.ModTime()})
}
