package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/image/layer"
	"github.com/cri-shim/cri-shim/internal/sys"
)

func asImages(c *Config) { c.LayerFormat = LayerErofs }

// needErofs skips where the kernel cannot use images.
func needErofs(t testing.TB) {
	t.Helper()
	needRoot(t)
	s := openStore(t, t.TempDir(), anyFormat)
	if f := s.LayerFormat(); f.Name != LayerErofs {
		t.Skipf("layers cannot be EROFS images: %s", f.Reason)
	}
}

// layerTree is a path to what the layer is unpacked to, in either format.
func layerTree(t testing.TB, s *Store, id digest.Digest) string {
	t.Helper()
	tr, err := s.openTree(id, s.layers.get(id))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return procPath(tr.File)
}

// spoil changes the content of a file in a layer on the disk; in an image it must be there once, and plain.
func spoil(t testing.TB, s *Store, id digest.Digest, name, old, to string) {
	t.Helper()
	if s.layers.get(id).Format != LayerErofs {
		if err := os.WriteFile(filepath.Join(s.layerDir(id), "fs", name), []byte(to), 0o755); err != nil {
			t.Fatal(err)
		}
		return
	}
	path := filepath.Join(s.layerDir(id), imageFile)
	b, err := os.ReadFile(path)
	if err != nil || bytes.Count(b, []byte(old)) != 1 || len(old) != len(to) {
		t.Fatalf("%s has %q %d times, %v; want it once", path, old, bytes.Count(b, []byte(old)), err)
	}
	writeAt(t, path, int64(bytes.Index(b, []byte(old))), []byte(to))
}

func writeAt(t testing.TB, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(b, at)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestLayerFormat: what is configured is used, or is an error; auto says why.
func TestLayerFormat(t *testing.T) {
	needRoot(t)
	tmpfs := smallDisk(t, "16m")
	open := func(root string, change ...func(*Config)) (LayerFormat, error) {
		cfg := Config{Root: root, RegistryConfigDir: []string{}}
		for _, c := range change {
			c(&cfg)
		}
		s, err := Open(t.Context(), cfg)
		if err != nil {
			return LayerFormat{}, err
		}
		defer s.Close()
		if left := names(t, s.path("ingest")); len(left) != 0 {
			t.Errorf("left in ingest: %v", left)
		}
		return s.LayerFormat(), nil
	}
	for name, tc := range map[string]struct {
		root   string
		change []func(*Config)
		want   LayerFormat
		err    string
	}{
		"directory":          {change: []func(*Config){directories}, want: LayerFormat{Name: LayerDirectory, Reason: "configured"}},
		"copies":             {change: []func(*Config){native}, want: LayerFormat{Name: LayerDirectory, Reason: "root file systems are copies"}},
		"copies, and images": {change: []func(*Config){native, asImages}, err: "layer format erofs: root file systems are copies"},
		"tmpfs":              {root: tmpfs, change: []func(*Config){anyFormat}, want: LayerFormat{Name: LayerDirectory, Reason: "Linux 6.15"}},
		"tmpfs, and images":  {root: tmpfs, change: []func(*Config){asImages}, err: "layer format erofs: EROFS images cannot be used below " + tmpfs},
		"unknown":            {change: []func(*Config){func(c *Config) { c.LayerFormat = "squashfs" }}, err: `layer format: "squashfs" is not auto, directory or erofs`},
		"compression":        {change: []func(*Config){func(c *Config) { c.LayerCompression = "zstd" }}, err: `layer compression: "zstd" is not auto, lz4 or none`},
	} {
		root := tc.root
		if root == "" {
			root = t.TempDir()
		}
		got, err := open(root, tc.change...)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: Open = %v; want %q", name, err, tc.err)
			}
			continue
		}
		if err != nil || got.Name != tc.want.Name || !strings.Contains(got.Reason, tc.want.Reason) || got.Compression != tc.want.Compression {
			t.Errorf("%s: LayerFormat = %+v, %v; want %+v", name, got, err, tc.want)
		}
	}
	needErofs(t)
	for name, compression := range map[string]string{"": CompressAuto, CompressLZ4: CompressLZ4, CompressNone: CompressNone} {
		got, err := open(t.TempDir(), asImages, func(c *Config) { c.LayerCompression = name })
		if err != nil || got.Name != LayerErofs || got.Compression != compression {
			t.Errorf("LayerFormat with compression %q = %+v, %v; want erofs", name, got, err)
		}
	}
}

