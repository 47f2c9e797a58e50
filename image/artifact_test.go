package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/image/layer"
)

func addArtifact(t testing.TB, r *registry.Server, repo, tag string, blobs ...registry.Blob) registry.Pushed {
	t.Helper()
	p, err := r.AddArtifact(repo, tag, "application/vnd.example.thing", blobs...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func text(title, body string) registry.Blob {
	return registry.Blob{Title: title, Body: body, MediaType: "text/plain"}
}

// filesIn are the files below dir, with their contents.
func filesIn(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir+"/.", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		all[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func volume(t testing.TB, s *Store, id string) map[string]string {
	t.Helper()
	return filesIn(t, inRootfs(t, s, id, RootfsOptions{Readonly: true}))
}

// kindsOfArtifacts are artifacts as their makers make them, and what a volume of each has.
func kindsOfArtifacts(t testing.TB, r *registry.Server) map[string]map[string]string {
	t.Helper()
	hex := func(body string) string { return digest.FromString(body).Encoded() }
	put := func(b string, mediaType string) ocispec.Descriptor {
		d, err := r.AddBlob([]byte(b))
		if err != nil {
			t.Fatal(err)
		}
		d.MediaType = mediaType
		return d
	}
	dir := registry.Files(map[string]string{"site/index.html": "<p>", "site/deep/x": "x"})
	gz, zst := dir, dir
	gz.Compression, zst.Compression = registry.Gzip, registry.Zstd
	unpacked := map[string]string{"site/index.html": "<p>", "site/deep/x": "x"}
	model := registry.Files(map[string]string{"model.safetensors": "weights"})
	chart := "a chart's archive"
	model.Compression = registry.Uncompressed

	addArtifact(t, r, "kinds", "empty")
	addArtifact(t, r, "kinds", "files", text("a.txt", "a"), text("dir/sub/b.txt", "b"), text("./dir/c", incompressible(200<<10, 3)), text("none", ""))
	// What `oras push` does without a media type.
	addArtifact(t, r, "kinds", "oras", registry.Blob{Title: "artifact.txt", Body: "hello\n", MediaType: ocispec.MediaTypeImageLayer},
		registry.Blob{Title: "block", Body: strings.Repeat("no header ", 400), MediaType: ocispec.MediaTypeImageLayer})
	addArtifact(t, r, "kinds", "orasdir", registry.Blob{Title: "site", Body: string(gz.Blob()), MediaType: ocispec.MediaTypeImageLayerGzip,
		Annotations: map[string]string{annotationUnpack: "true", "io.deis.oras.content.digest": digest.FromBytes(dir.Tar).String()}},
		text("beside", "b"))
	addArtifact(t, r, "kinds", "orasother", registry.Blob{Title: "site", Body: string(gz.Blob()), MediaType: "application/x.own", Annotations: map[string]string{annotationUnpack: "true"}})
	addArtifact(t, r, "kinds", "zstd", registry.Blob{Body: string(zst.Blob()), MediaType: ocispec.MediaTypeImageLayerZstd})
	addArtifact(t, r, "kinds", "tar", registry.Blob{Title: "site.tar", Body: string(dir.Tar), MediaType: ocispec.MediaTypeImageLayer}, text("site/over", "over"))
	addArtifact(t, r, "kinds", "docker", registry.Blob{Body: string(gz.Blob()), MediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip"})
	addArtifact(t, r, "kinds", "twice", text("", "same"), text("", "same"), text("named", "same"))
	addArtifact(t, r, "kinds", "model",
		registry.Blob{Body: string(model.Blob()), MediaType: "application/vnd.cncf.model.weight.v1.tar", Annotations: map[string]string{"org.cncf.model.filepath": "model.safetensors"}},
		registry.Blob{Body: "{}", MediaType: "application/vnd.cncf.model.weight.config.v1.raw", Annotations: map[string]string{"org.cncf.model.filepath": "config/config.json"}})
	helm := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, Config: put(`{"name":"web","version":"1"}`, "application/vnd.cncf.helm.config.v1+json"),
		Layers: []ocispec.Descriptor{put(chart, "application/vnd.cncf.helm.chart.content.v1.tar+gzip")},
	}
	if _, err := r.AddManifest("kinds", "helm", mustJSON(t, helm)); err != nil {
		t.Fatal(err)
	}
	// ORAS before image-spec 1.1: an image's configuration, and empty.
	old := helm
	old.Config = put("{}", ocispec.MediaTypeImageConfig)
	if _, err := r.AddManifest("kinds", "old", mustJSON(t, old)); err != nil {
		t.Fatal(err)
	}
	with := func(m map[string]string, name, body string) map[string]string {
		m = maps.Clone(m)
		m[name] = body
		return m
	}
	return map[string]map[string]string{
		"empty":   {},
		"files":   {"a.txt": "a", "dir/sub/b.txt": "b", "dir/c": incompressible(200<<10, 3), "none": ""},
		"oras":    {"artifact.txt": "hello\n", "block": strings.Repeat("no header ", 400)},
		"orasdir": with(unpacked, "beside", "b"), "orasother": unpacked, "zstd": unpacked, "docker": unpacked,
		"tar":   with(unpacked, "site/over", "over"),
		"twice": {hex("same"): "same", "named": "same"},
		"model": {"model.safetensors": "weights", "config/config.json": "{}"},
		"helm":  {hex(chart): chart}, "old": {hex(chart): chart},
	}
}

// TestArtifactKinds: each is pulled, seen as a volume, exported and imported with the digests that it had, and goes without
// a trace.
func TestArtifactKinds(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	for kind, want := range kindsOfArtifacts(t, r) {
		for _, snapshotter := range []func(*Config){overlay, native} {
			s := openStore(t, t.TempDir(), snapshotter)
			ref := r.Host() + "/kinds:" + kind
			img := mustPull(t, s, ref)
			if img.Artifact == nil || img.ID != img.ManifestDigest.String() || !slices.Equal(img.RepoTags, []string{ref}) || len(img.RepoDigests) != 1 {
				t.Fatalf("%s: Pull() = %+v; want an artifact with the ID of its manifest", kind, img)
			}
			if diff := cmp.Diff(want, volume(t, s, img.ID)); diff != "" {
				t.Errorf("%s, %s: a volume (-want +got):\n%s", kind, s.snapshotter.Name, diff)
			}
			if len(img.Artifact.Files)+len(img.Artifact.Unpacked) == 0 != (kind == "empty") {
				t.Errorf("%s: Artifact = %+v", kind, img.Artifact)
			}
			for _, f := range img.Artifact.Files {
				if body, ok := want[f.Name]; !ok || digest.FromString(body) != f.Digest || f.Size != int64(len(body)) {
					t.Errorf("%s: Artifact.Files has %+v; want what the volume has", kind, f)
				}
			}
			if img.Size <= 0 {
				t.Errorf("%s: Size = %d", kind, img.Size)
			}

			archive := export(t, s, ref)
			files, _ := tarFiles(t, archive, nil)
			for name, body := range files {
				if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && hex != "" && digest.FromString(body).Encoded() != hex {
					t.Errorf("%s: export has %s with other content", kind, name)
				}
			}
			if _, ok := files["manifest.json"]; ok {
				t.Errorf("%s: export has a manifest.json, for docker load", kind)
			}
			into := openStore(t, t.TempDir(), snapshotter)
			got, err := into.Import(t.Context(), bytes.NewReader(archive), ImportOptions{})
			if err != nil || len(got) != 1 || got[0].ID != img.ID || !slices.Equal(got[0].RepoTags, img.RepoTags) {
				t.Fatalf("%s: Import() = %+v, %v; want %s", kind, got, err, img.ID)
			}
			if diff := cmp.Diff(want, volume(t, into, img.ID)); diff != "" {
				t.Errorf("%s: a volume of what was imported (-want +got):\n%s", kind, diff)
			}
			if !bytes.Equal(export(t, into, ref), archive) {
				t.Errorf("%s: what was imported is exported as something else", kind)
			}

			if _, err := s.Rootfs(t.Context(), img.ID, t.TempDir(), RootfsOptions{}); !errors.Is(err, ErrArtifact) {
				t.Errorf("%s: Rootfs() = %v; want ErrArtifact", kind, err)
			}
			if err := s.Runnable(ref); !errors.Is(err, ErrArtifact) || !strings.Contains(err.Error(), img.Artifact.Type) || !strings.Contains(err.Error(), ref) {
				t.Errorf("%s: Runnable() = %v; want ErrArtifact with name and type", kind, err)
			}
			if rep := verify(t, s, VerifyOptions{}); len(rep.Damaged) != 0 {
				t.Errorf("%s: Verify() = %+v", kind, rep)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, s.cfg.Root, snapshotter)
			again, err := s.Get(ref)
			if err != nil || !cmp.Equal(again, img) {
				t.Errorf("%s: reopened: Get() = %s; want none", kind, cmp.Diff(img, again))
			}
			if err := s.Remove(t.Context(), ref); err != nil {
				t.Error(err)
			}
			isClean(t, s)
			if left := layersOnDisk(t, s.cfg.Root); len(left) != 0 {
				t.Errorf("%s: layers left: %v", kind, left)
			}
		}
	}
}

// TestArtifactModes: files and folders can be read by all, belong to root, and the mount is read-only.
func TestArtifactModes(t *testing.T) {
	needRoot(t)
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	r := newRegistry(t, registry.Options{})
	addArtifact(t, r, "app", "v1", text("d/e/f", "x"))
	s := openStore(t, t.TempDir())
	dir := inRootfs(t, s, mustPull(t, s, r.Host()+"/app:v1").ID, RootfsOptions{Readonly: true})
	for name, want := range map[string]fs.FileMode{".": fs.ModeDir | 0o755, "d": fs.ModeDir | 0o755, "d/e": fs.ModeDir | 0o755, "d/e/f": 0o644} {
		fi, err := os.Stat(dir + "/" + name)
		if err != nil || fi.Mode() != want || fi.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s: %v, %v; want %v", name, fi.Mode(), err, want)
		}
	}
	if err := os.WriteFile(dir+"/d/e/f", nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write = %v; want EROFS", err)
	}
}

// TestHostileArtifacts: each is refused, with an error that names the field and the reason, and nothing is left.
func TestHostileArtifacts(t *testing.T) {
	needRoot(t)
	outside := t.TempDir()
	long := strings.Repeat("x", 256)
	var deep []registry.Blob
	for i := range 100 {
		deep = append(deep, text(fmt.Sprint(i, "/", strings.Repeat("d/", 400), "x"), "x"))
	}
	for name, tc := range map[string]struct {
		blobs []registry.Blob
		want  error
		says  string
	}{
		"many folders":   {deep, ErrTooLarge, "more than 16384 files and directories"},
		"absolute":       {[]registry.Blob{text(outside+"/x", "x")}, ErrInvalid, "layers[0].annotations[org.opencontainers.image.title]: \"" + outside + "/x\" is an absolute path"},
		"parent":         {[]registry.Blob{text("ok", "x"), text("../../../../"+outside+"/x", "y")}, ErrInvalid, "layers[1].annotations[org.opencontainers.image.title]"},
		"parent inside":  {[]registry.Blob{text("a/../b", "x")}, ErrInvalid, `has ".."`},
		"just a parent":  {[]registry.Blob{text("..", "x")}, ErrInvalid, `has ".."`},
		"dot":            {[]registry.Blob{text(".", "x")}, ErrInvalid, "names no file"},
		"slash":          {[]registry.Blob{text("/", "x")}, ErrInvalid, "absolute"},
		"directory":      {[]registry.Blob{text("d/", "x")}, ErrInvalid, "directory"},
		"NUL":            {[]registry.Blob{text("a\x00b", "x")}, ErrInvalid, "NUL"},
		"long name":      {[]registry.Blob{text(long, "x")}, ErrInvalid, "a name of 256 bytes"},
		"long path":      {[]registry.Blob{text(strings.Repeat("d/", 600)+"x", "x")}, ErrInvalid, "a path of 1201 bytes"},
		"twice":          {[]registry.Blob{text("a", "1"), text("a", "2")}, ErrInvalid, "layers[1].annotations[org.opencontainers.image.title]: \"a\" is what another layer is"},
		"twice the same": {[]registry.Blob{text("a", "1"), text("a", "1")}, ErrInvalid, "layers[1]"},
		"twice cleaned":  {[]registry.Blob{text("a", "1"), text("./a", "2")}, ErrInvalid, "layers[1]"},
		"below a file":   {[]registry.Blob{text("a", "1"), text("a/b", "2")}, ErrInvalid, "below layers[0], a file"},
		"over a folder":  {[]registry.Blob{text("a/b/c", "1"), text("a", "2")}, ErrInvalid, "layers[1]"},
		"like a digest":  {[]registry.Blob{text("", "1"), text(digest.FromString("1").Encoded(), "2")}, ErrInvalid, "layers[1]"},
		"of a model": {[]registry.Blob{{Body: "x", MediaType: "application/vnd.cncf.model.weight.v1.raw", Annotations: map[string]string{"org.cncf.model.filepath": "/etc/passwd"}}},
			ErrInvalid, "layers[0].annotations[org.cncf.model.filepath]: \"/etc/passwd\" is an absolute path"},
		"too large": {[]registry.Blob{text("a", incompressible(9<<20, 1))}, ErrTooLarge, "9437184 bytes"},
		"no tar":    {[]registry.Blob{{Body: "no tar at all", MediaType: ocispec.MediaTypeImageLayerGzip}}, ErrInvalid, ""},
		"bomb": {[]registry.Blob{{Body: string(registry.Layer{Tar: registry.Files(map[string]string{"f": strings.Repeat("\x00", 64<<20)}).Tar, Compression: registry.Gzip}.Blob()),
			MediaType: ocispec.MediaTypeImageLayerGzip}}, ErrTooLarge, "more than"},
		"tar with a parent": {[]registry.Blob{{Body: string(registry.Entries([]tar.Header{{Name: "../../" + outside + "/x", Typeflag: tar.TypeReg}}, nil).Tar),
			MediaType: ocispec.MediaTypeImageLayer, Title: "x.tar"}}, ErrInvalid, "outside"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, registry.Options{})
			addArtifact(t, r, "app", "v1", tc.blobs...)
			s := openStore(t, t.TempDir(), func(c *Config) { c.MaxLayerSize = 8 << 20 })
			_, err := s.Pull(t.Context(), r.Host()+"/app:v1", nil, PullOptions{})
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("Pull() = %v; want %v that says %q", err, tc.want, tc.says)
			}
			isClean(t, s)
			if l := layersOnDisk(t, s.cfg.Root); len(l) != 0 {
				t.Errorf("layers left: %v", l)
			}
		})
	}
	if left := names(t, outside); len(left) != 0 {
		t.Errorf("outside there is %v", left)
	}
}

// TestArtifactBlobs: wrong blobs are refused, and a connection that breaks is taken up again.
func TestArtifactBlobs(t *testing.T) {
	needRoot(t)
	body := incompressible(600<<10, 1)
	for name, tc := range map[string]struct {
		fault registry.Fault
		want  error
	}{
		"another": {registry.Fault{FlipAt: 1000}, ErrDigest}, "gone": {registry.Fault{Status: 404}, ErrNotFound},
		"cut": {registry.Fault{CutAfter: 100 << 10}, nil},
	} {
		r := newRegistry(t, registry.Options{})
		addArtifact(t, r, "app", "v1", text("f", body))
		r.SetFault(onBlobs(tc.fault))
		s := openStore(t, t.TempDir())
		img, err := s.Pull(t.Context(), r.Host()+"/app:v1", nil, PullOptions{})
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: Pull() = %v; want %v", name, err, tc.want)
		}
		if err != nil {
			isClean(t, s)
		} else if got := volume(t, s, img.ID)["f"]; got != body {
			t.Errorf("%s: f has %d bytes; want those of the blob", name, len(got))
		}
	}
}

