package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// TestMain lets the test binary be the process that is killed.
func TestMain(m *testing.M) {
	if root := os.Getenv("TEST_PULL_INTO"); root != "" {
		pullForever(root, strings.Fields(os.Getenv("TEST_PULL_REFS")))
		return
	}
	if ref := os.Getenv("TEST_PULL_BY_PROXY"); ref != "" {
		pullByProxy(ref)
		return
	}
	os.Exit(m.Run())
}

func pullForever(root string, refs []string) {
	s, err := Open(background(), Config{Root: root, RegistryConfigDir: []string{}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s.partialMinSize, s.partialWorth = 1, 0 // everything is put aside
	if os.Getenv("TEST_PULL_ONCE") != "" {
		if _, err := s.PullPlatforms(background(), refs[0], nil, PullOptions{AllPlatforms: true}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		time.Sleep(time.Hour)
	}
	for {
		for _, ref := range refs {
			if _, err := s.Pull(background(), ref, nil, PullOptions{AllPlatforms: strings.Contains(ref, "/multi:")}); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		for _, ref := range refs {
			if err := s.Remove(background(), ref); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
}

// TestKillAndReopen kills a process that pulls and removes, at any moment, and looks at what is left: every image
// that is listed is whole, and nothing else stays.
func TestKillAndReopen(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	base := registry.Files(map[string]string{"base": incompressible(500<<10, 9)})
	var refs []string
	for i := range 4 {
		add(t, r, "app", fmt.Sprintf("v%d", i), registry.Image{Layers: []registry.Layer{base,
			registry.Files(map[string]string{"own": incompressible(300<<10, byte(i)), "d/x": ""})}})
		refs = append(refs, fmt.Sprintf("%s/app:v%d", r.Host(), i))
	}
	gz := registry.Files(map[string]string{"unpacked/f": incompressible(200<<10, 7)})
	gz.Compression = registry.Gzip
	addArtifact(t, r, "thing", "v1", text("d/f", incompressible(400<<10, 8)), text("g", "g"), registry.Blob{Body: string(gz.Blob()), MediaType: ocispec.MediaTypeImageLayerGzip})
	multi := r.Host() + "/multi:v1"
	addPlatforms(t, r, "multi", "v1", incompressible(200<<10, 5), here(), riscv, power)
	refs = append(refs, r.Host()+"/thing:v1", multi)
	root := t.TempDir()
	var seen int
	window := 250 * time.Millisecond
	rounds := 12
	if n, err := strconv.Atoi(os.Getenv("TEST_KILL_ROUNDS")); err == nil {
		rounds = n
	}
	for range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TEST_PULL_INTO="+root, "TEST_PULL_REFS="+strings.Join(refs, " "))
		var out bytes.Buffer
		cmd.Stderr = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(60*time.Millisecond + time.Duration(rand.Int64N(int64(window))))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || out.Len() > 0 {
			t.Fatalf("the pulling process ended by itself: %s", out.String())
		}
		s := openStore(t, root)
		if p := s.Problems(); len(p) > 0 {
			t.Errorf("Problems() = %v; want none", p)
		}
		if left := names(t, filepath.Join(root, "ingest")); len(left) > 0 {
			t.Errorf("left in ingest: %v", left)
		}
		every, err := s.ListAll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range every {
			seen++
			if err := s.Export(t.Context(), io.Discard, []string{img.ID}, ExportOptions{}); err != nil {
				t.Errorf("image %s is not whole: %v", img.RepoTags, err)
			}
			if img.Artifact != nil && len(volume(t, s, img.ID)) != 3 {
				t.Errorf("artifact %s is not whole", img.RepoTags)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if seen == 0 { // a slow machine
			window = min(2*window, 10*time.Second)
		}
	}
	if seen == 0 {
		t.Error("no image was ever complete: the test kills too early")
	}
	s := openStore(t, root)
	for _, ref := range refs {
		mustPull(t, s, ref)
	}
	pullPlatforms(t, s, multi, PullOptions{AllPlatforms: true})
	wantPlatforms(t, s, multi, here(), power, riscv)
	sameImages(t, s, openStore(t, t.TempDir()), refs)
	t.Logf("killed %d times, %d images were whole", rounds, seen)
	for _, ref := range refs {
		if err := s.Remove(t.Context(), ref); err != nil {
			t.Error(err)
		}
	}
	if err := s.Collect(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if left := layersOnDisk(t, root); len(left) != 0 {
		t.Errorf("layers left: %v", left)
	}
}

// sameImages fails the test unless the images of two stores, the second of which pulls them now, export alike.
func sameImages(t *testing.T, a, b *Store, refs []string) {
	t.Helper()
	for _, ref := range refs {
		mustPull(t, b, ref)
		var sums [2][32]byte
		for i, s := range []*Store{a, b} {
			h := sha256.New()
			if err := s.Export(t.Context(), h, []string{ref}, ExportOptions{}); err != nil {
				t.Fatal(err)
			}
			h.Sum(sums[i][:0])
		}
		if sums[0] != sums[1] {
			t.Errorf("%s is another image than one that was pulled in peace", ref)
		}
	}
}

func TestOpenTwice(t *testing.T) {
	root := t.TempDir()
	openStore(t, root)
	if _, err := Open(t.Context(), Config{Root: root}); !errors.Is(err, ErrStoreInUse) {
		t.Errorf("Open of an open store = %v; want ErrStoreInUse", err)
	}
	if _, err := Open(t.Context(), Config{Root: "relative"}); err == nil {
		t.Error("Open of a relative root = nil; want an error")
	}
}

// TestOpenDamaged: damage costs the image concerned, is reported, and a pull mends it.
func TestOpenDamaged(t *testing.T) {
	needRoot(t)
	for name, damage := range map[string]func(img, layer string) error{
		"no record":        func(img, _ string) error { return os.Remove(filepath.Join(img, "image.json")) },
		"half a record":    func(img, _ string) error { return os.Truncate(filepath.Join(img, "image.json"), 100) },
		"another's record": func(img, _ string) error { return edit(filepath.Join(img, "image.json"), "sha256:", "sha256:0") },
		"other config": func(img, _ string) error {
			return edit(filepath.Join(img, "image.json"), `"configRaw":"`, `"configRaw":"AAAA`)
		},
		"no layer":     func(_, l string) error { return os.RemoveAll(l) },
		"no tree":      func(_, l string) error { return os.RemoveAll(filepath.Join(l, "fs")) },
		"half a layer": func(_, l string) error { return os.Truncate(filepath.Join(l, "layer.json"), 10) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, registry.Options{})
			bad := add(t, r, "bad", "v1", simple("x"))
			good := add(t, r, "good", "v1", simple("y"))
			root := t.TempDir()
			s := openStore(t, root)
			mustPull(t, s, r.Host()+"/bad:v1")
			mustPull(t, s, r.Host()+"/good:v1")
			img, l := s.imageDir(bad.ID), s.layerDir(bad.DiffIDs[0])
			if err := errors.Join(s.Close(), damage(img, l)); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, root)
			if got := s.List(); len(got) != 1 || got[0].ID != good.ID.String() {
				t.Errorf("List() = %v; want the undamaged image", got)
			}
			if p := s.Problems(); len(p) == 0 {
				t.Error("Problems() is empty; want the damage")
			}
			mustPull(t, s, r.Host()+"/bad:v1")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, root)
			if p, n := s.Problems(), len(s.List()); len(p) != 0 || n != 2 {
				t.Errorf("after pulling again: %d images, problems %v; want 2 and none", n, p)
			}
		})
	}
}

func edit(path, old, to string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, bytes.Replace(b, []byte(old), []byte(to), 1), 0o600)
}

// TestLayersOfAnotherBoot: layers that no image needs may not have reached the disk before the machine went down.
func TestLayersOfAnotherBoot(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", simple("x"))
	root := t.TempDir()
	s := openStore(t, root)
	mustPull(t, s, r.Host()+"/app:v1")
	boot := s.boot
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(root, "images", "sha256", p.ID.Encoded())
	check := func(want int) {
		t.Helper()
		s := openStore(t, root)
		if got := len(layersOnDisk(t, root)); got != want {
			t.Errorf("%d layers; want %d", got, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	layerJSON := filepath.Join(root, "layers", "sha256", p.DiffIDs[0].Encoded(), "layer.json")
	if err := edit(layerJSON, boot, "another-boot"); err != nil {
		t.Fatal(err)
	}
	check(1) // an image needs it, so it was synced
	if err := os.RemoveAll(record); err != nil {
		t.Fatal(err)
	}
	if err := edit(layerJSON, "another-boot", boot); err != nil {
		t.Fatal(err)
	}
	check(1) // this boot's
	if err := edit(layerJSON, boot, "another-boot"); err != nil {
		t.Fatal(err)
	}
	check(0)
}

func TestTagMoves(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	old := add(t, r, "app", "v1", simple("old"))
	root := t.TempDir()
	s := openStore(t, root)
	ref := r.Host() + "/app:v1"
	mustPull(t, s, ref)
	neu := add(t, r, "app", "v1", simple("new"))
	mustPull(t, s, ref)
	check := func(s *Store) {
		t.Helper()
		got := map[string][]string{}
		for _, i := range s.List() {
			got[i.ID] = i.RepoTags
		}
		if diff := cmp.Diff(map[string][]string{old.ID.String(): nil, neu.ID.String(): {ref}}, got); diff != "" {
			t.Errorf("tags (-want +got):\n%s", diff)
		}
		if i, err := s.Get(ref); err != nil || i.ID != neu.ID.String() {
			t.Errorf("Get(%s) = %v, %v; want the new image", ref, i, err)
		}
	}
	check(s)
	// A crash between the two writes leaves the tag with both.
	s.mu.RLock()
	r1 := s.images[old.ID].clone()
	s.mu.RUnlock()
	r1.add(time.Now().Add(-time.Hour), old.Manifest.Digest, ref)
	if err := errors.Join(s.Close(), writeRecord(s.imageDir(old.ID), r1)); err != nil { // settled, so nobody else writes it
		t.Fatal(err)
	}
	s = openStore(t, root)
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check(openStore(t, root))
}

func TestRemoveNames(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", simple("x"))
	add(t, r, "app", "v2", simple("x"))
	add(t, r, "other", "v1", simple("x"))
	s := openStore(t, t.TempDir())
	pull := func() {
		for _, n := range []string{"app:v1", "app:v2", "other:v1"} {
			mustPull(t, s, r.Host()+"/"+n)
		}
	}
	tags := func() string {
		i, err := s.Get(p.ID.String())
		if err != nil {
			return "none"
		}
		return strings.ReplaceAll(strings.Join(i.RepoTags, " "), r.Host()+"/", "")
	}
	for _, tc := range []struct{ remove, want string }{
		{r.Host() + "/app:v1", "app:v2 other:v1"},
		{r.Host() + "/app@" + p.Manifest.Digest.String(), "other:v1"},
		{r.Host() + "/other:v1", "none"},
	} {
		if tc.want == "app:v2 other:v1" {
			pull()
		}
		if err := s.Remove(t.Context(), tc.remove); err != nil || tags() != tc.want {
			t.Errorf("Remove(%s) = %v leaves %s; want %s", tc.remove, err, tags(), tc.want)
		}
	}
	pull()
	if err := s.Remove(t.Context(), p.ID.Encoded()[:10]); err != nil || tags() != "none" {
		t.Errorf("Remove(ID) = %v leaves %s; want none", err, tags())
	}
	if err := s.Remove(t.Context(), "not//a/ref"); !errors.Is(err, ErrReference) {
		t.Errorf("Remove(not//a/ref) = %v; want ErrReference", err)
	}
}

// TestHold: an image that a container has loses its names when it is removed, and its layers when the container goes,
// also when the daemon restarts in between.
func TestHold(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", simple("x"))
	root := t.TempDir()
	s := openStore(t, root)
	ref := r.Host() + "/app:v1"
	mustPull(t, s, ref)
	if err := s.Hold(ref, "ctr"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), p.ID.String()); err != nil {
		t.Fatal(err)
	}
	held := func(s *Store, when string) {
		t.Helper()
		if n := len(s.List()); n != 0 {
			t.Errorf("%s: List has %d images; want none", when, n)
		}
		if img, err := s.Held(p.ID.String()); err != nil || img.ID != p.ID.String() || len(img.RepoTags) != 0 {
			t.Errorf("%s: Held() = %+v, %v; want the image without names", when, img, err)
		}
		fs := inRootfs(t, s, p.ID.String(), RootfsOptions{Readonly: true})
		if b, err := os.ReadFile(fs + "/f"); string(b) != "x" {
			t.Errorf("%s: f = %q, %v; want x", when, b, err)
		}
	}
	held(s, "removed")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, root)
	if err := s.Hold(p.ID.String(), "ctr"); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	held(s, "restarted")
	// A pull brings it back to life.
	mustPull(t, s, ref)
	if _, err := s.Get(ref); err != nil {
		t.Error(err)
	}
	if err := errors.Join(s.Remove(t.Context(), ref), s.Release("ctr"), s.Release("ctr")); err != nil {
		t.Error(err)
	}
	if left := append(layersOnDisk(t, root), names(t, filepath.Join(root, "images", "sha256"))...); len(left) != 0 {
		t.Errorf("left after Release: %v", left)
	}
	if err := s.Hold(p.ID.String(), "ctr2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Hold of what is gone = %v; want ErrNotFound", err)
	}
}

func TestSharedLayersStay(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	shared := registry.Files(map[string]string{"f": "x"})
	a := add(t, r, "a", "v1", registry.Image{Layers: []registry.Layer{shared, registry.Files(map[string]string{"a": ""})}})
	add(t, r, "b", "v1", registry.Image{Layers: []registry.Layer{shared, registry.Files(map[string]string{"b": ""})}})
	s := openStore(t, t.TempDir())
	mustPull(t, s, r.Host()+"/a:v1")
	b := mustPull(t, s, r.Host()+"/b:v1")
	before, err := s.FSInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), a.ID.String()); err != nil {
		t.Fatal(err)
	}
	if n := len(layersOnDisk(t, s.cfg.Root)); n != 2 {
		t.Errorf("%d layers; want 2", n)
	}
	if b, err := os.ReadFile(inRootfs(t, s, b.ID, RootfsOptions{}) + "/f"); string(b) != "x" {
		t.Errorf("f = %q, %v; want x", b, err)
	}
	if after, err := s.FSInfo(t.Context()); err != nil || after.Bytes >= before.Bytes || after.Inodes >= before.Inodes {
		t.Errorf("FSInfo() = %+v, %v; want less than %+v", after, err, before)
	}
}

func TestGetAmbiguous(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	s := openStore(t, t.TempDir())
	add(t, r, "app", "v1", simple("x"))
	real := digest.Digest(mustPull(t, s, r.Host()+"/app:v1").ID)
	// Another ID with the same beginning cannot be had by pulling.
	s.mu.Lock()
	s.views[digest.NewDigestFromEncoded(digest.SHA256, real.Encoded()[:60]+"0000")] = &Image{}
	s.mu.Unlock()
	if _, err := s.Get(real.Encoded()[:12]); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("Get(prefix of two) = %v; want ErrAmbiguous", err)
	}
	if _, err := s.Get(real.Encoded()); err != nil {
		t.Errorf("Get(the whole ID) = %v", err)
	}
	for _, ref := range []string{"", "UPPER", strings.Repeat("0", 64), "abc", "busybox", "sha256:zz"} {
		if i, err := s.Get(ref); err == nil {
			t.Errorf("Get(%q) = %v; want an error", ref, i)
		}
	}
}

