package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/internal/sys"
)

func native(c *Config)  { c.Snapshotter = SnapshotNative }
func overlay(c *Config) { c.Snapshotter = SnapshotOverlay }

// treeOf describes every entry below root: type, mode, owner, size, content, link, device, extended attributes, modification time,
// and which entries are one file.
func treeOf(t testing.TB, root string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	groups := map[uint64]string{}
	err := filepath.WalkDir(root+"/.", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		dir, err := os.Open(filepath.Dir(p))
		if err != nil {
			return err
		}
		defer dir.Close()
		name := filepath.Base(p)
		if rel == "." {
			name = "."
			if dir, err = os.Open(p); err != nil {
				return err
			}
			defer dir.Close()
		}
		st, err := sys.Lstatat(int(dir.Fd()), name)
		if errors.Is(err, syscall.ENOENT) {
			return nil // overlayfs lists whiteouts in a directory that one layer alone has
		}
		if err != nil {
			return err
		}
		when := fmt.Sprint(st.Mtim.Nano())
		if st.Mtim.Sec != 1e9 {
			when = "that of unpacking" // no entry says
		}
		text := fmt.Sprintf("%o %d:%d mtime %s", st.Mode, st.Uid, st.Gid, when)
		switch st.Mode & sys.FileTypeMask {
		case sys.FileReg:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %q", b)
			if len(b) > 64 {
				text = fmt.Sprintf("%s %d bytes", text[:60], len(b))
			}
			if st.Nlink > 1 {
				if groups[st.Ino] == "" {
					groups[st.Ino] = rel
				}
				text += " one with " + groups[st.Ino]
			}
		case sys.FileSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text += " -> " + target
		case sys.FileDir:
		default:
			text += fmt.Sprintf(" dev %x", st.Rdev)
		}
		names, err := sys.Listxattrat(int(dir.Fd()), name)
		if err != nil {
			return err
		}
		slices.Sort(names)
		for _, n := range names {
			if strings.HasPrefix(n, "trusted.overlay.") || n == "security.selinux" {
				continue
			}
			v, err := sys.Getxattrat(int(dir.Fd()), name, n)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %s=%q", n, v)
		}
		tree[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func hdr(name string, kind byte, mode int64) tar.Header {
	h := tar.Header{Name: name, Typeflag: kind, Mode: mode, ModTime: time.Unix(1e9, 0)}
	if kind == tar.TypeDir {
		h.Name += "/"
	}
	return h
}

// capNetBind is security.capability with CAP_NET_BIND_SERVICE, revision 2.
var capNetBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// difficult has everything that layers do to one another.
func difficult() registry.Image {
	with := func(h tar.Header, change func(*tar.Header)) tar.Header { change(&h); return h }
	base := []tar.Header{
		hdr(".", tar.TypeDir, 0o751), hdr("etc", tar.TypeDir, 0o755), hdr("etc/a", tar.TypeReg, 0o644), hdr("etc/b", tar.TypeReg, 0o600),
		hdr("gone", tar.TypeDir, 0o755), hdr("gone/deep", tar.TypeDir, 0o755), hdr("gone/deep/x", tar.TypeReg, 0o644),
		hdr("opaque", tar.TypeDir, 0o755), hdr("opaque/old", tar.TypeReg, 0o644),
		hdr("again", tar.TypeDir, 0o755), hdr("again/old", tar.TypeReg, 0o644),
		hdr("file2dir", tar.TypeReg, 0o644), hdr("dir2file", tar.TypeDir, 0o755), hdr("dir2file/in", tar.TypeReg, 0o644),
		with(hdr("su", tar.TypeReg, 0o4755), func(h *tar.Header) { h.Uid, h.Gid = 0, 7 }),
		with(hdr("cap", tar.TypeReg, 0o755), func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capNetBind}
		}),
		with(hdr("attr", tar.TypeReg, 0o644), func(h *tar.Header) {
			h.Uid, h.Gid = 1000, 1001
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.k": "v"}
		}),
		with(hdr("link", tar.TypeSymlink, 0o777), func(h *tar.Header) { h.Linkname = "/etc/../nowhere"; h.Uid = 3 }),
		with(hdr("hard", tar.TypeLink, 0), func(h *tar.Header) { h.Linkname = "etc/a" }),
		with(hdr("null", tar.TypeChar, 0o666), func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 }),
		hdr("fifo", tar.TypeFifo, 0o640), hdr("tmp", tar.TypeDir, 0o1777),
		with(hdr("usr/lib", tar.TypeDir, 0o755), func(h *tar.Header) { h.Uid = 5 }), hdr("usr/lib/x", tar.TypeReg, 0o644),
		with(hdr("lib", tar.TypeSymlink, 0o777), func(h *tar.Header) { h.Linkname = "usr/lib" }),
	}
	middle := []tar.Header{
		hdr(".wh.gone", tar.TypeReg, 0), hdr("opaque", tar.TypeDir, 0o700), hdr("opaque/.wh..wh..opq", tar.TypeReg, 0),
		hdr("opaque/new", tar.TypeReg, 0o644), hdr(".wh.again", tar.TypeReg, 0), hdr("again", tar.TypeDir, 0o711),
		hdr("again/new", tar.TypeReg, 0o644), hdr("file2dir", tar.TypeDir, 0o755), hdr("file2dir/in", tar.TypeReg, 0o644),
		hdr("dir2file", tar.TypeReg, 0o644), hdr("tmp/implied", tar.TypeReg, 0o644), hdr("etc/.wh.b", tar.TypeReg, 0),
		hdr("more", tar.TypeDir, 0o755), hdr("more/.wh.nothing", tar.TypeReg, 0),
	}
	top := []tar.Header{
		hdr("etc/b", tar.TypeReg, 0o640), hdr("usr/lib/y", tar.TypeReg, 0o644), hdr("gone", tar.TypeDir, 0o700),
		hdr("gone/deep", tar.TypeReg, 0o644), hdr("more/nothing", tar.TypeReg, 0o644), hdr("opaque/.wh.new", tar.TypeReg, 0),
	}
	texts := func(all []tar.Header) []string {
		out := make([]string, len(all))
		for i := range all {
			if all[i].Typeflag == tar.TypeReg && !strings.Contains(all[i].Name, ".wh.") {
				out[i] = fmt.Sprintf("%s of %d entries", all[i].Name, len(all))
			}
		}
		return out
	}
	return registry.Image{Layers: []registry.Layer{
		registry.Entries(base, texts(base)), registry.Entries(middle, texts(middle)), registry.Entries(top, texts(top)),
	}}
}