// TestArtifactIsNoImage: a document that is an image's configuration and an artifact's manifest is one of both.
func TestArtifactIsNoImage(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	l := registry.Files(map[string]string{"f": "x"})
	put := func(b []byte, mediaType string) ocispec.Descriptor {
		d, err := r.AddBlob(b)
		if err != nil {
			t.Fatal(err)
		}
		d.MediaType = mediaType
		return d
	}
	both := mustJSON(t, map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "artifactType": "a/b",
		"config": put([]byte("{}"), ocispec.MediaTypeEmptyJSON), "layers": []ocispec.Descriptor{put([]byte("x"), "text/plain")},
		"os": "linux", "architecture": runtime.GOARCH, "rootfs": ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(l.Tar)}},
	})
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, Config: put(both, ocispec.MediaTypeImageConfig), Layers: []ocispec.Descriptor{put(l.Tar, ocispec.MediaTypeImageLayer)}}
	_, err := r.AddManifest("image", "v1", mustJSON(t, m))
	_, aerr := r.AddManifest("artifact", "v1", both)
	if err := errors.Join(err, aerr); err != nil {
		t.Fatal(err)
	}
	for _, order := range [][]string{{"image", "artifact"}, {"artifact", "image"}} {
		s := openStore(t, t.TempDir())
		first := mustPull(t, s, r.Host()+"/"+order[0]+":v1")
		if _, err := s.Pull(t.Context(), r.Host()+"/"+order[1]+":v1", nil, PullOptions{}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "both") {
			t.Errorf("Pull(%s) after %s = %v; want ErrInvalid", order[1], order[0], err)
		}
		if got, err := s.Get(first.ID); err != nil || !cmp.Equal(got, first) {
			t.Errorf("after that Get() = %+v, %v; want it as it was", got, err)
		}
	}
}