// TestFormatsAlike: containers see the same in both formats, and exports are the same.
func TestFormatsAlike(t *testing.T) {
	needErofs(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "difficult", "v1", difficult())
	add(t, r, "kinds", "v1", registry.Image{Layers: []registry.Layer{allKinds(), registry.Files(map[string]string{"text": strings.Repeat("compresses well ", 1<<16)})}})
	a := openStore(t, t.TempDir(), directories)
	for _, compression := range []string{CompressLZ4, CompressNone} {
		b := openStore(t, t.TempDir(), asImages, func(c *Config) { c.LayerCompression = compression })
		for _, name := range []string{"difficult", "kinds"} {
			ref := r.Host() + "/" + name + ":v1"
			sameImages(t, a, b, nil)
			x, y := mustPull(t, a, ref), mustPull(t, b, ref)
			for _, o := range []RootfsOptions{{}, {Readonly: true}} {
				sameTrees(t, fmt.Sprintf("%s, %s, %+v", name, compression, o), treeOf(t, inRootfs(t, b, y.ID, o)), treeOf(t, inRootfs(t, a, x.ID, o)))
			}
			if !bytes.Equal(export(t, a, ref), export(t, b, ref)) {
				t.Errorf("%s, %s: exports differ", name, compression)
			}
			if got := verify(t, b, VerifyOptions{}); len(got.Damaged) != 0 {
				t.Errorf("%s, %s: Verify() = %+v; want nothing", name, compression, got)
			}
		}
	}
}

// TestMixedStore: layers of both formats make one image, and a store that changes its format keeps what it has.
func TestMixedStore(t *testing.T) {
	needErofs(t)
	userns := newUserNS(t, 100000)
	r := newRegistry(t, registry.Options{})
	base := registry.Entries([]tar.Header{
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, {Name: "f", Typeflag: tar.TypeReg, Uid: 7, Mode: 0o644}, {Name: "gone", Typeflag: tar.TypeReg, Mode: 0o644},
	}, []string{1: "f"})
	add(t, r, "base", "v1", registry.Image{Layers: []registry.Layer{base}})
	add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{base, registry.Entries([]tar.Header{{Name: "tmp/x", Typeflag: tar.TypeReg, Mode: 0o644}, {Name: ".wh.gone", Typeflag: tar.TypeReg}}, []string{"x"})}})
	for first, formats := range map[string][2]func(*Config){"directory": {directories, asImages}, "erofs": {asImages, directories}} {
		root := t.TempDir()
		s := openStore(t, root, formats[0])
		mustPull(t, s, r.Host()+"/base:v1")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, root, formats[1])
		img := mustPull(t, s, r.Host()+"/app:v1")
		if len(s.Problems()) > 0 || s.layers.get(img.Layers[0]).Format == s.layers.get(img.Layers[1]).Format {
			t.Fatalf("%s first: problems %v, formats %q, %q; want one of each", first, s.Problems(),
				s.layers.get(img.Layers[0]).Format, s.layers.get(img.Layers[1]).Format)
		}
		for _, o := range []RootfsOptions{{}, {Readonly: true}, {UserNS: userns}, {UserNS: userns, Readonly: true}} {
			at := inRootfs(t, s, img.ID, o)
			uid := uint32(7)
			if o.UserNS != nil {
				uid += 100000
			}
			st, err := os.Stat(at + "/f")
			if err != nil || st.Sys().(*syscall.Stat_t).Uid != uid {
				t.Errorf("%s first: f: %v, %v; want the owner %d", first, st, err, uid)
			}
			if st, err := os.Stat(at + "/tmp"); err != nil || st.Mode()&os.ModeSticky == 0 || st.Mode().Perm() != 0o777 {
				t.Errorf("%s first: tmp: %v, %v; want the lower layer's mode", first, st, err)
			}
			if _, err := os.Lstat(at + "/gone"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s first: gone: %v; want it deleted", first, err)
			}
		}
		if got := verify(t, s, VerifyOptions{}); got.Layers != 2 || len(got.Damaged) != 0 {
			t.Errorf("%s first: Verify() = %+v; want two good layers", first, got)
		}
		want := export(t, openedWith(t, r, directories, "app"), r.Host()+"/app:v1")
		if !bytes.Equal(export(t, s, r.Host()+"/app:v1"), want) {
			t.Errorf("%s first: the export is another", first)
		}
		// As copies: whatever the layers' format.
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, root, native)
		if b, err := os.ReadFile(inRootfs(t, s, img.ID, RootfsOptions{}) + "/tmp/x"); string(b) != "x" || len(s.Problems()) > 0 {
			t.Errorf("%s first, as a copy: x = %q, %v, problems %v", first, b, err, s.Problems())
		}
	}
}