func TestDirUsage(t *testing.T) {
	dir := t.TempDir()
	if b, n, err := DirUsage(t.Context(), filepath.Join(dir, "none")); b != 0 || n != 0 || err != nil {
		t.Errorf("DirUsage(none) = %d, %d, %v; want nothing", b, n, err)
	}
	body := []byte(incompressible(100<<10, 1))
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/b"), 0o755), os.WriteFile(filepath.Join(dir, "a/b/f"), body, 0o644),
		os.Link(filepath.Join(dir, "a/b/f"), filepath.Join(dir, "a/l")), os.Symlink("/", filepath.Join(dir, "s"))); err != nil {
		t.Fatal(err)
	}
	b, n, err := DirUsage(t.Context(), dir)
	if err != nil || n != 5 || b < 100<<10 || b > 150<<10 {
		t.Errorf("DirUsage() = %d bytes, %d inodes, %v; want about 100 KiB in 5", b, n, err)
	}
}

func FuzzManifest(f *testing.F) {
	p := Config{Root: "/"}
	p, err := p.withDefaults()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"sha256:`+strings.Repeat("0", 64)+`","size":2},"layers":[]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:`+strings.Repeat("0", 64)+`","platform":{"os":"linux","architecture":"amd64"}}]}`), "application/vnd.oci.image.index.v1+json")
	f.Fuzz(func(t *testing.T, raw []byte, mediaType string) {
		next, m, err := parseManifest(raw, mediaType, *p.Platform)
		if err != nil {
			return
		}
		if next.Digest.Validate() != nil || next.Size < 0 {
			t.Errorf("parseManifest took descriptor %+v", next)
		}
		if m != nil && len(m.layers) > maxLayers {
			t.Errorf("parseManifest took %d layers", len(m.layers))
		}
	})
}

