package image

import (
	"archive/tar"
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// allKinds is a layer with everything that verifying has to understand.
func allKinds() registry.Layer {
	return registry.Entries([]tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o751, Uid: 7},
		{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o640, Gid: 42},
		{Name: "etc/again", Typeflag: tar.TypeReg, Mode: 0o600},
		{Name: "etc/hard", Typeflag: tar.TypeLink, Linkname: "etc/passwd", Mode: 0o644},
		{Name: "bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin", Mode: 0o777},
		{Name: "usr/bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/su", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1, Gid: 2},
		{Name: "run/fifo", Typeflag: tar.TypeFifo, Mode: 0o600},
		{Name: "dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
		{Name: "var/.wh.gone", Typeflag: tar.TypeReg},
		{Name: "var/.wh..wh..opq", Typeflag: tar.TypeReg},
		{Name: "etc/again", Typeflag: tar.TypeReg, Mode: 0o644, Uid: 3},
	}, []string{2: "root", 3: "one", 7: "su", 12: "two"})
}

func verify(t *testing.T, s *Store, o VerifyOptions) *VerifyReport {
	t.Helper()
	r, err := s.Verify(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestVerifyFindsDamage(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{allKinds(), registry.Files(map[string]string{"b": "b"})}})
	for name, harm := range map[string]func(fs string) error{
		"":            func(string) error { return nil },
		"content":     func(fs string) error { return os.WriteFile(fs+"/etc/passwd", []byte("rOOt"), 0o640) },
		"size":        func(fs string) error { return os.Truncate(fs+"/usr/bin/su", 1) },
		"missing":     func(fs string) error { return os.Remove(fs + "/usr/bin/su") },
		"fifo":        func(fs string) error { return os.Remove(fs + "/run/fifo") },
		"link":        func(fs string) error { return os.Remove(fs + "/bin") },
		"target":      func(fs string) error { return replaceLink(fs+"/bin", "usr") },
		"mode":        func(fs string) error { return os.Chmod(fs+"/usr/bin/su", 0o755) },
		"owner":       func(fs string) error { return os.Lchown(fs+"/etc", 0, 0) },
		"type":        func(fs string) error { return replaceLink(fs+"/run/fifo", "x") },
		"directory":   func(fs string) error { return os.RemoveAll(fs + "/usr") },
		"frame":       func(fs string) error { return os.Truncate(filepath.Dir(fs)+"/frame", 40) },
		"no frame":    func(fs string) error { return os.Remove(filepath.Dir(fs) + "/frame") },
		"replaced":    func(fs string) error { return os.RemoveAll(filepath.Dir(fs) + "/replaced") },
		"not a frame": func(fs string) error { return os.WriteFile(filepath.Dir(fs)+"/frame", []byte("x"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), directories) // an image's files cannot be changed one by one
			img := mustPull(t, s, r.Host()+"/app:v1")
			layer := p.DiffIDs[0]
			if err := harm(filepath.Join(s.layerDir(layer), "fs")); err != nil {
				t.Fatal(err)
			}
			got := verify(t, s, VerifyOptions{Images: []string{img.ID}})
			if got.Layers != 2 || name == "" && len(got.Damaged) != 0 {
				t.Fatalf("Verify() = %+v; want two layers and nothing else", got)
			}
			if name == "" {
				return
			}
			if len(got.Damaged) != 1 || got.Damaged[0].Layer != layer || got.Damaged[0].Repaired || got.Damaged[0].Images[0] != img.RepoTags[0] {
				t.Fatalf("Verify() = %+v; want layer %s of %s damaged", got, layer, img.RepoTags[0])
			}
			if got := verify(t, s, VerifyOptions{Repair: true}); len(got.Damaged) != 1 || !got.Damaged[0].Repaired {
				t.Fatalf("Verify(Repair) = %+v; want it repaired", got)
			}
			if got := verify(t, s, VerifyOptions{}); len(got.Damaged) != 0 {
				t.Errorf("Verify after the repair = %+v; want nothing", got)
			}
			if left := names(t, filepath.Join(s.cfg.Root, "ingest")); len(left) != 0 {
				t.Errorf("left in ingest: %v", left)
			}
		})
	}
}