func openedWith(t *testing.T, r *registry.Server, change func(*Config), repo string) *Store {
	t.Helper()
	s := openStore(t, t.TempDir(), change)
	mustPull(t, s, r.Host()+"/"+repo+":v1")
	return s
}

// TestLayerVersions: a build that does not know images takes their version for damage, and this one does so with those to
// come; a layer that this kernel cannot mount is not used, and not thrown away.
func TestLayerVersions(t *testing.T) {
	needErofs(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", simple("x"))
	version := func(s *Store) (v struct {
		Version int
		Format  string
	}) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(s.layerDir(p.DiffIDs[0]), "layer.json"))
		if err := errors.Join(err, json.Unmarshal(b, &v)); err != nil {
			t.Fatal(err)
		}
		return v
	}
	old := openedWith(t, r, directories, "app")
	if v := version(old); v.Version != 1 || v.Format != "" {
		t.Errorf("a directory has version %d, format %q; want 1 and none, as before there were images", v.Version, v.Format)
	}
	s := openedWith(t, r, asImages, "app")
	if v := version(s); v.Version != 2 || v.Format != LayerErofs {
		t.Errorf("an image has version %d, format %q; want 2, erofs", v.Version, v.Format)
	}
	if _, err := os.Lstat(filepath.Join(s.layerDir(p.DiffIDs[0]), "fs")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("fs of an image: %v; want none, which older builds look for", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(s.layerDir(p.DiffIDs[0]), "layer.json")
	if err := edit(record, `"version":2`, `"version":3`); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.cfg.Root, asImages)
	if len(s.List()) != 0 || !strings.Contains(fmt.Sprint(s.Problems()), "version 3") {
		t.Errorf("with a layer of version 3 there are %d images, problems %v; want none, and the version", len(s.List()), s.Problems())
	}
	mustPull(t, s, r.Host()+"/app:v1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// On tmpfs, images cannot be mounted: as on a kernel that cannot.
	disk := smallDisk(t, "16m")
	if out, err := exec.Command("cp", "-a", s.cfg.Root+"/.", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s = openStore(t, disk, anyFormat)
	if len(s.List()) != 0 || !strings.Contains(fmt.Sprint(s.Problems()), "Linux 6.15") {
		t.Errorf("where images cannot be mounted there are %d, problems %v; want none, and the kernel", len(s.List()), s.Problems())
	}
	if _, err := os.Lstat(filepath.Join(s.layerDir(p.DiffIDs[0]), imageFile)); err != nil {
		t.Errorf("the layer: %v; want it left", err)
	}
	img := mustPull(t, s, r.Host()+"/app:v1")
	if b, err := os.ReadFile(inRootfs(t, s, img.ID, RootfsOptions{}) + "/f"); string(b) != "x" {
		t.Errorf("pulled again: f = %q, %v; want x", b, err)
	}
}

// TestNoImage: a layer that cannot be an image is a directory.
func TestNoImage(t *testing.T) {
	needErofs(t)
	r := newRegistry(t, registry.Options{})
	gz := registry.Files(map[string]string{"f": incompressible(100<<10, 1)})
	gz.Compression = registry.Gzip
	add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{gz, registry.Files(map[string]string{"g": "g"})}})
	for _, keep := range []bool{false, true} {
		s := openStore(t, t.TempDir(), asImages, func(c *Config) { c.KeepBlobs = keep })
		var tries atomic.Int32
		unpack := s.unpackImage
		s.unpackImage = func(ctx context.Context, in io.Reader, f *os.File, o layer.ImageOptions) (layer.Result, error) {
			if tries.Add(1) == 1 {
				_, err := io.CopyN(io.Discard, in, 1000)
				return layer.Result{}, errors.Join(layer.ErrNoImage, err)
			}
			return unpack(ctx, in, f, o)
		}
		img := mustPull(t, s, r.Host()+"/app:v1")
		formats := []string{s.layers.get(img.Layers[0]).Format, s.layers.get(img.Layers[1]).Format}
		if n := strings.Count(strings.Join(formats, " "), LayerErofs); n != 1 || tries.Load() != 2 {
			t.Errorf("keep %v: formats %q after %d tries; want one of each", keep, formats, tries.Load())
		}
		if got := verify(t, s, VerifyOptions{}); got.Layers != 2 || len(got.Damaged) != 0 {
			t.Errorf("keep %v: Verify() = %+v; want two good layers", keep, got)
		}
		if left := names(t, s.path("ingest")); len(left) != 0 {
			t.Errorf("keep %v: left in ingest: %v", keep, left)
		}
	}
}

