package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// result is one pull. synced is the time until all of it has reached the disk.
type result struct {
	wall, synced, cpu time.Duration
	written, disk     int64
}

// measure pulls into an empty directory.
func (b *bench) measure(ctx context.Context, p peer, refs []string) (res result, err error) {
	dir := filepath.Join(b.dir, "store")
	if err := b.mount(ctx, dir); err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, b.unmount(dir)) }()
	// As installed: what only matters while the kernel is up is on a tmpfs.
	state := filepath.Join(dir, "run")
	if err := os.Mkdir(state, 0o700); err != nil {
		return res, err
	}
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "mode=700"); err != nil {
		return res, fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := b.prepare(); err != nil {
		return res, err
	}
	s, err := p.start(ctx, dir)
	if err != nil {
		return res, err
	}
	defer s.stop()
	before, err := usageOf(s.pid())
	if err != nil {
		return res, err
	}
	limited, cancel := context.WithTimeoutCause(ctx, b.limit, fmt.Errorf("takes more than %s (-limit)", b.limit))
	defer cancel()
	begin := time.Now()
	done, err := p.pull(limited, s, dir, refs)
	if err != nil {
		if limited.Err() != nil {
			err = context.Cause(limited)
		}
		return res, s.explain(err)
	}
	res.wall = done.Sub(begin)
	f, err := os.Open(dir)
	if err != nil {
		return res, err
	}
	defer f.Close()
	if err := sys.Syncfs(f); err != nil {
		return res, err
	}
	res.synced = time.Since(begin)
	after, err := usageOf(s.pid())
	if err != nil {
		return res, err
	}
	res.cpu, res.written = after.cpu-before.cpu, after.written-before.written
	res.disk, err = diskUse(dir)
	return res, err
}

// mount makes the empty directory. It is a file system made anew, as ext4 looks at each inode that was deleted in the
// last minutes, to pass it over, whenever it makes one: pulls after the deletion of another's store took four times as
// long.
func (b *bench) mount(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil || !b.fresh {
		return err
	}
	disk := b.disk()
	err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 4<<30+int64(b.size)*60e6))
	if err != nil {
		return err
	}
	if _, err := output(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", disk); err != nil {
		return fmt.Errorf("%w (-fresh=false does without)", err)
	}
	// The inode tables of the sparse file are zero already.
	if _, err := output(ctx, "mount", "-t", "ext4", "-o", "loop,noinit_itable", disk, dir); err != nil {
		return fmt.Errorf("%w (-fresh=false does without)", err)
	}
	return nil
}

func (b *bench) disk() string { return filepath.Join(b.dir, "disk") }

func (b *bench) unmount(dir string) error {
	if err := unmountBelow(dir); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(dir), os.RemoveAll(b.disk()))
}

// prepare makes all programs alike: nothing is left to write, and the page cache has the blobs, which stand for a
// network, and nothing else.
func (b *bench) prepare() error {
	syscall.Sync()
	if !b.cold {
		return nil
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("drop the page cache (-cold=false does without): %w", err)
	}
	return filepath.WalkDir(b.blobs, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, struct{ io.Reader }{f})
		return err
	})
}

type usage struct {
	cpu     time.Duration
	written int64
}

// usageOf adds up what the ended children of this process took, and a daemon (0 for none) with its own children.
func usageOf(daemon int) (usage, error) {
	var u usage
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &ru); err != nil {
		return u, err
	}
	u.cpu = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	pids := []string{"self"}
	if daemon != 0 {
		pids = append(pids, strconv.Itoa(daemon))
		cpu, err := cpuOf(daemon)
		if err != nil {
			return u, err
		}
		u.cpu += cpu
	}
	for _, pid := range pids {
		text, err := os.ReadFile("/proc/" + pid + "/io")
		if err != nil {
			return u, err
		}
		for line := range strings.Lines(string(text)) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
			n, _ := strconv.ParseInt(v, 10, 64)
			switch k {
			case "write_bytes":
				u.written += n
			case "cancelled_write_bytes":
				u.written -= n
			}
		}
	}
	return u, nil
}

func cpuOf(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// After the name, which may have anything in it: state is field 3; utime, stime, cutime, cstime are 14 to 17.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var cpu time.Duration
	for _, f := range fields[11:15] {
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		cpu += time.Duration(ticks) * (time.Second / 100) // USER_HZ
	}
	return cpu, nil
}

// diskUse counts blocks, those of hard links once. What is mounted below is not on this disk.
func diskUse(dir string) (int64, error) {
	var total int64
	var top syscall.Stat_t
	if err := syscall.Stat(dir, &top); err != nil {
		return 0, err
	}
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		if st.Dev != top.Dev {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !seen[st.Ino] {
			total += st.Blocks * 512
		}
		seen[st.Ino] = true
		return nil
	})
	return total, err
}

// unmountBelow takes away what is mounted at dir and what a program left mounted in its store.
func unmountBelow(dir string) error {
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(all) {
		if err := syscall.Unmount(m.Mountpoint, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}