// TestArtifactSharing: a blob is on the disk once, whatever its names, and no longer than an artifact has it; nor can an
// image take it for a layer.
func TestArtifactSharing(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	l := registry.Files(map[string]string{"f": incompressible(100<<10, 1)})
	shared := registry.Blob{Title: "one", Body: string(l.Tar), MediaType: "application/octet-stream"}
	addArtifact(t, r, "a", "v1", shared, text("own", "a"))
	shared.Title = "another"
	addArtifact(t, r, "b", "v1", shared)
	add(t, r, "c", "v1", registry.Image{Layers: []registry.Layer{l}})
	s := openStore(t, t.TempDir())
	a, b := mustPull(t, s, r.Host()+"/a:v1"), mustPull(t, s, r.Host()+"/b:v1")
	if n := len(layersOnDisk(t, s.cfg.Root)); n != 2 {
		t.Errorf("%d layers on disk; want 2", n)
	}
	c := mustPull(t, s, r.Host()+"/c:v1")
	if got := volume(t, s, c.ID)["f"]; got != incompressible(100<<10, 1) {
		t.Errorf("an image with a layer that is a file of artifacts has f with %d bytes", len(got))
	}
	use, err := s.DiskUse(t.Context())
	if err != nil || use.Layers != 3 {
		t.Fatalf("DiskUse() = %+v, %v; want 3 layers", use, err)
	}
	for _, i := range use.Images {
		if i.ID == b.ID && (i.Unique != 0 || i.Size != onDisk(int64(len(l.Tar)))) {
			t.Errorf("DiskUse() of b = %+v; want all of it shared", i)
		}
	}
	if err := s.Hold(a.ID, "ctr"); err != nil {
		t.Fatal(err)
	}
	for _, img := range []*Image{a, b} {
		if err := s.Remove(t.Context(), img.ID); err != nil {
			t.Fatal(err)
		}
	}
	if got := volume(t, s, a.ID); got["one"] != string(l.Tar) || got["own"] != "a" {
		t.Errorf("a volume that is held after its artifact was removed has %d files", len(got))
	}
	if err := s.Release("ctr"); err != nil {
		t.Fatal(err)
	}
	if n := len(layersOnDisk(t, s.cfg.Root)); n != 1 {
		t.Errorf("%d layers are left; want the image's", n)
	}
}