// TestImageDamage: whatever bit of an image is wrong, verifying finds it and repairs it, and using it ends.
func TestImageDamage(t *testing.T) {
	needErofs(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{allKinds(),
		registry.Files(map[string]string{"noise": incompressible(200<<10, 1), "text": strings.Repeat("compresses well ", 1<<15), "small": "small"})}})
	s := openStore(t, t.TempDir(), asImages)
	img := mustPull(t, s, r.Host()+"/app:v1")
	var superblock []int64
	for at := int64(1024); at < 1024+128; at += 3 {
		superblock = append(superblock, at)
	}
	for i, id := range p.DiffIDs {
		path := filepath.Join(s.layerDir(id), imageFile)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		places := superblock
		for range 150 {
			places = append(places, rand.Int64N(int64(len(whole))))
		}
		for _, at := range places {
			bit := byte(1) << rand.IntN(8)
			writeAt(t, path, at, []byte{whole[at] ^ bit})
			s.trees.drop(id)
			got := verify(t, s, VerifyOptions{Images: []string{img.ID}})
			if len(got.Damaged) != 1 || got.Damaged[0].Layer != id {
				t.Errorf("layer %d with bit %#x at %d flipped: Verify() = %+v; want it damaged", i, bit, at, got)
			}
			useDamaged(t, s, img.ID)
			writeAt(t, path, at, whole[at:at+1])
		}
		s.trees.drop(id)
		for name, harm := range map[string]func() error{
			"superblock": func() error { return flip(path, 1024) }, "data": func() error { return flip(path, int64(len(whole)/2)) },
			"shorter": func() error { return os.Truncate(path, int64(len(whole)/2)) }, "longer": func() error { return os.Truncate(path, int64(len(whole)+4096)) },
			"empty": func() error { return os.Truncate(path, 0) }, "missing": func() error { return os.Remove(path) },
			"garbage": func() error { return os.WriteFile(path, []byte(incompressible(len(whole), 3)), 0o600) },
		} {
			if err := harm(); err != nil {
				t.Fatal(err)
			}
			s.trees.drop(id)
			useDamaged(t, s, img.ID)
			if got := verify(t, s, VerifyOptions{Repair: true}); len(got.Damaged) != 1 || !got.Damaged[0].Repaired {
				t.Errorf("layer %d, %s: Verify(Repair) = %+v; want it repaired", i, name, got)
			}
			if b, err := os.ReadFile(inRootfs(t, s, img.ID, RootfsOptions{Readonly: true}) + "/small"); string(b) != "small" {
				t.Errorf("layer %d, %s: small after the repair = %q, %v", i, name, b, err)
			}
			if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, whole) {
				t.Errorf("layer %d, %s: the image after the repair has %d bytes, %v; want the same as at first", i, name, len(again), err)
			}
			if err := s.Collect(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if left := names(t, s.path("damaged")); len(left) != 0 {
				t.Errorf("layer %d, %s: left in damaged: %v", i, name, left)
			}
		}
	}
	// A store that is opened with such a layer has the others.
	other := add(t, r, "other", "v1", simple("x"))
	mustPull(t, s, r.Host()+"/other:v1")
	if err := errors.Join(s.Close(), os.Truncate(filepath.Join(s.layerDir(p.DiffIDs[0]), imageFile), 100)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.cfg.Root, asImages)
	if got := s.List(); len(got) != 1 || got[0].ID != other.ID.String() || len(s.Problems()) == 0 {
		t.Errorf("after the loss of an image's layer there are %v, problems %v; want the other image", got, s.Problems())
	}
}

