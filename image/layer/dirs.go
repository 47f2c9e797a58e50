package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
	"syscall"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// dir returns a handle of the directory name, which it makes, with its parents, where no entry has yet. The
// handle is the cache's, and good until the next call. Links are followed within the layer: archives made by
// other tools than diffs of file systems have entries below a linked directory.
func (x *extractor) dir(name string) (int, error) {
	if name == "." {
		return x.root, nil
	}
	if fd, ok := x.cache[name]; ok {
		return fd, nil
	}
	fd, err := x.t.open(name)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
		fd, err = x.makeDir(name)
	}
	if err != nil {
		return -1, fmt.Errorf("directory %.200q: %w", name, err)
	}
	x.remember(name, fd)
	return fd, nil
}

func (x *extractor) makeDir(name string) (int, error) {
	dir, base := split(name)
	parent, err := x.dir(dir)
	if err != nil {
		return -1, err
	}
	st, err := x.t.stat(parent, base)
	switch {
	case errors.Is(err, syscall.ENOENT):
	case err != nil:
		return -1, err
	case st.isWhiteout():
		if err := x.t.unlink(parent, base); err != nil {
			return -1, err
		}
	default:
		return -1, fmt.Errorf("is not a directory, or a link to nothing in this layer: %w", errors.Join(ErrInvalid, syscall.ENOTDIR))
	}
	if err := x.note(name); err != nil {
		return -1, err
	}
	fd, err := x.t.mkdirImplied(parent, base)
	if err != nil {
		return -1, err
	}
	if err := x.opaqueIfHidden(parent, name, base); err != nil {
		x.t.close(fd)
		return -1, err
	}
	x.implied[name] = struct{}{}
	x.res.Inodes++
	x.res.DiskSize += blockSize
	return fd, nil
}

func isWhiteout(st syscall.Stat_t) bool {
	return st.Mode&sys.FileTypeMask == sys.FileChar && st.Rdev == 0
}

func (x *extractor) remember(name string, fd int) {
	if len(x.order) == maxCachedDirs {
		x.t.close(x.cache[x.order[0]])
		delete(x.cache, x.order[0])
		x.order = x.order[1:]
	}
	x.cache[name] = fd
	x.order = append(x.order, name)
}

// retireCache empties the cache but leaves its directories open until the next entry: the current one uses them.
func (x *extractor) retireCache() {
	for _, fd := range x.cache {
		x.retired = append(x.retired, fd)
	}
	clear(x.cache)
	x.order = nil
}

func (x *extractor) closeRetired() {
	for _, fd := range x.retired {
		x.t.close(fd)
	}
	x.retired = x.retired[:0]
}

// whiteout notes a deletion (image-spec, layer.md, "Whiteouts"). It concerns lower layers only: what this layer has
// under the name stays.
func (x *extractor) whiteout(hdr *tar.Header, parent int, dir, base string) error {
	if base == whiteoutOpaque {
		if dir == "." {
			x.res.Opaque = true
			return nil
		}
		if x.opts.KeepMarks {
			return x.mark(parent, "", true)
		}
		return x.t.setOpaque(parent, ".")
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil // AUFS's own book-keeping
	}
	base = strings.TrimPrefix(base, whiteoutPrefix)
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("whiteout of nothing: %w", ErrInvalid)
	}
	if x.opts.KeepMarks {
		return x.mark(parent, base, false)
	}
	name := path.Join(dir, base)
	if err := x.note(name); err != nil {
		return err
	}
	x.hidden[name] = struct{}{}
	err := x.t.mknod(parent, base, sys.FileChar, 0, 0)
	if errors.Is(err, syscall.EEXIST) {
		st, err := x.t.stat(parent, base)
		if err == nil && st.isDir() {
			err = x.opaqueIfHidden(parent, name, base)
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	x.res.Whiteouts++
	x.res.Inodes++
	return x.t.setAttrs(parent, base, attrs{uid: hdr.Uid, gid: hdr.Gid, times: entryTimes(hdr)})
}

// remove deletes an entry and, if it is a directory, all that is in it.
func (x *extractor) remove(parent int, name, base string) error {
	// A cached directory may be below what goes, or have been found through a link that goes.
	x.retireCache()
	if err := x.unmarkBelow(parent, base); err != nil {
		return err
	}
	err := x.removeFile(parent, name, base)
	if !errors.Is(err, syscall.EISDIR) && !errors.Is(err, syscall.EPERM) {
		return err
	}
	below := func(p string) bool { return p == name || strings.HasPrefix(p, name+"/") }
	maps.DeleteFunc(x.implied, func(p string, _ struct{}) bool { return below(p) })
	maps.DeleteFunc(x.dirTimes, func(p string, _ dirTimes) bool { return below(p) })
	return x.removeTree(parent, name, base)
}

// removeFile deletes what is not a directory (EISDIR, EPERM), or puts it aside if the tar stream needs its content.
func (x *extractor) removeFile(parent int, name, base string) error {
	if x.frame != nil && x.t.keepsReplaced() {
		st, err := x.t.stat(parent, base)
		if err != nil {
			return err
		}
		if st.mode&sys.FileTypeMask == sys.FileReg && st.size > 0 {
			x.aside++
			x.frame.moved(name, x.aside)
			return x.t.putAside(parent, base, x.aside)
		}
	}
	return x.t.unlink(parent, base)
}

func (x *extractor) removeTree(parent int, name, base string) error {
	return x.t.removeDir(parent, base, func(dir int, n string) error {
		err := x.removeFile(dir, name+"/"+n, n)
		if errors.Is(err, syscall.EISDIR) || errors.Is(err, syscall.EPERM) {
			err = x.removeTree(dir, name+"/"+n, n)
		}
		return err
	})
}
