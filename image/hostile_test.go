package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// hostile is an image, or a registry, that must not get its way.
type hostile struct {
	put  func(t *testing.T, r *registry.Server, repo string)
	want error
	says string
}

func layerOf(l registry.Layer) func(*testing.T, *registry.Server, string) {
	return func(t *testing.T, r *registry.Server, repo string) {
		add(t, r, repo, "v1", registry.Image{Layers: []registry.Layer{l}})
	}
}

func entriesOf(headers ...tar.Header) func(*testing.T, *registry.Server, string) {
	return layerOf(registry.Entries(headers, nil))
}

func zstdOf(l registry.Layer) registry.Layer {
	l.Compression = registry.Zstd
	return l
}

// manifestOf stores a good image with its manifest changed.
func manifestOf(edit func(m *ocispec.Manifest)) func(*testing.T, *registry.Server, string) {
	return func(t *testing.T, r *registry.Server, repo string) {
		l, err := r.AddBlob(registry.Files(map[string]string{"f": "x"}).Blob())
		if err != nil {
			t.Fatal(err)
		}
		l.MediaType = ocispec.MediaTypeImageLayerGzip
		cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}
		cfg.RootFS.DiffIDs = []digest.Digest{digest.FromBytes(registry.Files(map[string]string{"f": "x"}).Tar)}
		c, err := r.AddBlob(mustJSON(t, cfg))
		if err != nil {
			t.Fatal(err)
		}
		c.MediaType = ocispec.MediaTypeImageConfig
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: c, Layers: []ocispec.Descriptor{l}}
		m.SchemaVersion = 2
		edit(&m)
		if _, err := r.AddManifest(repo, "v1", mustJSON(t, m)); err != nil {
			t.Fatal(err)
		}
	}
}

func rawManifest(raw string) func(*testing.T, *registry.Server, string) {
	return func(t *testing.T, r *registry.Server, repo string) {
		if _, err := r.AddManifest(repo, "v1", []byte(raw)); err != nil {
			t.Fatal(err)
		}
	}
}

func rawLayer(blob []byte) func(*testing.T, *registry.Server, string) {
	return func(t *testing.T, r *registry.Server, repo string) {
		d, err := r.AddBlob(blob)
		if err != nil {
			t.Fatal(err)
		}
		addRaw(t, r, repo, digest.FromString("whatever"), d)
	}
}

// nested is an index in an index in an index….
func nested(depth int) func(*testing.T, *registry.Server, string) {
	return func(t *testing.T, r *registry.Server, repo string) {
		d := add(t, r, repo, "", simple("x")).Manifest
		for i := range depth {
			tag := ""
			if i == depth-1 {
				tag = "v1"
			}
			id, err := r.AddIndex(repo, tag, false, d)
			if err != nil {
				t.Fatal(err)
			}
			d = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: id, Size: sizeOf(t, r, id), Platform: d.Platform}
		}
	}
}