// randomImage has layers that put, replace and delete the few same names, so that they meet.
func randomImage(r *rand.Rand) registry.Image {
	var img registry.Image
	for range 2 + r.IntN(4) {
		var all []tar.Header
		var texts []string
		seen := map[string]bool{}
		dirs := []string{""}
		for range 3 + r.IntN(10) {
			dir := dirs[r.IntN(len(dirs))]
			base := string("abc"[r.IntN(3)])
			name := dir + base
			if seen[name] {
				continue
			}
			h, text := hdr(name, tar.TypeReg, 0o600+int64(r.IntN(0o100))), fmt.Sprint(r.IntN(1000))
			switch r.IntN(8) {
			case 0, 1:
				h, text = hdr(dir+".wh."+base, tar.TypeReg, 0), ""
			case 2:
				h, text = hdr(name, tar.TypeSymlink, 0o777), ""
				h.Linkname = "elsewhere"
			case 3, 4, 5:
				h, text = hdr(name, tar.TypeDir, 0o700+int64(r.IntN(0o100))), ""
				dirs = append(dirs, name+"/")
				if r.IntN(4) == 0 {
					all, texts = append(all, h), append(texts, "")
					h = hdr(name+"/.wh..wh..opq", tar.TypeReg, 0)
				}
			}
			seen[name] = true
			h.Uid = r.IntN(3)
			all, texts = append(all, h), append(texts, text)
		}
		img.Layers = append(img.Layers, registry.Entries(all, texts))
	}
	return img
}

func sameTrees(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-overlay +copy):\n%s", what, diff)
	}
}