// TestArtifactDamage: what is wrong with an artifact's files is found, and repaired without a change to what is mounted.
func TestArtifactDamage(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	l := registry.Files(map[string]string{"x": "the tree's"})
	l.Compression = registry.Gzip
	addArtifact(t, r, "app", "v1", text("d/f", "right"), text("g", "g"), registry.Blob{Body: string(l.Blob()), MediaType: ocispec.MediaTypeImageLayerGzip})
	want := map[string]string{"d/f": "right", "g": "g", "x": "the tree's"}
	file := partID(partFile, digest.FromString("right"), false)
	tree := partID(partTar, digest.FromBytes(l.Blob()), false)
	for name, harm := range map[string]func(s *Store, img *Image) (digest.Digest, error){
		"content": func(s *Store, _ *Image) (digest.Digest, error) {
			return file, os.WriteFile(s.layerDir(file)+"/file", []byte("wrong"), 0o644)
		},
		"missing": func(s *Store, _ *Image) (digest.Digest, error) { return file, os.Remove(s.layerDir(file) + "/file") },
		"name": func(s *Store, img *Image) (digest.Digest, error) {
			return file, os.Remove(s.imageDir(digest.Digest(img.ID)) + "/files/d/f")
		},
		"other link": func(s *Store, img *Image) (digest.Digest, error) {
			p := s.imageDir(digest.Digest(img.ID)) + "/files/d/f"
			return file, errors.Join(os.Remove(p), os.WriteFile(p, []byte("right"), 0o644))
		},
		"tree": func(s *Store, _ *Image) (digest.Digest, error) {
			spoil(t, s, tree, "x", "the tree's", "another's.")
			return tree, nil
		},
		"blob": func(s *Store, _ *Image) (digest.Digest, error) { return tree, os.Truncate(s.layerDir(tree)+"/blob", 3) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			img := mustPull(t, s, r.Host()+"/app:v1")
			if err := s.Hold(img.ID, "ctr"); err != nil {
				t.Fatal(err)
			}
			before := inRootfs(t, s, img.ID, RootfsOptions{Readonly: true})
			layer, err := harm(s, img)
			if err != nil {
				t.Fatal(err)
			}
			got := verify(t, s, VerifyOptions{Repair: true})
			if got.Layers != 3 || len(got.Damaged) != 1 || got.Damaged[0].Layer != layer || !got.Damaged[0].Repaired || !slices.Equal(got.Damaged[0].Running, []string{"ctr"}) {
				t.Fatalf("Verify(Repair) = %+v; want %s repaired, of a container that runs", got, layer)
			}
			if got := verify(t, s, VerifyOptions{}); len(got.Damaged) != 0 {
				t.Errorf("Verify after the repair = %+v; want nothing", got)
			}
			if diff := cmp.Diff(want, volume(t, s, img.ID)); diff != "" {
				t.Errorf("a volume after the repair (-want +got):\n%s", diff)
			}
			if got := filesIn(t, before); got["g"] != "g" {
				t.Errorf("what was mounted has %v", got)
			}
			if left := names(t, filepath.Join(s.cfg.Root, "ingest")); len(left) != 0 {
				t.Errorf("left in ingest: %v", left)
			}
			if err := errors.Join(s.Release("ctr"), s.Collect(t.Context(), 0)); err != nil {
				t.Error(err)
			}
			if left := names(t, filepath.Join(s.cfg.Root, "damaged")); len(left) != 0 {
				t.Errorf("left in damaged: %v", left)
			}
		})
	}
}