func replaceLink(path, target string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// TestRepairUnderContainer: a container goes on with the layer that it has mounted, until it is gone.
func TestRepairUnderContainer(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{registry.Files(map[string]string{"a": "good", "b": "b"})}})
	root := t.TempDir()
	s := openStore(t, root)
	img := mustPull(t, s, r.Host()+"/app:v1")
	if err := s.Hold(img.ID, "c1"); err != nil {
		t.Fatal(err)
	}
	mounted := inRootfs(t, s, img.ID, RootfsOptions{})
	spoil(t, s, p.DiffIDs[0], "a", "good", "gOOd")
	got := verify(t, s, VerifyOptions{Repair: true})
	if len(got.Damaged) != 1 || !cmp.Equal(got.Damaged[0].Running, []string{"c1"}) {
		t.Fatalf("Verify() = %+v; want it repaired, and the container named", got)
	}
	collect := func() []string {
		t.Helper()
		if err := s.Collect(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		return names(t, filepath.Join(root, "damaged"))
	}
	if left := collect(); len(left) != 1 {
		t.Fatalf("damaged/ has %v; want the layer that is mounted", left)
	}
	if b, err := os.ReadFile(mounted + "/b"); string(b) != "b" {
		t.Errorf("in the running container, b = %q, %v; want it as it was", b, err)
	}
	if b, err := os.ReadFile(inRootfs(t, s, img.ID, RootfsOptions{}) + "/a"); string(b) != "good" {
		t.Errorf("in a new container, a = %q, %v; want good", b, err)
	}
	if err := s.Release("c1"); err != nil {
		t.Fatal(err)
	}
	if left := collect(); len(left) != 0 {
		t.Errorf("damaged/ has %v after the release; want nothing", left)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, root)
	if got := verify(t, s, VerifyOptions{}); len(got.Damaged) != 0 || got.Layers != 1 {
		t.Errorf("Verify after reopening = %+v; want one good layer", got)
	}
}

func TestRepairFails(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", simple("right"))
	s := openStore(t, t.TempDir())
	img := mustPull(t, s, r.Host()+"/app:v1")
	spoil(t, s, p.DiffIDs[0], "f", "right", "wrong")
	r.SetFault(func(*http.Request) *registry.Fault { return &registry.Fault{Status: http.StatusServiceUnavailable} })
	got := verify(t, s, VerifyOptions{Repair: true})
	if len(got.Damaged) != 1 || got.Damaged[0].Repaired || !strings.Contains(got.Damaged[0].Error, r.Host()) {
		t.Fatalf("Verify() without the registry = %+v; want an error that names it", got)
	}
	f := filepath.Join(s.layerDir(p.DiffIDs[0]), map[string]string{LayerErofs: imageFile, "": "fs/f"}[s.layers.get(p.DiffIDs[0]).Format])
	if b, err := os.ReadFile(f); !strings.Contains(string(b), "wrong") {
		t.Errorf("what was there has %d bytes, %v; want it left alone", len(b), err)
	}
	if _, err := s.Verify(t.Context(), VerifyOptions{Images: []string{"nothing"}}); err == nil {
		t.Error("Verify(nothing) = nil; want an error")
	}
	// A damaged layer that no image has must not become part of one.
	if err := os.RemoveAll(s.imageDir(p.ID)); err != nil {
		t.Fatal(err)
	}
	s.change.Lock()
	s.mu.Lock()
	s.unpublish(p.ID)
	s.mu.Unlock()
	s.change.Unlock()
	if got := verify(t, s, VerifyOptions{Repair: true}); len(got.Damaged) != 1 || !got.Damaged[0].Repaired {
		t.Errorf("Verify() of a layer of no image = %+v; want it removed", got)
	}
	if left := layersOnDisk(t, s.cfg.Root); len(left) != 0 {
		t.Errorf("layers left: %v", left)
	}
	r.SetFault(nil)
	if again := mustPull(t, s, r.Host()+"/app:v1"); again.ID != img.ID {
		t.Errorf("Pull after that = %s; want %s", again.ID, img.ID)
	}
}