// TestNativeIsWhatOverlayShows compares copies with overlays entry by entry: of one image that has everything, and of
// generated ones.
func TestNativeIsWhatOverlayShows(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "difficult", "v1", difficult())
	refs := []string{r.Host() + "/difficult:v1"}
	const generated = 40
	for i := range generated {
		repo := fmt.Sprintf("random%d", i)
		add(t, r, repo, "v1", randomImage(rand.New(rand.NewPCG(uint64(i), 7))))
		refs = append(refs, r.Host()+"/"+repo+":v1")
	}
	base := t.TempDir()
	dirs := map[string]string{"overlay": filepath.Join(base, "o"), "native": filepath.Join(base, "n")}
	o, n := openStore(t, dirs["overlay"], overlay), openStore(t, dirs["native"], native)
	if got := n.Snapshotter(); got.Name != SnapshotNative || got.Reason == "" {
		t.Fatalf("Snapshotter = %+v; want native with a reason", got)
	}
	entries := 0
	want := map[string]map[string]string{}
	for _, ref := range refs {
		a, b := mustPull(t, o, ref), mustPull(t, n, ref)
		want[ref] = treeOf(t, inRootfs(t, o, a.ID, RootfsOptions{}))
		entries += len(want[ref])
		sameTrees(t, ref, treeOf(t, inRootfs(t, n, b.ID, RootfsOptions{})), want[ref])
		sameTrees(t, ref+" read-only", treeOf(t, inRootfs(t, n, b.ID, RootfsOptions{Readonly: true})),
			treeOf(t, inRootfs(t, o, a.ID, RootfsOptions{Readonly: true})))
		rep, err := n.Verify(t.Context(), VerifyOptions{Images: []string{b.ID}})
		if err != nil || len(rep.Damaged) > 0 {
			t.Errorf("Verify(%s) = %+v, %v; want nothing damaged", ref, rep, err)
		}
	}
	t.Logf("%d images with %d entries", len(refs), entries)
	// Layers that were unpacked for one serve the other.
	if err := errors.Join(o.Close(), n.Close()); err != nil {
		t.Fatal(err)
	}
	o, n = openStore(t, dirs["native"], overlay), openStore(t, dirs["overlay"], native)
	for _, ref := range refs {
		for what, s := range map[string]*Store{"overlay of layers for copies": o, "copy of layers for overlays": n} {
			img, err := s.Get(ref)
			if err != nil {
				t.Fatal(err)
			}
			sameTrees(t, ref+": "+what, treeOf(t, inRootfs(t, s, img.ID, RootfsOptions{})), want[ref])
		}
	}
}