func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	b[0] ^= 0x55
	_, werr := f.WriteAt(b, at)
	return errors.Join(err, werr, f.Close())
}

// useDamaged does with the image what containers would, whatever comes of it.
func useDamaged(t *testing.T, s *Store, id string) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f, err := s.Rootfs(t.Context(), id, "", RootfsOptions{Readonly: true})
		if err != nil {
			return
		}
		defer f.Close()
		// Its errors are the kernel's to choose, and a wrong content may be none.
		_ = filepath.WalkDir(procPath(f)+"/.", func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if in, err := os.Open(path); err == nil {
					_, _ = io.Copy(io.Discard, io.LimitReader(in, 4<<20))
					in.Close()
				}
			}
			return nil
		})
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("a damaged image cannot be read to its end within 30 seconds")
	}
}

// TestMountOnce: whoever asks at the same time gets the same mount, and a failure is not kept.
func TestMountOnce(t *testing.T) {
	c := treeCache{m: map[digest.Digest]*imageMount{}, idle: time.Hour, held: func() map[digest.Digest]bool { return nil }}
	dir := t.TempDir()
	id := digest.FromString("layer")
	var mounts atomic.Int32
	enter := make(chan struct{})
	mount := func() (*os.File, error) {
		mounts.Add(1)
		<-enter
		return os.Open(dir)
	}
	var all sync.WaitGroup
	got := make([]*imageMount, 16)
	for i := range got {
		all.Go(func() {
			m, err := c.get(id, mount)
			if err != nil {
				t.Error(err)
				return
			}
			got[i] = m
		})
	}
	time.Sleep(10 * time.Millisecond)
	close(enter)
	all.Wait()
	for _, m := range got {
		if m != got[0] {
			t.Fatal("two mounts of one layer")
		}
	}
	if mounts.Load() != 1 {
		t.Errorf("mounted %d times; want once", mounts.Load())
	}
	c.drop(id)
	if _, err := got[0].root.Stat(); err != nil {
		t.Errorf("a mount that is in use was closed: %v", err)
	}
	for _, m := range got {
		c.put(m)
	}
	if _, err := got[0].root.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the mount of a layer that is gone: %v; want it closed with its last user", err)
	}
	bad := errors.New("bad")
	if _, err := c.get(id, func() (*os.File, error) { return nil, bad }); !errors.Is(err, bad) {
		t.Errorf("get = %v; want the mount's error", err)
	}
	m, err := c.get(id, mount)
	if err != nil || mounts.Load() != 2 {
		t.Fatalf("get after a failure = %v, %d mounts; want another one", err, mounts.Load())
	}
	// Dropped while it is being mounted: the one who asked has it still, the next gets another.
	slow := make(chan struct{})
	other := digest.FromString("other")
	var first *imageMount
	all.Go(func() {
		first, err = c.get(other, func() (*os.File, error) { <-slow; return os.Open(dir) })
		if err != nil {
			t.Error(err)
		}
	})
	for c.count() != 2 {
		time.Sleep(time.Millisecond)
	}
	c.drop(other)
	second, serr := c.get(other, mount)
	close(slow)
	all.Wait()
	if serr != nil || first == second {
		t.Errorf("get after drop = %v; want another mount", serr)
	}
	c.put(first)
	if _, err := first.root.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("what was dropped while it was mounted: %v; want it closed", err)
	}
	c.put(second)
	c.put(m)
	c.close()
	if _, err := m.root.Stat(); !errors.Is(err, os.ErrClosed) || c.count() != 0 {
		t.Errorf("after close: %v, %d mounts; want none", err, c.count())
	}
	if _, err := c.get(id, mount); !errors.Is(err, ErrClosed) {
		t.Errorf("get of a closed cache = %v; want ErrClosed", err)
	}
}