// TestArtifactRecords: a record that was changed costs that artifact and no more.
func TestArtifactRecords(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	addArtifact(t, r, "bad", "v1", text("f", "bad"))
	addArtifact(t, r, "good", "v1", text("f", "good"))
	file := partID(partFile, digest.FromString("bad"), false)
	for name, harm := range map[string]func(s *Store, dir string) error{
		"no files": func(_ *Store, dir string) error { return os.RemoveAll(dir + "/files") },
		"no blob":  func(s *Store, _ string) error { return os.Remove(s.layerDir(file) + "/file") },
		"layer.json": func(s *Store, _ string) error {
			return edit(s.layerDir(file)+"/layer.json", file.String(), digest.FromString("x").String())
		},
		"an image": func(_ *Store, dir string) error { return edit(dir+"/image.json", `"kind":"artifact",`, "") },
		"a kind": func(_ *Store, dir string) error {
			return edit(dir+"/image.json", `"kind":"artifact",`, `"kind":"thing",`)
		},
		"config": func(_ *Store, dir string) error {
			return edit(dir+"/image.json", `"configRaw":"e30="`, `"configRaw":"e3s="`)
		},
		"manifest": func(_ *Store, dir string) error {
			b, err := os.ReadFile(dir + "/image.json")
			if err != nil {
				return err
			}
			var r map[string]any
			if err := json.Unmarshal(b, &r); err != nil {
				return err
			}
			r["manifestRaw"] = []byte(`{"schemaVersion":2,"config":{},"layers":[]}`)
			return os.WriteFile(dir+"/image.json", mustJSON(t, r), 0o600)
		},
	} {
		s := openStore(t, t.TempDir())
		bad, good := mustPull(t, s, r.Host()+"/bad:v1"), mustPull(t, s, r.Host()+"/good:v1")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := harm(s, s.imageDir(digest.Digest(bad.ID))); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, s.cfg.Root)
		if got := s.List(); len(got) != 1 || got[0].ID != good.ID || len(s.Problems()) == 0 {
			t.Errorf("%s: List() = %d images, Problems() = %v; want the other, and a problem", name, len(got), s.Problems())
		}
		if got := volume(t, s, mustPull(t, s, r.Host()+"/bad:v1").ID); got["f"] != "bad" {
			t.Errorf("%s: pulled again it has %v", name, got)
		}
	}
}