// TestNativeCopyIsItsOwn: what a container does to its files changes neither the store nor another container.
func TestNativeCopyIsItsOwn(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", difficult())
	s := openStore(t, t.TempDir(), native)
	img := mustPull(t, s, r.Host()+"/app:v1")
	before := treeOf(t, s.path("layers"))
	first, second := inRootfs(t, s, img.ID, RootfsOptions{}), inRootfs(t, s, img.ID, RootfsOptions{})
	want := treeOf(t, second)
	err := filepath.WalkDir(first+"/.", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("changed")
		return errors.Join(err, f.Chown(77, 77), f.Chmod(0), f.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	sameTrees(t, "the store", treeOf(t, s.path("layers")), before)
	sameTrees(t, "another container", treeOf(t, second), want)
	if b, err := os.ReadFile(first + "/hard"); string(b) != "changed" {
		t.Errorf("hard = %q, %v; want it to be etc/a still", b, err)
	}
}

// nestedOverlay mounts an overlay, which can be no upper layer of another.
func nestedOverlay(t *testing.T) string {
	t.Helper()
	base := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(base, "merged")
	err := syscall.Mount("overlay", merged, "overlay", 0,
		fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", base, base, base))
	if err != nil {
		t.Skipf("overlay on the temporary folder's file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(merged, 0); err != nil {
			t.Errorf("unmount %s: %v", merged, err)
		}
	})
	return merged
}

// TestNativeOnOverlay: where the store is on an overlay, as in a container, copies are chosen, and all works.
func TestNativeOnOverlay(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", difficult())
	o := openStore(t, t.TempDir(), overlay)
	want := treeOf(t, inRootfs(t, o, mustPull(t, o, r.Host()+"/app:v1").ID, RootfsOptions{}))

	dir := nestedOverlay(t)
	if _, err := Open(t.Context(), Config{Root: filepath.Join(dir, "forced"), Snapshotter: SnapshotOverlay}); err == nil || !strings.Contains(err.Error(), "overlay cannot be used below") {
		t.Errorf("Open with overlay forced = %v; want an error that says so", err)
	}
	s := openStore(t, filepath.Join(dir, "store"), anyFormat)
	if got := s.Snapshotter(); got.Name != SnapshotNative || !strings.Contains(got.Reason, "overlay cannot be used") {
		t.Fatalf("Snapshotter = %+v; want native with the reason", got)
	}
	img := mustPull(t, s, r.Host()+"/app:v1")
	ctr := filepath.Join(dir, "ctr")
	if err := os.Mkdir(ctr, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := s.Rootfs(t.Context(), img.ID, ctr, RootfsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	at := "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) + "/."
	sameTrees(t, "copy", treeOf(t, at), want)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	// Overlay cannot be idmapped: the files are given to the namespace's users.
	mapped := filepath.Join(dir, "mapped")
	if err := os.Mkdir(mapped, 0o700); err != nil {
		t.Fatal(err)
	}
	ids := []sys.IDMap{{Outside: 100000, Size: 65536}}
	f, err = s.Rootfs(t.Context(), img.ID, mapped, RootfsOptions{UserNS: newUserNS(t, 100000), UIDs: ids, GIDs: ids})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s.Snapshotter().Idmapped {
		t.Error("an overlay says that it can be idmapped; the owners below are tested elsewhere then")
	}
	root := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	for name, want := range map[string]uint32{"/.": 100000, "/attr": 101000, "/usr/lib": 100005} {
		st, err := os.Stat(root + name)
		if err != nil {
			t.Fatal(err)
		}
		if got := st.Sys().(*syscall.Stat_t).Uid; got != want {
			t.Errorf("owner of %s = %d; want %d", name, got, want)
		}
	}
	if st, err := os.Stat(root + "/su"); err != nil || st.Mode()&os.ModeSetuid == 0 {
		t.Errorf("mode of su = %v, %v; want set-uid", st.Mode(), err)
	}
	v, err := sys.Getxattrat(int(f.Fd()), "cap", capabilityXattr)
	if err != nil || len(v) != 24 || binary.LittleEndian.Uint32(v[20:]) != 100000 {
		t.Errorf("security.capability = %x, %v; want revision 3 with root 100000", v, err)
	}
}

// TestNativeUserNamespace: where mounts can be idmapped, a copy keeps the image's owners on disk.
func TestNativeUserNamespace(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", difficult())
	s := openStore(t, t.TempDir(), native)
	if !s.Snapshotter().Idmapped {
		t.Skip("the temporary folder's file system has no idmapped mounts")
	}
	img := mustPull(t, s, r.Host()+"/app:v1")
	for _, ro := range []bool{false, true} {
		dir := t.TempDir()
		f, err := s.Rootfs(t.Context(), img.ID, dir, RootfsOptions{UserNS: newUserNS(t, 100000), Readonly: ro})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := os.Stat("/proc/self/fd/" + strconv.Itoa(int(f.Fd())) + "/attr")
		if err != nil {
			t.Fatal(err)
		}
		if got := st.Sys().(*syscall.Stat_t); got.Uid != 101000 || got.Gid != 101001 {
			t.Errorf("owner of attr = %d:%d; want 101000:101001 (readonly %v)", got.Uid, got.Gid, ro)
		}
		if ro {
			continue
		}
		if st, err := os.Stat(filepath.Join(dir, "root/attr")); err != nil || st.Sys().(*syscall.Stat_t).Uid != 1000 {
			t.Errorf("owner on disk = %v, %v; want 1000", st, err)
		}
	}
}

// TestOverlayOnTmpfs: a file system that overlay can be used on is found to be one, and nothing of the trial stays.
func TestOverlayOnTmpfs(t *testing.T) {
	needRoot(t)
	dir := smallDisk(t, "16m")
	s := openStore(t, filepath.Join(dir, "store"), anyFormat, func(c *Config) { c.ContainersDir = filepath.Join(dir, "layers") })
	if got := s.Snapshotter(); got.Name != SnapshotOverlay {
		t.Errorf("Snapshotter = %+v; want overlay (tmpfs has trusted.* attributes)", got)
	}
	for _, d := range []string{"layers", "store/ingest"} {
		if left := names(t, filepath.Join(dir, d)); len(left) > 0 {
			t.Errorf("%s has %q", d, left)
		}
	}
}

// TestNativeFullDisk: a copy that does not fit is an error, and nothing of it stays.
func TestNativeFullDisk(t *testing.T) {
	needRoot(t)
	dir := smallDisk(t, "24m")
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{
		registry.Files(map[string]string{"a": string(bytes.Repeat([]byte{1}, 10<<20)), "b": string(bytes.Repeat([]byte{2}, 6<<20))})}})
	s := openStore(t, filepath.Join(dir, "store"), native)
	img := mustPull(t, s, r.Host()+"/app:v1")
	ctr := filepath.Join(dir, "ctr")
	if err := os.Mkdir(ctr, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rootfs(t.Context(), img.ID, ctr, RootfsOptions{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Rootfs = %v; want ENOSPC", err)
	}
	if left := names(t, ctr); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := s.Rootfs(t.Context(), img.ID, "", RootfsOptions{Readonly: true, SELinuxLabel: "system_u:object_r:x:s0"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Rootfs read-only with a label = %v; want it unsupported", err)
	}
}

// TestNativeInterrupted: a copy that was interrupted, by the caller or by a crash, is made anew.
func TestNativeInterrupted(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", difficult())
	s := openStore(t, t.TempDir(), native)
	img := mustPull(t, s, r.Host()+"/app:v1")
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the client has gone")
	cancel(why)
	if _, err := s.Rootfs(ctx, img.ID, dir, RootfsOptions{}); !errors.Is(err, why) {
		t.Errorf("Rootfs, cancelled = %v; want %v", err, why)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "root.tmp/etc"), 0o700), os.WriteFile(filepath.Join(dir, "root.tmp/etc/a"), []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	f, err := s.Rootfs(t.Context(), img.ID, dir, RootfsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	if b, err := os.ReadFile(at + "/etc/a"); string(b) != "etc/a of 25 entries" {
		t.Errorf("etc/a = %q, %v; want the image's", b, err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"root"}) {
		t.Errorf("the container's folder has %q; want root alone", got)
	}
	// What was written is there when it is mounted again.
	if err := os.WriteFile(at+"/new", []byte("n"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := s.Rootfs(t.Context(), img.ID, dir, RootfsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if b, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(int(again.Fd())) + "/new"); string(b) != "n" {
		t.Errorf("new = %q, %v; want n", b, err)
	}
}

// TestNativeView: the read-only copy is made once, counts as the store's, survives a restart of the daemon but not of the
// machine, and goes with its image.
func TestNativeView(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", difficult())
	root := t.TempDir()
	s := openStore(t, root, native)
	img := mustPull(t, s, r.Host()+"/app:v1")
	without, err := s.FSInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	view := func() uint64 {
		st, err := os.Stat(inRootfs(t, s, img.ID, RootfsOptions{Readonly: true}))
		if err != nil {
			t.Fatal(err)
		}
		return st.Sys().(*syscall.Stat_t).Ino
	}
	first := view()
	if second := view(); second != first {
		t.Errorf("the second volume has inode %d; want the first one's, %d", second, first)
	}
	counted := func(what string, s *Store) {
		t.Helper()
		with, err := s.FSInfo(t.Context())
		if err != nil || with.Bytes <= without.Bytes || with.Inodes < without.Inodes+20 {
			t.Errorf("%s: FSInfo = %+v, %v; want the copy added to %+v", what, with, err, without)
		}
	}
	counted("after the copy", s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, root, native)
	counted("after a restart", s)
	if got := view(); got != first {
		t.Errorf("after a restart the volume has inode %d; want %d", got, first)
	}
	digest, err := s.find(img.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(s.imageDir(digest), "view-another-boot")
	if err := os.Rename(s.viewPath(digest), old); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, root, native)
	if _, err := os.Lstat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a copy from before the machine went down is there: %v", err)
	}
	view()
	if err := s.Remove(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	if left := names(t, s.path("images", "sha256")); len(left) > 0 {
		t.Errorf("images has %q after the removal", left)
	}
	if got, err := s.FSInfo(t.Context()); err != nil || got.Bytes != 0 || got.Inodes != 0 {
		t.Errorf("FSInfo = %+v, %v; want nothing", got, err)
	}
}

// TestNativeLabel: without a mount option for it, the context is set on each file.
func TestNativeLabel(t *testing.T) {
	needRoot(t)
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	probe := filepath.Join(t.TempDir(), "probe")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setxattr(probe, selinuxXattr, []byte(label), 0); err != nil {
		t.Skipf("security.selinux: %v", err)
	}
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", difficult())
	s := openStore(t, t.TempDir(), native)
	img := mustPull(t, s, r.Host()+"/app:v1")
	f, err := s.Rootfs(t.Context(), img.ID, t.TempDir(), RootfsOptions{SELinuxLabel: label})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, name := range []string{".", "etc", "etc/a"} {
		if v, err := sys.Getxattrat(int(f.Fd()), name, selinuxXattr); string(v) != label {
			t.Errorf("context of %s = %q, %v; want %q", name, v, err, label)
		}
	}
}

func TestOwners(t *testing.T) {
	o := owners{uids: []sys.IDMap{{Inside: 0, Outside: 1000, Size: 10}, {Inside: 100, Outside: 5000, Size: 1}}, gids: []sys.IDMap{{Outside: 2000, Size: 5}}}
	for in, want := range map[[2]uint32][2]uint32{{0, 0}: {1000, 2000}, {9, 4}: {1009, 2004}, {10, 5}: {overflowID, overflowID}, {100, 1}: {5000, 2001}, {101, 0}: {overflowID, 2000}} {
		uid, gid, err := o.of(in[0], in[1])
		if err != nil || uid != want[0] || gid != want[1] {
			t.Errorf("of(%v) = %d, %d, %v; want %v", in, uid, gid, err, want)
		}
	}
	if _, _, err := (owners{uids: o.uids}).of(0, 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("of without groups = %v; want ErrInvalid", err)
	}
	acl := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x03\x00\x00\x00" + "\x08\x00\x04\x00\x01\x00\x00\x00")
	want := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xeb\x03\x00\x00" + "\x08\x00\x04\x00\xd1\x07\x00\x00")
	if got, err := o.attribute("system.posix_acl_access", acl); err != nil || !bytes.Equal(got, want) {
		t.Errorf("access control list = %x, %v; want %x", got, err, want)
	}
	if _, err := o.attribute(capabilityXattr, []byte{1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a capability of one byte = %v; want ErrInvalid", err)
	}
	if got, err := o.attribute("user.k", []byte("v")); err != nil || string(got) != "v" {
		t.Errorf("user.k = %q, %v; want it as it is", got, err)
	}
}

// TestNativeDeepTree: a tree that is deeper than a process has descriptors can be copied.
func TestNativeDeepTree(t *testing.T) {
	needRoot(t)
	const depth, descriptors = 90, 120
	deep := strings.Repeat("d/", depth)
	img := registry.Image{}
	for i := range 4 {
		img.Layers = append(img.Layers, registry.Entries([]tar.Header{hdr(deep+fmt.Sprint("f", i), tar.TypeReg, 0o644)}, []string{"x"}))
	}
	r := newRegistry(t, registry.Options{})
	add(t, r, "deep", "v1", img)
	s := openStore(t, t.TempDir(), native)
	image := mustPull(t, s, r.Host()+"/deep:v1").ID
	var rlimit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &rlimit); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: descriptors, Max: rlimit.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &rlimit); err != nil {
			t.Error(err)
		}
	}()
	at := inRootfs(t, s, image, RootfsOptions{})
	if got := len(names(t, filepath.Join(at, deep))); got != 4 {
		t.Errorf("the deepest directory has %d files; want 4", got)
	}
}