func (c *treeCache) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.m)
}

// TestIdleMounts: an image stays mounted as long as a container has it, and a while longer.
func TestIdleMounts(t *testing.T) {
	needErofs(t)
	r := newRegistry(t, registry.Options{})
	for _, name := range []string{"held", "idle"} {
		add(t, r, name, "v1", registry.Image{Layers: []registry.Layer{registry.Files(map[string]string{name: name})}})
	}
	s := openStore(t, t.TempDir(), asImages)
	s.trees.idle = 20 * time.Millisecond
	held := mustPull(t, s, r.Host()+"/held:v1")
	if err := s.Hold(held.ID, "ctr"); err != nil {
		t.Fatal(err)
	}
	idle := mustPull(t, s, r.Host()+"/idle:v1")
	for _, img := range []*Image{held, idle} {
		f, err := s.Rootfs(t.Context(), img.ID, t.TempDir(), RootfsOptions{})
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	wait := func(want int, what string) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for s.trees.count() != want && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(3 * s.trees.idle)
		if n := s.trees.count(); n != want {
			t.Fatalf("%s: %d images are mounted; want %d", what, n, want)
		}
	}
	wait(1, "one of two is held")
	if err := s.Release("ctr"); err != nil {
		t.Fatal(err)
	}
	wait(0, "none is held")
}