// TestArtifactAboutAnother: one that is about an image, and has no name, can be exported and imported as any other.
func TestArtifactAboutAnother(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	subject := add(t, r, "app", "v1", simple("x")).Manifest
	p := addArtifact(t, r, "app", "", text("f", "about it"))
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "a/b",
		Config: ocispec.DescriptorEmptyJSON, Layers: p.Layers, Subject: &subject}
	id, err := r.AddManifest("app", "", mustJSON(t, m))
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t, t.TempDir())
	img := mustPull(t, s, r.Host()+"/app@"+id.String())
	into := openStore(t, t.TempDir())
	got, err := into.Import(t.Context(), bytes.NewReader(export(t, s, img.ID)), ImportOptions{})
	if err != nil || len(got) != 1 || got[0].ID != id.String() || volume(t, into, id.String())["f"] != "about it" {
		t.Errorf("Import() = %+v, %v; want %s", got, err, id)
	}
}

// TestArtifactPolicy: artifacts are subject to policy, as images are.
func TestArtifactPolicy(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	addArtifact(t, r, "good", "v1", text("f", "x"))
	addArtifact(t, r, "bad", "v1", text("f", "x"))
	dir := t.TempDir()
	verifier(t, dir, "a", onlyGood)
	s := openStore(t, t.TempDir(), func(c *Config) { c.Verifiers = dir })
	if _, err := s.Pull(t.Context(), r.Host()+"/bad:v1", nil, PullOptions{}); !errors.Is(err, ErrDenied) {
		t.Errorf("Pull = %v; want ErrDenied", err)
	}
	isClean(t, s)
	if err := s.Admit(t.Context(), mustPull(t, s, r.Host()+"/good:v1").ID); err != nil {
		t.Errorf("Admit = %v", err)
	}
}