func TestFree(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	shared := registry.Files(map[string]string{"s": incompressible(50<<10, 1)})
	for _, name := range []string{"held", "pinned", "idle"} {
		add(t, r, name, "v1", registry.Image{Layers: []registry.Layer{shared, registry.Files(map[string]string{name: incompressible(20<<10, name[0])})}})
	}
	s := openStore(t, t.TempDir(), func(c *Config) { c.Pinned = []string{r.Host() + "/pinned:v1"} })
	ids := map[string]string{}
	for _, name := range []string{"held", "pinned", "idle"} {
		ids[name] = mustPull(t, s, r.Host()+"/"+name+":v1").ID
	}
	if err := s.Hold(ids["held"], "c1"); err != nil {
		t.Fatal(err)
	}
	part := s.path("partial", "sha256", strings.Repeat("a", 64))
	if err := os.MkdirAll(filepath.Dir(part), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(part, make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	use, err := s.DiskUse(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range use.Images {
		if i.Unique < 20<<10 || i.Unique > 40<<10 || i.Size-i.Unique < 50<<10 {
			t.Errorf("DiskUse of %v = %d alone of %d; want 20 KiB and 50 KiB shared", i.Names, i.Unique, i.Size)
		}
		if i.Pinned != (i.ID == ids["pinned"]) || len(i.Holders) == 1 != (i.ID == ids["held"]) {
			t.Errorf("DiskUse of %v: pinned %v, held by %v", i.Names, i.Pinned, i.Holders)
		}
	}
	if use.Layers != 4 || use.Partial < 5000 || use.LooseLayers != 0 {
		t.Errorf("DiskUse() = %+v; want four layers and a part of 5000 bytes", use)
	}
	free := func(o FreeOptions) *Freed {
		t.Helper()
		f, err := s.Free(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if f := free(FreeOptions{DryRun: true, MinAge: time.Hour, Unused: true}); len(f.Images)+len(f.Layers)+len(f.Files) != 0 {
		t.Errorf("Free of what is an hour old = %+v; want nothing", f)
	}
	if f := free(FreeOptions{DryRun: true}); len(f.Images)+len(f.Layers) != 0 || len(f.Files) != 1 {
		t.Errorf("Free without Unused = %+v; want the part alone", f)
	}
	before := len(layersOnDisk(t, s.cfg.Root))
	dry := free(FreeOptions{DryRun: true, Unused: true})
	if len(dry.Images) != 1 || dry.Images[0].ID != ids["idle"] || len(dry.Layers) != 1 || dry.Bytes < 25000 {
		t.Fatalf("Free(DryRun) = %+v; want the idle image, its own layer and the part", dry)
	}
	if _, err := os.Lstat(part); err != nil || len(layersOnDisk(t, s.cfg.Root)) != before {
		t.Fatalf("a dry run changed something: %v", err)
	}
	if d := cmp.Diff(dry, free(FreeOptions{Unused: true})); d != "" {
		t.Errorf("what was freed is not what would be (-would +was):\n%s", d)
	}
	if left := len(layersOnDisk(t, s.cfg.Root)); left != before-1 || len(s.List()) != 2 {
		t.Errorf("%d layers and %d images left; want %d and 2", left, len(s.List()), before-1)
	}
	if _, err := os.Lstat(part); !os.IsNotExist(err) {
		t.Errorf("the part of a download: %v; want it gone", err)
	}
	var buf bytes.Buffer
	if err := s.Export(t.Context(), &buf, []string{ids["pinned"]}, ExportOptions{}); err != nil {
		t.Errorf("Export of what stays: %v", err)
	}
}