func sizeOf(t *testing.T, r *registry.Server, id digest.Digest) int64 {
	t.Helper()
	resp, err := http.Head("http://" + r.Host() + "/v2/x/blobs/" + id.String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.ContentLength
}

// faulty stores a good image and lets the registry misbehave.
func faulty(f func(*http.Request) *registry.Fault) func(*testing.T, *registry.Server, string) {
	return func(t *testing.T, r *registry.Server, repo string) {
		add(t, r, repo, "v1", simple(incompressible(100<<10, 1)))
		r.SetFault(f)
	}
}

func corpus(outside string) map[string]hostile {
	reg := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644} }
	to := func(kind byte, name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: kind, Linkname: target, Mode: 0o777}
	}
	device := tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1 << 20, Devminor: 1, Format: tar.FormatGNU}
	many := make([]tar.Header, 2000)
	for i := range many {
		many[i] = reg(fmt.Sprint("f", i))
	}
	window := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00}
	zero := strings.Repeat("\x00", 64<<20)
	return map[string]hostile{
		"size too small":      {manifestOf(func(m *ocispec.Manifest) { m.Layers[0].Size-- }), ErrDigest, "size"},
		"size too large":      {manifestOf(func(m *ocispec.Manifest) { m.Layers[0].Size += 10 }), ErrUnavailable, "bytes"},
		"size negative":       {manifestOf(func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }), ErrInvalid, "size -1"},
		"size of the config":  {manifestOf(func(m *ocispec.Manifest) { m.Config.Size = 1 << 40 }), ErrTooLarge, "config"},
		"digest of nothing":   {manifestOf(func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.FromString("nobody") }), ErrNotFound, ""},
		"digest of a path":    {manifestOf(func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../../../etc/passwd" }), ErrInvalid, "digest"},
		"digest unknown kind": {manifestOf(func(m *ocispec.Manifest) { m.Layers[0].Digest = "md5:d41d8cd98f00b204e9800998ecf8427e" }), ErrInvalid, "digest"},
		"config is a layer":   {manifestOf(func(m *ocispec.Manifest) { m.Config.Digest, m.Config.Size = m.Layers[0].Digest, m.Layers[0].Size }), ErrInvalid, "configuration"},
		"layer is a config":   {manifestOf(func(m *ocispec.Manifest) { m.Layers[0] = m.Config }), ErrInvalid, "layer"},
		"no config":           {rawManifest(`{"schemaVersion":2,"layers":[]}`), ErrInvalid, "manifest"},
		"not JSON":            {rawManifest(`<html>sign in</html>`), ErrInvalid, "manifest"},
		"media type":          {rawManifest(`{"schemaVersion":2,"mediaType":"text/html"}`), ErrInvalid, "text/html"},
		"deep JSON":           {rawManifest(strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000)), ErrInvalid, "depth"},
		"large manifest":      {rawManifest(`{"schemaVersion":2,"x":"` + strings.Repeat("x", 9<<20) + `"}`), nil, ""},
		"index too deep":      {nested(6), ErrInvalid, "deeper"},
		"index of itself":     {faulty(sameManifest), ErrDigest, ""},
		"thousands of layers": {manifestOf(func(m *ocispec.Manifest) {
			for range 5000 {
				m.Layers = append(m.Layers, m.Layers[0])
			}
		}), ErrTooLarge, "5001 layers"},
		"gzip bomb":        {layerOf(registry.Files(map[string]string{"f": zero})), ErrTooLarge, "more than"},
		"zstd bomb":        {layerOf(zstdOf(registry.Files(map[string]string{"f": zero}))), ErrTooLarge, "more than"},
		"bomb behind tar":  {layerOf(registry.Layer{Tar: append(registry.Files(map[string]string{"f": ""}).Tar, zero...), Compression: registry.Gzip}), ErrTooLarge, "more than"},
		"bomb of files":    {entriesOf(many...), ErrTooLarge, "entries"},
		"zstd window":      {rawLayer(window), ErrInvalid, "window"},
		"gzip cut":         {rawLayer(registry.Files(map[string]string{"f": "x"}).Blob()[:30]), ErrInvalid, ""},
		"garbage":          {rawLayer(bytes.Repeat([]byte("garbage "), 1000)), ErrInvalid, ""},
		"parent":           {entriesOf(reg("../../../../../../" + outside + "/x")), ErrInvalid, "outside"},
		"link and through": {entriesOf(to(tar.TypeSymlink, "l", outside), reg("l/x")), ErrInvalid, ""},
		"hard link":        {entriesOf(to(tar.TypeLink, "l", "../../../../../../../.."+outside+"/canary")), ErrInvalid, "hard link"},
		"hard link by link": {entriesOf(to(tar.TypeSymlink, "d", outside), to(tar.TypeLink, "l", "d/canary"),
			reg("l")), ErrInvalid, "hard link"},
		"replaced dir":  {entriesOf(tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o755}, to(tar.TypeSymlink, "d", outside), reg("d/x")), ErrInvalid, ""},
		"whiteout":      {entriesOf(to(tar.TypeSymlink, "d", outside), reg("d/.wh.canary")), ErrInvalid, ""},
		"device number": {entriesOf(device), ErrInvalid, "device"},
		"redirect loop": {faulty(func(r *http.Request) *registry.Fault { return &registry.Fault{Redirect: r.URL.Path} }), ErrUnavailable, "redirect"},
		"redirect nowhere": {faulty(onBlobs(registry.Fault{Redirect: "http://127.0.0.1:1/"})),
			ErrUnavailable, "refused"},
		"redirect to a file": {faulty(onBlobs(registry.Fault{Redirect: "file:///etc/passwd"})), ErrUnavailable, ""},
		"stalls":             {faulty(onBlobs(registry.Fault{StallAfter: 1000})), ErrStalled, ""},
		"closes early":       {faulty(onBlobs(registry.Fault{CutAfter: -1})), ErrUnavailable, ""},
		"tells less":         {faulty(onBlobs(registry.Fault{Length: 10})), ErrUnavailable, ""},
		"another blob":       {faulty(onBlobs(registry.Fault{FlipAt: 30})), ErrDigest, ""},
		"416":                {faulty(onBlobs(registry.Fault{Status: 416})), ErrUnavailable, "416"},
		"teapot":             {faulty(onBlobs(registry.Fault{Status: 418})), ErrUnavailable, "418"},
	}
}