// TestEncryptedArtifact: encrypted blobs are deciphered for volumes, and exported as they came.
func TestEncryptedArtifact(t *testing.T) {
	needRoot(t)
	program := trustProgram(t, ".")
	keys, with := sealedKeys(t, program)
	r := newRegistry(t, registry.Options{})
	s := newSealing(t, r)
	to := newJWE(t)
	gz := registry.Files(map[string]string{"x": "x"})
	gz.Compression = registry.Gzip
	var blobs []registry.Blob
	for i, b := range []registry.Blob{text("secret", "the secret"), {Title: "auto", Body: "no tar", MediaType: ocispec.MediaTypeImageLayer},
		{Body: string(gz.Blob()), MediaType: ocispec.MediaTypeImageLayerGzip}} {
		out := filepath.Join(t.TempDir(), fmt.Sprint(i))
		annotations := command(t, to.env, b.Body, s.tool, out, to.name)
		sealed, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		fromJSON(t, annotations, &b.Annotations)
		b.Body, b.MediaType = string(sealed), b.MediaType+"+encrypted"
		blobs = append(blobs, b)
	}
	addArtifact(t, r, "app", "v1", blobs...)
	blobs[0].MediaType, blobs[0].Annotations = "text/plain", nil
	addArtifact(t, r, "cipher", "v1", blobs[0])
	st := openStore(t, t.TempDir(), with)
	_, err := st.Pull(t.Context(), r.Host()+"/app:v1", nil, PullOptions{})
	sealed(t, "Pull without a key", err)
	isClean(t, st)
	for name, text := range to.private {
		write(t, filepath.Join(keys, name), text)
	}
	img := mustPull(t, st, r.Host()+"/app:v1")
	if diff := cmp.Diff(map[string]string{"secret": "the secret", "auto": "no tar", "x": "x"}, volume(t, st, img.ID)); diff != "" {
		t.Errorf("a volume (-want +got):\n%s", diff)
	}
	if got := volume(t, st, mustPull(t, st, r.Host()+"/cipher:v1").ID)["secret"]; got != blobs[0].Body {
		t.Errorf("who names the ciphertext as a file gets %q", got)
	}
	into := openStore(t, t.TempDir(), with)
	if got, err := into.Import(t.Context(), bytes.NewReader(export(t, st, img.ID)), ImportOptions{}); err != nil || got[0].ID != img.ID {
		t.Errorf("Import() = %v, %v; want %s", got, err, img.ID)
	}
}

