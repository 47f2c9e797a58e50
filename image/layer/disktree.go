package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// diskTree is a directory of a file system. Handles are descriptors (O_PATH).
type diskTree struct {
	root     int
	replaced *os.File // nil: what is replaced is deleted
	buf      []byte
}

func (t *diskTree) open(path string) (int, error) {
	return sys.OpenInRoot(t.root, path, sys.OpenPath|sys.OpenDirectory, 0)
}

func (t *diskTree) close(dir int) { sys.Close(dir) }

func (t *diskTree) stat(dir int, base string) (fileStat, error) {
	st, err := sys.Lstatat(dir, base)
	return fileStat{st.Mode, st.Rdev, st.Size}, err
}

func (t *diskTree) mkdir(dir int, base string, perm uint32) error {
	return sys.Mkdirat(dir, base, perm)
}

func (t *diskTree) mkdirImplied(dir int, base string) (int, error) {
	if err := sys.Mkdirat(dir, base, 0o755); err != nil {
		return -1, err
	}
	if err := sys.Chmodat(dir, base, 0o755); err != nil { // the umask
		return -1, err
	}
	return sys.OpenBeneath(dir, base, sys.OpenPath|sys.OpenDirectory, 0)
}

func (t *diskTree) symlink(target string, dir int, base string) error {
	return sys.Symlinkat(target, dir, base)
}

func (t *diskTree) mknod(dir int, base string, mode, major, minor uint32) error {
	return sys.Mknodat(dir, base, mode, major, minor)
}

func (t *diskTree) link(fromDir int, from string, dir int, base string) error {
	return sys.Linkat(fromDir, from, dir, base)
}

func (t *diskTree) create(dir int, base string, perm uint32) (int, error) {
	return sys.OpenBeneath(dir, base, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
}

func (t *diskTree) write(ctx context.Context, fd, _ int, _ string, a attrs, size int64, r io.Reader) (disk int64, err error) {
	defer func() { err = errors.Join(err, sys.Close(fd)) }()
	var off, end int64
	for off < size {
		if ctx.Err() != nil {
			return disk, context.Cause(ctx)
		}
		n, err := io.ReadFull(r, t.buf[:min(int64(len(t.buf)), size-off)])
		if err != nil {
			return disk, fmt.Errorf("content at %d of %d bytes: %w", off, size, err)
		}
		if n < blockSize || !bytes.Equal(t.buf[:n], zeros[:n]) {
			if err := sys.WriteAt(fd, t.buf[:n], off); err != nil {
				return disk, fmt.Errorf("write: %w", err)
			}
			disk += (int64(n) + blockSize - 1) &^ (blockSize - 1)
			end = off + int64(n)
		}
		off += int64(n)
	}
	if end != size { // it ends with a hole
		if err := sys.Ftruncate(fd, size); err != nil {
			return disk, fmt.Errorf("set size: %w", err)
		}
	}
	return disk, t.setFileAttrs(fd, a)
}

func (t *diskTree) setFileAttrs(fd int, a attrs) error {
	// As it was created it is right most of the time, and each change costs the file system a transaction. The umask or a
	// set-group-ID directory can have made it otherwise.
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return err
	}
	// Owner first: chown clears the set-id bits and the capabilities.
	if int(st.Uid) != a.uid || int(st.Gid) != a.gid {
		if err := sys.Fchown(fd, a.uid, a.gid); err != nil {
			return fmt.Errorf("chown %d:%d: %w", a.uid, a.gid, err)
		}
	}
	set := func(k, v string) error { return sys.Fsetxattr(fd, k, []byte(v)) }
	if err := a.xattrs(sys.FileReg, set); err != nil {
		return err
	}
	if st.Mode&modeBits != a.mode {
		if err := sys.Fchmod(fd, a.mode); err != nil {
			return fmt.Errorf("chmod %o: %w", a.mode, err)
		}
	}
	return sys.Futimes(fd, a.access, a.mod)
}

// setAttrs applies owner, attributes, mode and times to what is not an open regular file.
func (t *diskTree) setAttrs(dir int, base string, a attrs) error {
	st, err := sys.Lstatat(dir, base)
	if err != nil {
		return err
	}
	kind := st.Mode & sys.FileTypeMask
	// A hard link's file loses its capabilities by this, like everywhere, unless the link's entry has them too.
	if a.linked || int(st.Uid) != a.uid || int(st.Gid) != a.gid {
		if err := sys.Chownat(dir, base, a.uid, a.gid); err != nil {
			return fmt.Errorf("chown %d:%d: %w", a.uid, a.gid, err)
		}
	}
	set := func(k, v string) error { return sys.Setxattrat(dir, base, k, []byte(v)) }
	if err := a.xattrs(kind, set); err != nil {
		return err
	}
	if kind != sys.FileSymlink && (a.linked || st.Mode&modeBits != a.mode) {
		if err := sys.Chmodat(dir, base, a.mode); err != nil {
			return fmt.Errorf("chmod %o: %w", a.mode, err)
		}
	}
	if kind == sys.FileDir {
		return nil // its times are set when nothing is made in it any more
	}
	return sys.Utimesat(dir, base, a.access, a.mod)
}

func (t *diskTree) setOpaque(dir int, base string) error {
	return sys.Setxattrat(dir, base, opaqueXattr, []byte("y"))
}

func (t *diskTree) setTimes(dir int, ts times) error { return sys.Utimesat(dir, "", ts.access, ts.mod) }

func (t *diskTree) unlink(dir int, base string) error { return sys.Unlinkat(dir, base, false) }

func (t *diskTree) keepsReplaced() bool { return t.replaced != nil }

func (t *diskTree) putAside(dir int, base string, n int64) error {
	return sys.Renameat(dir, base, int(t.replaced.Fd()), strconv.FormatInt(n, 10))
}

func (t *diskTree) removeDir(dir int, base string, remove func(dir int, base string) error) error {
	fd, err := sys.OpenBeneath(dir, base, os.O_RDONLY|sys.OpenDirectory|sys.OpenNoFollow, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), base)
	defer d.Close()
	for {
		names, err := d.Readdirnames(256)
		for _, n := range names {
			if err := remove(fd, n); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || len(names) == 0 && err == nil {
			break
		}
		if err != nil {
			return err
		}
		// Deleting while reading may skip entries: start over.
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	return sys.Unlinkat(dir, base, true)
}
