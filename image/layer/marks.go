package layer

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Marks are what a layer takes away, where it is kept beside the tree and not in it: overlayfs's own whiteouts cannot be
// made on every file system, on another overlay for one. Paths are clean, relative and sorted.
type Marks struct {
	// Whiteouts hide what lower layers have at the path; this layer has nothing there.
	Whiteouts []string `json:"whiteouts,omitempty"`
	// Opaque are directories of this layer that do not merge with those of lower layers.
	Opaque []string `json:"opaque,omitempty"`
}

// IsWhiteout and IsOpaque look a path up; m may be nil.
func (m *Marks) IsWhiteout(p string) bool {
	if m == nil {
		return false
	}
	_, ok := slices.BinarySearch(m.Whiteouts, p)
	return ok
}

// IsOpaque is for directories of the layer.
func (m *Marks) IsOpaque(p string) bool {
	if m == nil {
		return false
	}
	_, ok := slices.BinarySearch(m.Opaque, p)
	return ok
}

// Apply puts the marks into the tree as overlayfs wants them. It may be repeated.
func (m *Marks) Apply(root *os.File) error {
	each := func(all []string, f func(parent int, base string) error) error {
		for _, p := range all {
			dir, base := path.Split(p)
			fd, err := sys.OpenBeneath(int(root.Fd()), path.Clean("./"+dir), sys.OpenPath|sys.OpenDirectory, 0)
			if err == nil {
				err = f(fd, base)
				sys.Close(fd)
			}
			if err != nil {
				return fmt.Errorf("whiteout %.200q: %w", p, err)
			}
		}
		return nil
	}
	return errors.Join(each(m.Whiteouts, func(parent int, base string) error {
		st, err := sys.Lstatat(parent, ".")
		if err != nil {
			return err
		}
		if err := sys.Mknodat(parent, base, sys.FileChar, 0, 0); err != nil && !errors.Is(err, syscall.EEXIST) {
			return err
		}
		// The times are the image's.
		return sys.Utimesat(parent, "", time.Unix(st.Atim.Unix()), time.Unix(st.Mtim.Unix()))
	}), each(m.Opaque, func(parent int, base string) error {
		return sys.Setxattrat(parent, base, opaqueXattr, []byte("y"))
	}))
}

// IsWhiteout tells what overlayfs takes for a whiteout.
func IsWhiteout(st syscall.Stat_t) bool { return isWhiteout(st) }

// OpaqueDir tells whether overlayfs takes the directory name below dir for opaque.
func OpaqueDir(dir int, name string) (bool, error) {
	v, err := sys.Getxattrat(dir, name, opaqueXattr)
	return string(v) == "y", err
}

// IsOverlayXattr tells an attribute that overlayfs keeps for itself.
func IsOverlayXattr(name string) bool { return strings.HasPrefix(name, overlayXattrs) }

// mark notes a whiteout or an opaque directory at base in parent, under the path that no link is part of: entries may
// come through links of the layer.
func (x *extractor) mark(parent int, base string, opaque bool) error {
	p, err := x.realPath(parent, base)
	if err != nil {
		return err
	}
	if was, ok := x.marks[p]; ok && !was {
		opaque = false // deleted says more
	}
	x.marks[p] = opaque
	return nil
}

func (x *extractor) realPath(parent int, base string) (string, error) {
	root, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(x.root))
	if err != nil {
		return "", err
	}
	dir, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(parent))
	if err != nil {
		return "", err
	}
	rest, ok := strings.CutPrefix(dir, root)
	if !ok {
		return "", fmt.Errorf("%q is not below %q", dir, root)
	}
	return path.Join(strings.TrimPrefix(rest, "/"), base), nil
}

// unmarkBelow forgets what was noted below base in parent, which is removed. That base itself was deleted stays true.
func (x *extractor) unmarkBelow(parent int, base string) error {
	if len(x.marks) == 0 {
		return nil
	}
	p, err := x.realPath(parent, base)
	if err != nil {
		return err
	}
	for m := range x.marks {
		if strings.HasPrefix(m, p+"/") || m == p && x.marks[m] {
			delete(x.marks, m)
		}
	}
	return nil
}

// settleMarks makes the result's marks of what was noted: whether a deleted path is a whiteout is known at the end, when
// the layer has nothing there.
func (x *extractor) settleMarks() error {
	if !x.opts.KeepMarks {
		return nil
	}
	m := &Marks{}
	for p, opaque := range x.marks {
		dir, base := path.Split(p)
		fd, err := sys.OpenBeneath(x.root, path.Clean("./"+dir), sys.OpenPath|sys.OpenDirectory, 0)
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
			continue // replaced by what is no directory
		}
		if err != nil {
			return err
		}
		st, err := sys.Lstatat(fd, base)
		sys.Close(fd)
		switch {
		case errors.Is(err, syscall.ENOENT):
			if !opaque {
				m.Whiteouts = append(m.Whiteouts, p)
			}
		case err != nil:
			return err
		case st.Mode&sys.FileTypeMask == sys.FileDir:
			m.Opaque = append(m.Opaque, p)
		}
	}
	slices.Sort(m.Whiteouts)
	slices.Sort(m.Opaque)
	x.res.Whiteouts = int64(len(m.Whiteouts))
	if len(m.Whiteouts)+len(m.Opaque) > 0 {
		x.res.Marks = m
	}
	return nil
}
