package image

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// FSInfo says what the store takes on its file system.
type FSInfo struct {
	Mountpoint string // the store's root: a path on the file system in question, as the kubelet wants it
	Bytes      uint64
	Inodes     uint64
}

// FSInfo adds up the layers; it reads nothing from the disk.
func (s *Store) FSInfo(ctx context.Context) (FSInfo, error) {
	info := FSInfo{Mountpoint: s.cfg.Root}
	if err := context.Cause(ctx); err != nil {
		return info, err
	}
	s.layers.mu.Lock()
	for _, e := range s.layers.m {
		if e.info != nil {
			info.Bytes += uint64(e.info.Size)
			info.Inodes += uint64(e.info.Inodes)
		}
	}
	s.layers.mu.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.images {
		info.Bytes += uint64(len(r.ConfigRaw) + len(r.ManifestRaw))
		info.Inodes += 2
	}
	for _, v := range s.viewUse {
		info.Bytes += v.Bytes
		info.Inodes += v.Inodes
	}
	return info, nil
}

// DirUsage adds up what a container's writable layer takes: bytes on disk and inodes below dir, itself included. Hard
// links count once, other file systems do not; what vanishes meanwhile does not either. dir that is not there takes
// nothing.
func DirUsage(ctx context.Context, dir string) (bytes, inodes uint64, err error) {
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	u := &usage{ctx: ctx, links: map[uint64]struct{}{}}
	st, err := sys.Lstatat(int(f.Fd()), ".")
	if err != nil {
		f.Close()
		return 0, 0, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	u.dev = uint64(st.Dev)
	u.count(st)
	if err := u.walk(f); err != nil {
		return 0, 0, &os.PathError{Op: "usage", Path: dir, Err: err}
	}
	return u.bytes, u.inodes, nil
}

type usage struct {
	ctx           context.Context
	dev           uint64
	bytes, inodes uint64
	links         map[uint64]struct{}
}

func (u *usage) count(st syscall.Stat_t) {
	if st.Nlink > 1 && st.Mode&sys.FileTypeMask != sys.FileDir {
		if _, ok := u.links[st.Ino]; ok {
			return
		}
		u.links[st.Ino] = struct{}{}
	}
	u.bytes += uint64(st.Blocks) * 512 // stat(2): st_blocks is in units of 512 bytes
	u.inodes++
}

// walk adds what is in d and closes it.
func (u *usage) walk(d *os.File) error {
	defer d.Close()
	fd := int(d.Fd())
	for {
		if err := u.ctx.Err(); err != nil {
			return context.Cause(u.ctx)
		}
		names, err := d.Readdirnames(1024)
		for _, n := range names {
			if err := u.entry(fd, n); err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR) {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (u *usage) entry(dir int, name string) error {
	st, err := sys.Lstatat(dir, name)
	if err != nil || uint64(st.Dev) != u.dev {
		return err
	}
	u.count(st)
	if st.Mode&sys.FileTypeMask != sys.FileDir {
		return nil
	}
	fd, err := sys.OpenBeneath(dir, name, os.O_RDONLY|sys.OpenDirectory|sys.OpenNoFollow, 0)
	if errors.Is(err, syscall.EXDEV) {
		return nil
	}
	if err != nil {
		return err
	}
	return u.walk(os.NewFile(uintptr(fd), name))
}