// TestRemovalFreesDisk: what is removed does not stay on the disk for being mounted, but where a container has it.
func TestRemovalFreesDisk(t *testing.T) {
	needErofs(t)
	disk := loopDisk(t, []string{"mkfs.ext4", "-q", "-F"}, "defaults")
	const size = 20 << 20
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", simple(incompressible(size, 1)))
	s := openStore(t, filepath.Join(disk, "store"), asImages)
	free := func() uint64 {
		t.Helper()
		n, _, err := sys.FreeSpace(disk)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ref := r.Host() + "/app:v1"
	for _, running := range []bool{false, true} {
		if err := syscallSync(disk); err != nil {
			t.Fatal(err)
		}
		before := free()
		img := mustPull(t, s, ref)
		var root *os.File
		if err := s.Hold(img.ID, "ctr"); err != nil {
			t.Fatal(err)
		}
		root, err := s.Rootfs(t.Context(), img.ID, filepath.Join(disk, fmt.Sprint("ctr", running)), RootfsOptions{Readonly: true})
		if err != nil {
			t.Fatal(err)
		}
		if !running {
			if err := errors.Join(root.Close(), s.Release("ctr")); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(syscallSync(disk), s.Remove(t.Context(), ref)); err != nil {
			t.Fatal(err)
		}
		if running {
			if n := before - free(); n < size/2 {
				t.Errorf("under a container, an image of %d bytes takes %d after it was removed; want it to stay", size, n)
			}
			if err := errors.Join(root.Close(), s.Release("ctr")); err != nil {
				t.Fatal(err)
			}
		}
		deadline := time.Now().Add(10 * time.Second)
		for free()+size/10 < before && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
			_ = syscallSync(disk) // ext4 frees blocks with its journal
		}
		if n := free(); n+size/10 < before {
			t.Errorf("running %v: %d bytes are free after the removal, and %d were before; want them back", running, n, before)
		}
	}
}

func syscallSync(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return sys.Syncfs(f)
}

// TestOneFileSystem: in a container's root everything has one device number, as programs that stay on one file system
// expect, and a hard link is one file before and after it is written to.
func TestOneFileSystem(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	links := registry.Entries([]tar.Header{
		{Name: "d/a", Typeflag: tar.TypeReg, Mode: 0o644}, {Name: "d/b", Typeflag: tar.TypeLink, Linkname: "d/a", Mode: 0o644},
		{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "d", Mode: 0o777},
	}, []string{incompressible(100<<10, 1)})
	add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{links, registry.Files(map[string]string{"d/c": "c", "e/f": incompressible(100<<10, 2)})}})
	s := openStore(t, t.TempDir())
	img := mustPull(t, s, r.Host()+"/app:v1")
	at := inRootfs(t, s, img.ID, RootfsOptions{})
	if err := os.WriteFile(at+"/new", []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	stat := func(name string) *syscall.Stat_t {
		t.Helper()
		st, err := os.Lstat(at + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return st.Sys().(*syscall.Stat_t)
	}
	one := func(when string) {
		t.Helper()
		inodes := map[uint64]string{}
		for _, name := range []string{".", "d", "d/a", "d/c", "l", "e", "e/f", "new", "etc/hosts"} {
			st := stat(name)
			if st.Dev != stat(".").Dev {
				t.Errorf("%s: %s is on device %#x; want that of the root directory, %#x", when, name, st.Dev, stat(".").Dev)
			}
			if other, ok := inodes[st.Ino]; ok {
				t.Errorf("%s: %s and %s have the inode number %d", when, name, other, st.Ino)
			}
			inodes[st.Ino] = name
		}
	}
	one("at first")
	if a, b := stat("d/a"), stat("d/b"); a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("a hard link: inodes %d and %d with %d links; want one with two", a.Ino, b.Ino, a.Nlink)
	}
	count := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = at + "/."
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return string(out)
	}
	if x, all := count("du", "-sx", "."), count("du", "-s", "."); x != all {
		t.Errorf("du -x . finds %q; want %q, as without -x", x, all)
	}
	if x, all := count("find", ".", "-xdev"), count("find", "."); x != all {
		t.Errorf("find . -xdev finds %q; want %q", x, all)
	}
	if err := os.WriteFile(at+"/d/a", []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	one("after a copy up")
	if n := strings.Count(count("sh", "-c", "tar cf - --one-file-system . | tar tf -"), "\n"); n != strings.Count(count("find", "."), "\n") {
		t.Errorf("tar --one-file-system has %d entries", n)
	}
	count("rm", "-rf", "--one-file-system", "d")
	if _, err := os.Lstat(at + "/d"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("d after rm --one-file-system: %v; want it gone", err)
	}
}