// sameManifest makes every digest of a manifest lead to the tag's.
func sameManifest(r *http.Request) *registry.Fault {
	if strings.Contains(r.URL.Path, "/manifests/sha256:") {
		return &registry.Fault{FlipAt: 20}
	}
	return nil
}

// TestHostileCorpus: each is refused with an error that names the image and the reason, nothing is left of it, and
// nothing outside of the store is touched.
func TestHostileCorpus(t *testing.T) {
	needRoot(t)
	outside := t.TempDir()
	canary := filepath.Join(outside, "canary")
	if err := os.WriteFile(canary, []byte("sings"), 0o644); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(canary)
	if err != nil {
		t.Fatal(err)
	}
	all := corpus(outside)
	refused := 0
	type try struct{ name, snapshotter string }
	var tries []try
	for name := range all {
		tries = append(tries, try{name, SnapshotOverlay}, try{name, SnapshotNative})
	}
	for _, try := range tries {
		t.Run(try.name+" "+try.snapshotter, func(t *testing.T) {
			h := all[try.name]
			r := newRegistry(t, registry.Options{})
			h.put(t, r, "app")
			s := openStore(t, t.TempDir(), func(c *Config) {
				c.Snapshotter = try.snapshotter
				c.MaxLayerSize, c.MaxLayerEntries = 8<<20, 1000
				if h.want == ErrStalled {
					c.ProgressTimeout = 200 * time.Millisecond
				}
			})
			ref := r.Host() + "/app:v1"
			_, err := s.Pull(t.Context(), ref, nil, PullOptions{})
			if err == nil {
				t.Fatal("Pull() = nil; want an error")
			}
			refused++
			if h.want != nil && !errors.Is(err, h.want) || !strings.Contains(err.Error(), h.says) || !strings.Contains(err.Error(), ref) {
				t.Errorf("Pull() = %v; want %v that says %q", err, h.want, h.says)
			}
			if len(err.Error()) > 3000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			isClean(t, s)
			if l := layersOnDisk(t, s.cfg.Root); len(l) != 0 {
				t.Errorf("layers left: %v", l)
			}
		})
	}
	left := names(t, outside)
	after, err := os.Stat(canary)
	if err != nil || len(left) != 1 || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("outside there is %v, %v; want the canary as it was", left, err)
	}
	t.Logf("%d tried, %d refused, nothing outside touched", len(tries), refused)
}
