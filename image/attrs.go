package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cri-shim/cri-shim/image/layer"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// Layers are unpacked without their parents, so a directory that a layer has no entry for (some builders write
// "tmp/x" and no "tmp/") got default attributes there. In an overlay those would hide the right ones of a lower layer:
// /tmp would be 0755. Where that happens the image gets one more layer on top, attrs/, which consists of the
// directories concerned with the attributes they should have; overlayfs merges directories and takes their attributes
// from the topmost.

// dirAttrs are what a directory should have.
type dirAttrs struct {
	path string // "." or clean and relative
	from *os.File
	st   syscall.Stat_t
}

// writeAttrs writes dir/attrs if the image needs it, and tells whether it did.
func (s *Store) writeAttrs(ctx context.Context, dir string, ids []digest.Digest) (bool, error) {
	stack, err := s.newStack(ids)
	if err != nil {
		return false, err
	}
	implied := stack.implied()
	if len(implied) == 0 {
		return false, nil // as of most images: nothing has to be opened
	}
	defer stack.close()
	if err := stack.open(s); err != nil {
		return false, err
	}
	var wrong []dirAttrs
	for _, p := range implied {
		if err := context.Cause(ctx); err != nil { // a hostile image has many
			return false, err
		}
		a, ok, err := stack.attrs(p)
		if err != nil {
			return false, fmt.Errorf("attributes of directory %q: %w", p, err)
		}
		if ok {
			wrong = append(wrong, a)
		}
	}
	if len(wrong) == 0 {
		return false, nil
	}
	root := filepath.Join(dir, "attrs")
	if err := os.Mkdir(root, 0o755); err != nil {
		return false, err
	}
	return true, stack.write(root, wrong)
}

// stack is an image's layers, top first, without those below an opaque one.
type stack struct {
	ids   []digest.Digest
	infos []*layerInfo
	dirs  []*tree
	seen  []map[string]sight // of each layer, by path
}

func (s *Store) newStack(ids []digest.Digest) (*stack, error) {
	st := &stack{ids: overlayOrder(ids, s.layers.get)}
	for _, id := range st.ids {
		info := s.layers.get(id)
		if info == nil {
			return nil, fmt.Errorf("layer %s: %w", id, ErrNotFound)
		}
		st.infos = append(st.infos, info)
	}
	return st, nil
}

// open opens the layers' trees; the caller closes the stack, whatever came of it.
func (st *stack) open(s *Store) error {
	for i, id := range st.ids {
		t, err := s.openTree(id, st.infos[i])
		if err != nil {
			return err
		}
		st.dirs, st.seen = append(st.dirs, t), append(st.seen, map[string]sight{})
	}
	return nil
}

// overlayOrder gives the layers top first. Of a layer that comes more than once, only the topmost counts (overlayfs
// refuses the same directory twice, and the upper one covers all that the lower one has); below one that is opaque in
// its root, none.
func overlayOrder(ids []digest.Digest, get func(digest.Digest) *layerInfo) []digest.Digest {
	var order []digest.Digest
	seen := map[digest.Digest]bool{}
	for _, id := range slices.Backward(ids) {
		if seen[id] {
			continue
		}
		seen[id] = true
		order = append(order, id)
		if info := get(id); info != nil && info.Opaque {
			break
		}
	}
	return order
}

func (st *stack) close() {
	for _, d := range st.dirs {
		d.Close()
	}
}