func FuzzRecord(f *testing.F) {
	config := []byte(`{"rootfs":{"diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`)
	id := digest.FromBytes(config)
	f.Add(mustJSON(f, record{Version: recordVersion, ID: id, ConfigRaw: config}))
	empty := ocispec.DescriptorEmptyJSON
	manifest := mustJSON(f, ocispec.Manifest{Config: empty, Layers: []ocispec.Descriptor{empty, {Digest: id, Annotations: map[string]string{ocispec.AnnotationTitle: "x"}}}})
	artifact := digest.FromBytes(manifest)
	f.Add(mustJSON(f, record{Version: recordVersion, Kind: kindArtifact, ID: artifact, Manifest: ocispec.Descriptor{Digest: artifact}, ManifestRaw: manifest, ConfigRaw: empty.Data}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRecord(b, id); err == nil && !bytes.Equal(r.ConfigRaw, config) {
			t.Errorf("parseRecord took another configuration: %s", r.ConfigRaw)
		}
		if r, err := parseRecord(b, artifact); err == nil && (!bytes.Equal(r.ManifestRaw, manifest) || !bytes.Equal(r.ConfigRaw, empty.Data) || len(r.parts) != 1) {
			t.Errorf("parseRecord took another manifest: %s", r.ManifestRaw)
		}
	})
}
