package image

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// cutLayer cuts a layer as builders of layers for lazy pulling do: what each piece has is compressed by itself.
func cutLayer(b []byte) [][]byte {
	return [][]byte{b[:700], b[700:1500], b[1500:]}
}

// eStargz is a layer of gzip members, whose last has the table of contents, and a footer in an empty member's extra field.
func eStargz(t testing.TB, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, p := range cutLayer(content) {
		w := gzip.NewWriter(&out)
		_, err := w.Write(p)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	w := gzip.NewWriter(&out)
	w.Extra = []byte("SG\x16\x00" + "0000000000000400STARGZ")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// zstdChunked is a layer of zstd frames, with a manifest and a footer in skippable frames.
func zstdChunked(t testing.TB, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, p := range cutLayer(content) {
		w, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(p)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	skip := func(b []byte) {
		var head [8]byte
		binary.LittleEndian.PutUint32(head[:], 0x184D2A50)
		binary.LittleEndian.PutUint32(head[4:], uint32(len(b)))
		out.Write(append(head[:], b...))
	}
	skip([]byte(`{"version":1,"entries":[]}`))
	skip(append(bytes.Repeat([]byte{0}, 56), "GNUlInUx"...))
	return out.Bytes()
}

// TestLazyFormats: layers that were made for lazy pulling are layers.
func TestLazyFormats(t *testing.T) {
	needRoot(t)
	plain := registry.Entries([]tar.Header{
		{Name: ".prefetch.landmark", Typeflag: tar.TypeReg, Mode: 0o644}, {Name: "f", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "stargz.index.json", Typeflag: tar.TypeReg, Mode: 0o644},
	}, []string{"\x0f", incompressible(2000, 1), `{"version":1,"entries":[]}`}).Tar
	for name, tc := range map[string]struct {
		blob      []byte
		mediaType string
	}{
		"estargz":      {eStargz(t, plain), ocispec.MediaTypeImageLayerGzip},
		"zstd:chunked": {zstdChunked(t, plain), ocispec.MediaTypeImageLayerZstd},
	} {
		for _, program := range []string{"auto", "none"} {
			r := newRegistry(t, registry.Options{})
			id := pushLayers(t, r, "app", ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, tc.mediaType, tc.blob, plain)
			s := openStore(t, t.TempDir(), func(c *Config) { c.GzipProgram = program })
			img, err := s.Pull(t.Context(), r.Host()+"/app@"+id.Digest.String(), nil, PullOptions{})
			if err != nil {
				t.Errorf("%s, %s: Pull = %v", name, program, err)
				continue
			}
			b, err := os.ReadFile(layerTree(t, s, img.Layers[0]) + "/f")
			if err != nil || string(b) != incompressible(2000, 1) {
				t.Errorf("%s, %s: f has %d bytes, %v; want the layer's", name, program, len(b), err)
			}
		}
	}
}

func pushLayers(t testing.TB, r *registry.Server, repo string, p ocispec.Platform, mediaType string, blob, plain []byte) ocispec.Descriptor {
	t.Helper()
	put := func(b []byte, mediaType string) ocispec.Descriptor {
		d, err := r.AddBlob(b)
		if err != nil {
			t.Fatal(err)
		}
		d.MediaType = mediaType
		return d
	}
	cfg := ocispec.Image{Platform: p, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain)}}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: put(mustJSON(t, cfg), ocispec.MediaTypeImageConfig), Layers: []ocispec.Descriptor{put(blob, mediaType)}}
	raw := mustJSON(t, m)
	id, err := r.AddManifest(repo, "", raw)
	if err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: id, Size: int64(len(raw)), Platform: &p}
}

// TestPlatformChoice: the best fit of an index, whatever the order in it.
func TestPlatformChoice(t *testing.T) {
	list := func(platforms ...string) []ocispec.Descriptor {
		var all []ocispec.Descriptor
		for _, p := range platforms {
			f := append(strings.Split(p, "/"), "", "")
			d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(p), Size: 1}
			if p != "" {
				d.Platform = &ocispec.Platform{OS: f[0], Architecture: f[1], Variant: f[2], OSVersion: f[3]}
			}
			all = append(all, d)
		}
		return all
	}
	for _, tc := range []struct {
		wanted, index []string
		want          string // "" for none
	}{
		{[]string{"linux/arm/v7"}, []string{"linux/arm/v5", "linux/arm/v7", "linux/arm/v6"}, "linux/arm/v7"},
		{[]string{"linux/arm/v7"}, []string{"linux/arm/v5", "linux/arm/v6"}, "linux/arm/v6"},
		{[]string{"linux/arm/v6"}, []string{"linux/arm/v7", "linux/arm/v5"}, "linux/arm/v5"},
		{[]string{"linux/arm/v6"}, []string{"linux/arm/v7"}, ""},
		{[]string{"linux/arm64"}, []string{"linux/amd64", "linux/arm64/v8"}, "linux/arm64/v8"},
		{[]string{"linux/arm64"}, []string{"linux/arm/v7", "linux/arm64"}, "linux/arm64"},
		{[]string{"linux/amd64"}, []string{"linux/amd64/v3", "linux/amd64"}, "linux/amd64"},
		{[]string{"linux/amd64"}, []string{"linux/386", "linux/amd64"}, "linux/amd64"},
		{[]string{"linux/amd64"}, []string{"windows/amd64//10.0.20348.1", "linux/amd64"}, "linux/amd64"},
		{[]string{"linux/amd64"}, []string{"", "linux/amd64"}, "linux/amd64"},
		{[]string{"linux/amd64"}, []string{"unknown/unknown", ""}, ""},
		{[]string{"linux/amd64"}, []string{"windows/amd64//10.0.20348.1"}, ""},
	} {
		p := *list(tc.wanted[0])[0].Platform
		got, err := choose(list(tc.index...), p)
		switch {
		case tc.want == "" && len(tc.index) == 2: // without a platform it may be anything: the configuration decides
			if err != nil || got.Platform != nil {
				t.Errorf("choose(%q) of %q = %+v, %v; want the one without a platform", tc.wanted, tc.index, got.Platform, err)
			}
		case tc.want == "" && !errors.Is(err, ErrPlatform):
			t.Errorf("choose(%q) of %q = %v, %v; want ErrPlatform", tc.wanted, tc.index, got.Platform, err)
		case tc.want != "" && (err != nil || got.Digest != digest.FromString(tc.want)):
			t.Errorf("choose(%q) of %q = %+v, %v; want %s", tc.wanted, tc.index, got.Platform, err, tc.want)
		}
	}
}