// implied are the paths that any layer but the lowest made without an entry, parents first.
func (st *stack) implied() []string {
	var all []string
	for i, info := range st.infos {
		if i < len(st.infos)-1 {
			all = append(all, info.Implied...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// attrs finds what the directory p should look like; false where it looks like that already or is not visible.
func (st *stack) attrs(p string) (dirAttrs, bool, error) {
	var top *syscall.Stat_t
	for i := range st.dirs {
		state, stat, err := st.look(i, p)
		if err != nil {
			return dirAttrs{}, false, err
		}
		if state&isDir != 0 {
			_, implied := slices.BinarySearch(st.infos[i].Implied, p)
			switch {
			case !implied && top == nil:
				return dirAttrs{}, false, nil
			case !implied:
				a := dirAttrs{path: p, from: st.dirs[i].File, st: stat}
				same := stat.Mode == top.Mode && stat.Uid == top.Uid && stat.Gid == top.Gid
				if same {
					names, err := sys.Listxattrat(int(st.dirs[i].Fd()), p)
					if err != nil {
						return a, false, err
					}
					same = len(names) == 0
				}
				return a, !same, nil
			case top == nil:
				top = &stat
			}
		}
		if state&covers != 0 {
			break
		}
	}
	return dirAttrs{}, false, nil
}

const (
	isDir  = 1 << iota // the path is a directory in this layer
	covers             // what lower layers have at the path does not show
)

// sight is what a layer has at a path.
type sight struct {
	state int
	stat  syscall.Stat_t
}

// look says what layer i has at p. Walking down, anything but a directory (a whiteout, a file) covers what is below,
// and so does an opaque directory. What was seen is kept: in a deep tree each directory is asked for with all below it.
func (st *stack) look(i int, p string) (state int, stat syscall.Stat_t, err error) {
	if known, ok := st.seen[i][p]; ok {
		return known.state, known.stat, nil
	}
	defer func() {
		if err == nil {
			st.seen[i][p] = sight{state, stat}
		}
	}()
	root := int(st.dirs[i].Fd())
	if p == "." {
		stat, err = sys.Lstatat(root, ".")
		return isDir, stat, err
	}
	state, stat, err = st.look(i, path.Dir(p))
	if err != nil || state&isDir == 0 {
		return state, stat, err
	}
	state &^= isDir
	stat, err = sys.Lstatat(root, p)
	switch {
	case errors.Is(err, syscall.ENOENT):
		if st.infos[i].Marks.IsWhiteout(p) {
			state = covers
		}
		return state, stat, nil
	case err != nil:
		return 0, stat, err
	case stat.Mode&sys.FileTypeMask != sys.FileDir:
		return covers, stat, nil
	}
	opaque, err := layer.OpaqueDir(root, p)
	if err != nil {
		return 0, stat, err
	}
	if opaque || st.infos[i].Marks.IsOpaque(p) {
		state |= covers
	}
	return state | isDir, stat, nil
}

// write makes the directories below root. Parents that only lead there copy what shows of them now.
func (st *stack) write(root string, dirs []dirAttrs) error {
	fd, err := os.OpenFile(root, sys.OpenPath|sys.OpenDirectory, 0)
	if err != nil {
		return err
	}
	defer fd.Close()
	todo := map[string]dirAttrs{}
	for _, d := range dirs {
		todo[d.path] = d
	}
	for _, d := range dirs {
		for p := d.path; p != "."; {
			p = path.Dir(p)
			if _, ok := todo[p]; ok {
				continue
			}
			if todo[p], err = st.shown(p); err != nil {
				return err
			}
		}
	}
	if _, ok := todo["."]; !ok {
		if todo["."], err = st.shown("."); err != nil {
			return err
		}
	}
	paths := make([]string, 0, len(todo))
	for p := range todo {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		if p != "." {
			if err := sys.Mkdirat(int(fd.Fd()), p, 0o700); err != nil {
				return fmt.Errorf("make %q: %w", p, err)
			}
		}
	}
	for _, p := range slices.Backward(paths) { // times last to first: children change their parent's
		if err := copyAttrs(fd, p, todo[p]); err != nil {
			return fmt.Errorf("attributes of %q: %w", p, err)
		}
	}
	return nil
}

// shown are the attributes that an overlay of the layers gives the directory p.
func (st *stack) shown(p string) (dirAttrs, error) {
	for i := range st.dirs {
		state, stat, err := st.look(i, p)
		if err != nil {
			return dirAttrs{}, err
		}
		if state&isDir != 0 {
			return dirAttrs{path: p, from: st.dirs[i].File, st: stat}, nil
		}
	}
	return dirAttrs{}, fmt.Errorf("directory %q: %w", p, fs.ErrNotExist)
}

// copyAttrs gives the directory at p below root the attributes a, extended ones included.
func copyAttrs(root *os.File, p string, a dirAttrs) error {
	fd := int(root.Fd())
	if err := sys.Chownat(fd, p, int(a.st.Uid), int(a.st.Gid)); err != nil {
		return err
	}
	if err := copyXattrs(fd, p, int(a.from.Fd()), a.path); err != nil {
		return err
	}
	if err := sys.Chmodat(fd, p, a.st.Mode&0o7777); err != nil {
		return err
	}
	return sys.Utimesat(fd, p, timespec(a.st.Atim), timespec(a.st.Mtim))
}

func copyXattrs(dst int, dp string, src int, sp string) error {
	names, err := sys.Listxattrat(src, sp)
	if err != nil {
		return err
	}
	for _, n := range names {
		if layer.IsOverlayXattr(n) {
			continue
		}
		v, err := sys.Getxattrat(src, sp, n)
		if err == nil {
			err = sys.Setxattrat(dst, dp, n, v)
		}
		if err != nil && !errors.Is(err, syscall.ENOTSUP) {
			return fmt.Errorf("extended attribute %q: %w", n, err)
		}
	}
	return nil
}

func timespec(t syscall.Timespec) time.Time { return time.Unix(t.Unix()) }
