package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/cri-shim/cri-shim/hack/registry"
)

func export(t *testing.T, s *Store, refs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Export(t.Context(), &b, refs, ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tarFiles reads an archive; keep says which of its files stay in the copy that is returned with them.
func tarFiles(t *testing.T, b []byte, keep func(name string) bool) (map[string]string, []byte) {
	t.Helper()
	files := map[string]string{}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			return files, out.Bytes()
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(body)
		if keep == nil || keep(h.Name) {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(body); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(b)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// oldDocker turns an export into what docker save wrote before version 25: ID/layer.tar, CONFIG.json, manifest.json.
func oldDocker(t *testing.T, b []byte) []byte {
	t.Helper()
	files, _ := tarFiles(t, b, nil)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	put := func(name, body string) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	manifest := files["manifest.json"]
	for name, body := range files {
		if id, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && id != "" {
			put(id+"/layer.tar", body)
			manifest = strings.ReplaceAll(manifest, `"`+name+`"`, `"`+id+`/layer.tar"`)
		}
	}
	put("repositories", "{}")
	put("manifest.json", manifest)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestExportImport(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	shared := registry.Files(map[string]string{"etc/a": incompressible(100<<10, 1), "empty": "", "d/": ""})
	zst := registry.Files(map[string]string{"etc/.wh.a": "", "etc/b": "b"})
	zst.Compression = registry.Zstd
	one := add(t, r, "one", "v1", registry.Image{Layers: []registry.Layer{shared, zst}, Docker: true})
	twice := registry.Entries([]tar.Header{{Name: "f", Typeflag: tar.TypeReg}, {Name: "f", Typeflag: tar.TypeReg}}, []string{"1", "2"})
	two := add(t, r, "two", "v1", registry.Image{Layers: []registry.Layer{shared, twice}})
	s := openStore(t, t.TempDir())
	mustPull(t, s, r.Host()+"/one:v1")
	mustPull(t, s, r.Host()+"/two:v1")
	archive := export(t, s, r.Host()+"/one:v1", two.ID.String())
	if err := s.Export(t.Context(), io.Discard, []string{"nothing"}, ExportOptions{}); !errors.Is(err, ErrNotFound) || strings.Contains(err.Error(), "0x") {
		t.Errorf("Export of nothing = %v; want ErrNotFound, and no address", err)
	}
	if again := export(t, s, r.Host()+"/one:v1", two.ID.String()); !bytes.Equal(again, archive) {
		t.Error("exporting twice gives different streams")
	}
	_, docker := tarFiles(t, archive, func(n string) bool { return n != "oci-layout" && n != "index.json" })
	for name, b := range map[string][]byte{
		"oci": archive, "gzip": gzipped(t, archive), "zstd": zstded(t, archive), "docker": docker, "old docker": oldDocker(t, archive),
	} {
		t.Run(name, func(t *testing.T) {
			s2 := openStore(t, t.TempDir())
			imgs, err := s2.Import(t.Context(), io.MultiReader(bytes.NewReader(b)), ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var got, want []string
			for _, i := range imgs {
				got = append(got, i.ID+" "+strings.Join(i.RepoTags, ","))
			}
			want = []string{one.ID.String() + " " + r.Host() + "/one:v1", two.ID.String() + " " + r.Host() + "/two:v1"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Import() (-want +got):\n%s", diff)
			}
			fs := inRootfs(t, s2, "sha256:"+one.ID.Encoded(), RootfsOptions{Readonly: true})
			if got := strings.Join(names(t, fs+"/etc"), " "); got != "b" {
				t.Errorf("etc has %q; want b", got)
			}
			if again := export(t, s2, r.Host()+"/one:v1", two.ID.String()); !bytes.Equal(again, archive) {
				t.Error("export after import differs from the first export")
			}
			if left := names(t, filepath.Join(s2.cfg.Root, "ingest")); len(left) != 0 {
				t.Errorf("left in ingest: %v", left)
			}
		})
	}
}

func TestExportFindsDamage(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", simple("hello"))
	s := openStore(t, t.TempDir())
	img := mustPull(t, s, r.Host()+"/app:v1")
	spoil(t, s, p.DiffIDs[0], "f", "hello", "HELLO")
	err := s.Export(t.Context(), io.Discard, []string{img.ID}, ExportOptions{})
	if !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), p.DiffIDs[0].String()) {
		t.Errorf("Export() = %v; want ErrDigest that names the layer", err)
	}
	if err := s.Export(t.Context(), io.Discard, []string{"nothing"}, ExportOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Export(nothing) = %v; want ErrNotFound", err)
	}
}

func TestImportErrors(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", simple("hello"))
	s := openStore(t, t.TempDir())
	mustPull(t, s, r.Host()+"/app:v1")
	archive := export(t, s, r.Host()+"/app:v1")
	_, noIndex := tarFiles(t, archive, func(n string) bool { return n != "index.json" })
	_, noBlobs := tarFiles(t, archive, func(n string) bool { return !strings.HasPrefix(n, "blobs/") })
	for name, b := range map[string][]byte{
		"empty": nil, "garbage": bytes.Repeat([]byte("garbage"), 200), "no index": noIndex, "no blobs": noBlobs,
		"truncated": archive[:len(archive)/2], "truncated gzip": gzipped(t, archive)[:300],
	} {
		s2 := openStore(t, t.TempDir())
		if imgs, err := s2.Import(t.Context(), bytes.NewReader(b), ImportOptions{}); err == nil {
			t.Errorf("Import(%s) = %v; want an error", name, imgs)
		}
		isClean(t, s2)
	}
}
