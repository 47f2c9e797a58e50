package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// quotaDisks are file systems with project quotas, each in a file of its own. What the machine cannot make is a skip with
// its reason.
var quotaDisks = map[string]struct {
	make    []string
	options string
}{
	"ext4": {[]string{"mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"}, "prjquota"},
	"xfs":  {[]string{"mkfs.xfs", "-q", "-f"}, "pquota"},
}

func quotaDisk(t *testing.T, kind string) string {
	t.Helper()
	needRoot(t)
	disk := quotaDisks[kind]
	if _, err := exec.LookPath(disk.make[0]); err != nil {
		t.Skipf("no %s", disk.make[0])
	}
	dir := t.TempDir()
	file, at := filepath.Join(dir, "disk"), filepath.Join(dir, "at")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 400<<20), os.Mkdir(at, 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(disk.make[0], append(disk.make[1:], file)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", disk.make[0], err, out)
	}
	if out, err := exec.Command("mount", "-t", kind, "-o", "loop,"+disk.options, file, at).CombinedOutput(); err != nil {
		t.Skipf("mount %s with %s (kernel without quotas?): %v: %s", kind, disk.options, err, bytes.TrimSpace(out))
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(at, 0); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
	return at
}

// TestQuota: a container that writes more than it may gets EDQUOT, whatever rights the daemon has; what it takes is known
// without a walk, and numbers come back.
func TestQuota(t *testing.T) {
	for kind := range quotaDisks {
		t.Run(kind, func(t *testing.T) { testQuota(t, kind, quotaDisk(t, kind)) })
	}
}

func testQuota(t *testing.T, kind, disk string) {
	// Of a project that may write no more xfs says that its disk is full; this one is nearly empty.
	over := map[string]syscall.Errno{"ext4": syscall.EDQUOT, "xfs": syscall.ENOSPC}[kind]
	layers, trash := filepath.Join(disk, "layers"), filepath.Join(disk, "trash")
	q, err := OpenQuota(layers, trash)
	if err != nil {
		t.Fatal(err)
	}
	const limit = 4 << 20
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{registry.Files(map[string]string{"big": string(bytes.Repeat([]byte{1}, 6<<20)), "small": "s"})}})
	for _, snapshotter := range []string{SnapshotOverlay, SnapshotNative} {
		s := openStore(t, filepath.Join(disk, "store-"+snapshotter), func(c *Config) { c.Snapshotter, c.ContainersDir = snapshotter, layers })
		img := mustPull(t, s, r.Host()+"/app:v1")
		limited, free := filepath.Join(layers, snapshotter+"-limited"), filepath.Join(layers, snapshotter+"-free")
		base := uint64(0)
		for dir, limit := range map[string]uint64{limited: limit, free: 0} {
			if snapshotter == SnapshotNative {
				limit = 0
			}
			if err := errors.Join(os.Mkdir(dir, 0o711), q.Assign(dir, Limit{Bytes: limit})); err != nil {
				t.Fatal(err)
			}
		}
		f, err := s.Rootfs(t.Context(), img.ID, limited, RootfsOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if snapshotter == SnapshotNative {
			if base, _, _, err = q.Usage(limited); err != nil || base < 6<<20 {
				t.Fatalf("a copy takes %d bytes, %v; want the image's", base, err)
			}
			if err := q.Limit(limited, Limit{Bytes: base + limit}); err != nil {
				t.Fatal(err)
			}
		}
		at := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
		// As a container's process does, without the right to pass over quotas: ext4 asks for that, xfs does not.
		write := func(name string, mib int) error {
			cmd := exec.Command("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--", "dd", "if=/dev/zero", "bs=1M",
				"of=/dev/fd/3/"+name, "count="+strconv.Itoa(mib), "conv=fsync")
			cmd.ExtraFiles = []*os.File{f}
			out, err := cmd.CombinedOutput()
			for text, errno := range map[string]syscall.Errno{"Disk quota exceeded": syscall.EDQUOT, "No space left on device": syscall.ENOSPC} {
				if bytes.Contains(out, []byte(text)) {
					return errno
				}
			}
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return err
		}
		if err := write("two", 2); err != nil {
			t.Errorf("%s: write 2 MiB: %v", snapshotter, err)
		}
		bytes, inodes, ok, err := q.Usage(limited)
		if err != nil || !ok || bytes < base+2<<20 || bytes > base+3<<20 || inodes < 3 {
			t.Errorf("%s: Usage = %d bytes, %d inodes, %v, %v; want 2 MiB and a little", snapshotter, bytes, inodes, ok, err)
		}
		walked, walkedInodes, err := DirUsage(t.Context(), limited)
		if err != nil || walked > bytes+1<<20 || bytes > walked+1<<20 || walkedInodes != inodes {
			t.Errorf("%s: a walk finds %d bytes, %d inodes, %v; the quota says %d, %d", snapshotter, walked, walkedInodes, err, bytes, inodes)
		}
		if err := write("more", 4); !errors.Is(err, over) {
			t.Errorf("%s: write 4 MiB more = %v; want %v", snapshotter, err, over)
		}
		if err := os.WriteFile(filepath.Join(free, "f"), make([]byte, 8<<20), 0o600); err != nil {
			t.Errorf("%s: 8 MiB without a limit: %v", snapshotter, err)
		}
		if snapshotter == SnapshotOverlay { // a change of the image's file copies it up
			if err := os.Remove(at + "/more"); err != nil {
				t.Error(err)
			}
			if err := os.Chmod(at+"/big", 0o600); !errors.Is(err, over) {
				t.Errorf("copying up 6 MiB = %v; want %v", err, over)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		testQuotaInodes(t, q, s, img, filepath.Join(layers, snapshotter+"-inodes"), over)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	testQuotaNumbers(t, q, layers, trash)
}

// testQuotaInodes: a container gets as many files as it may have, and another when one is gone.
func testQuotaInodes(t *testing.T, q *Quota, s *Store, img *Image, dir string, over syscall.Errno) {
	limit := Limit{Inodes: 100}
	copies := s.cfg.Snapshotter == SnapshotNative
	before := limit
	if copies {
		before = Limit{}
	}
	if err := errors.Join(os.Mkdir(dir, 0o711), q.Assign(dir, before)); err != nil {
		t.Fatal(err)
	}
	f, err := s.Rootfs(t.Context(), img.ID, dir, RootfsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	own := uint64(0)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		var walked uint64
		if _, own, _, err = q.Usage(dir); err == nil {
			_, walked, err = DirUsage(t.Context(), dir)
		}
		if err != nil || own < 2 || own > 20 {
			t.Fatalf("%s takes %d inodes, %v; want a few", dir, own, err)
		}
		if own == walked {
			break
		}
		if time.Now().After(deadline) { // xfs counts what the mount of an overlay has deleted a while longer
			t.Fatalf("%s takes %d inodes by the quota, %d by a walk", dir, own, walked)
		}
	}
	if copies {
		limit.Inodes += own
		if err := q.Limit(dir, limit); err != nil {
			t.Fatal(err)
		}
	}
	// touch goes on after a file that it cannot make. As above, without the right to pass over quotas.
	touch := func(first, last int) ([]byte, error) {
		cmd := exec.Command("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--", "sh", "-c",
			fmt.Sprintf("cd /dev/fd/3 && seq -f file%%g %d %d | xargs touch", first, last))
		cmd.ExtraFiles = []*os.File{f}
		return cmd.CombinedOutput()
	}
	text := map[syscall.Errno]string{syscall.EDQUOT: "Disk quota exceeded", syscall.ENOSPC: "No space left on device"}[over]
	if out, err := touch(1, 200); err == nil || !bytes.Contains(out, []byte(text)) {
		t.Errorf("200 files = %v, %s; want %q", err, out, text)
	}
	made, err := filepath.Glob("/proc/self/fd/" + strconv.Itoa(int(f.Fd())) + "/file*")
	if want := int(limit.Inodes - own); err != nil || len(made) != want {
		t.Errorf("%d of 200 files were made, %v; want %d", len(made), err, want)
	}
	if _, inodes, ok, err := q.Usage(dir); err != nil || !ok || inodes != limit.Inodes {
		t.Errorf("Usage = %d inodes, %v, %v; want the limit, %d", inodes, ok, err, limit.Inodes)
	}
	if len(made) == 0 {
		return
	}
	if err := os.Remove(made[0]); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out, err := touch(201, 201)
		if err == nil {
			break
		}
		if time.Now().After(deadline) { // xfs counts deleted files a while longer
			t.Fatalf("a file in the place of a deleted one = %v: %s", err, out)
		}
	}
	if out, err := touch(202, 202); err == nil || !bytes.Contains(out, []byte(text)) {
		t.Errorf("one more = %v, %s; want %q", err, out, text)
	}
}

// testQuotaNumbers: no number is given twice, across restarts too; what is deleted gives its own back.
func testQuotaNumbers(t *testing.T, q *Quota, layers, trash string) {
	number := func(dir string) uint32 {
		t.Helper()
		id, err := q.project(dir)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	entries, err := os.ReadDir(layers)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]bool{}
	for _, e := range entries {
		id := number(filepath.Join(layers, e.Name()))
		if id == 0 || seen[id] {
			t.Errorf("%s has number %d; want one of its own", e.Name(), id)
		}
		seen[id] = true
	}
	// Moved to the trash and met by the next daemon there.
	first := filepath.Join(layers, entries[0].Name())
	id, gone := number(first), filepath.Join(trash, "gone")
	if err := errors.Join(os.Rename(first, gone), q.Close()); err != nil {
		t.Fatal(err)
	}
	if q, err = OpenQuota(layers, trash); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(layers, "fresh")
	if err := errors.Join(os.Mkdir(fresh, 0o711), q.Assign(fresh, Limit{Bytes: 1 << 20})); err != nil {
		t.Fatal(err)
	}
	if got := number(fresh); got == id || seen[got] {
		t.Errorf("a new directory has number %d, which another has", got)
	}
	open, err := os.Create(filepath.Join(gone, "open"))
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Remove(gone); err != nil {
		t.Fatal(err)
	}
	busy := filepath.Join(layers, "busy")
	if err := errors.Join(os.Mkdir(busy, 0o711), q.Assign(busy, Limit{Bytes: 1 << 20, Inodes: 50})); err != nil {
		t.Fatal(err)
	}
	if got := number(busy); got == id {
		t.Errorf("number %d is given while a file that counts for it is open", got)
	}
	if err := errors.Join(open.Close(), q.Close()); err != nil {
		t.Fatal(err)
	}
	if q, err = OpenQuota(layers, trash); err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	again := ""
	for deadline, i := time.Now().Add(time.Minute), 0; ; i++ {
		again = filepath.Join(layers, fmt.Sprint("again", i))
		if err := errors.Join(os.Mkdir(again, 0o711), q.Assign(again, Limit{})); err != nil {
			t.Fatal(err)
		}
		got := number(again)
		if got == id {
			break
		}
		if time.Now().After(deadline) { // xfs counts deleted files a while longer
			t.Fatalf("after all was deleted the next number is %d; want %d again", got, id)
		}
		if err := q.Remove(again); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	if err := os.WriteFile(filepath.Join(again, "f"), make([]byte, 8<<20), 0o600); err != nil {
		t.Errorf("the limit of the one before is there still: %v", err)
	}
	testQuotaStale(t, q, layers)
}

// testQuotaStale: a daemon that died between a directory and its limits leaves none to whoever gets the number next.
func testQuotaStale(t *testing.T, q *Quota, layers string) {
	for name, limit := range map[string]Limit{"bytes": {Bytes: 1 << 20}, "inodes": {Inodes: 50}} {
		dir := filepath.Join(layers, "stale-"+name)
		if err := errors.Join(os.Mkdir(dir, 0o711), q.Assign(dir, limit)); err != nil {
			t.Fatal(err)
		}
		id, err := q.project(dir)
		if err != nil {
			t.Fatal(err)
		}
		u, err := sys.ProjectQuota(q.root, id)
		if err != nil || u.MaxBytes != limit.Bytes || u.MaxInodes != limit.Inodes || u.Inodes != 1 {
			t.Errorf("quota of an empty directory = %+v, %v; want limits %+v, and 1 inode", u, err, limit)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
			next, err := OpenQuota(layers)
			if err != nil {
				t.Fatal(err)
			}
			u, err := sys.ProjectQuota(next.root, id)
			if err = errors.Join(err, next.Close()); err != nil {
				t.Fatal(err)
			}
			if u.MaxBytes == 0 && u.MaxInodes == 0 {
				break
			}
			if time.Now().After(deadline) { // xfs counts deleted files a while longer
				t.Fatalf("%s: limits of a project without a directory = %+v; want none", name, u)
			}
		}
	}
}

// TestQuotaNone: without quotas the reason is told.
func TestQuotaNone(t *testing.T) {
	needRoot(t)
	dir := smallDisk(t, "1m")
	if _, err := OpenQuota(filepath.Join(dir, "layers")); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("OpenQuota on tmpfs = %v; want it unsupported", err)
	}
	if b, _, err := LayerUsage(t.Context(), nil, dir); err != nil {
		t.Errorf("LayerUsage = %d, %v; want a walk", b, err)
	}
}
