package layer

import (
	"context"
	"io"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// tree is what a layer is unpacked into: a directory, or names in memory whose contents go into an image. The rules of
// unpacking are the extractor's; a tree only does what system calls do, and its errors are theirs (EEXIST, ENOENT, EISDIR).
// Directories are handles that it gives out, and base is one name in a directory.
type tree interface {
	// open finds a directory by its path. Links are followed within the tree (openat2, RESOLVE_IN_ROOT).
	open(path string) (int, error)
	close(dir int)
	// stat and what follows it follow no links.
	stat(dir int, base string) (fileStat, error)

	mkdir(dir int, base string, perm uint32) error
	// mkdirImplied makes and opens a directory of which nothing is known, with mode 0755.
	mkdirImplied(dir int, base string) (int, error)
	symlink(target string, dir int, base string) error
	mknod(dir int, base string, mode uint32, major, minor uint32) error
	link(fromDir int, from string, dir int, base string) error
	// create makes an empty regular file; write is called with what it returns, and nothing else before it.
	create(dir int, base string, perm uint32) (int, error)
	// write gives the file size bytes of r and its attributes. It returns the bytes on disk.
	write(ctx context.Context, file, dir int, base string, a attrs, size int64, r io.Reader) (int64, error)

	// setAttrs leaves the times of directories alone; base "." is dir itself.
	setAttrs(dir int, base string, a attrs) error
	// setOpaque is for directories: they do not merge with those of lower layers. base may be ".".
	setOpaque(dir int, base string) error
	setTimes(dir int, t times) error

	// unlink deletes what is no directory.
	unlink(dir int, base string) error
	// putAside takes a regular file out of the tree and keeps its content under the number n, if keepsReplaced.
	putAside(dir int, base string, n int64) error
	keepsReplaced() bool
	// removeDir calls remove, which deletes, for all that is in the directory base, and deletes that.
	removeDir(dir int, base string, remove func(dir int, base string) error) error
}

type fileStat struct {
	mode uint32
	rdev uint64
	size int64
}

func (s fileStat) isDir() bool { return s.mode&sys.FileTypeMask == sys.FileDir }

// isWhiteout tells what overlayfs takes for a whiteout.
func (s fileStat) isWhiteout() bool { return s.mode&sys.FileTypeMask == sys.FileChar && s.rdev == 0 }