// FuzzParts: names that are taken are those of files below a folder, each its own.
func FuzzParts(f *testing.F) {
	f.Add([]byte(`[{"mediaType":"text/plain","digest":"sha256:1","annotations":{"org.opencontainers.image.title":"a/b"}},
{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:2","annotations":{"org.opencontainers.image.title":"./c"}},{"digest":"sha256:3"}]`))
	f.Add([]byte(`[{"annotations":{"org.cncf.model.filepath":"../x"}}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var layers []ocispec.Descriptor
		if json.Unmarshal(b, &layers) != nil || slices.ContainsFunc(layers, func(l ocispec.Descriptor) bool { return checkDescriptor(l) != nil }) {
			return
		}
		parts, err := planParts(layers)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, p := range parts {
			if p.kind == partTar {
				continue
			}
			if !filepath.IsLocal(p.name) || p.name == "." || path.Clean(p.name) != p.name || strings.IndexByte(p.name, 0) >= 0 || seen[p.name] {
				t.Errorf("planParts took the name %q", p.name)
			}
			seen[p.name] = true
		}
		for name := range seen {
			for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
				if seen[dir] {
					t.Errorf("planParts took %q and %q", dir, name)
				}
			}
		}
	})
}

// FuzzIsTar: a header whose checksum is wrong is none.
func FuzzIsTar(f *testing.F) {
	f.Add(registry.Files(map[string]string{"f": "x"}).Tar[:layer.TarBlock])
	f.Add([]byte("hello"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if !isTar(b) {
			return
		}
		c := slices.Clone(b)
		c[0]++
		if len(b) < layer.TarBlock || isTar(c) {
			t.Errorf("isTar(%q) = true, and with another first byte too", b)
		}
	})
}
