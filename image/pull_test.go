package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

func incompressible(n int, seed byte) string {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return string(b)
}

func simple(body string) registry.Image {
	return registry.Image{Layers: []registry.Layer{registry.Files(map[string]string{"f": body})}}
}

// isClean fails the test if a failed pull left something that can be seen, or something half made.
func isClean(t *testing.T, s *Store) {
	t.Helper()
	if l := s.List(); len(l) != 0 {
		t.Errorf("List() = %v; want none", l)
	}
	for _, d := range []string{"ingest", "images/sha256"} {
		if e, _ := os.ReadDir(filepath.Join(s.cfg.Root, d)); len(e) != 0 {
			t.Errorf("left in %s: %v", d, e)
		}
	}
}

// TestPullKinds: every combination of compression and manifest type gives the same files.
func TestPullKinds(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	for _, c := range []registry.Compression{registry.Gzip, registry.Zstd, registry.Uncompressed} {
		for _, docker := range []bool{false, true} {
			for _, index := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s docker=%v index=%v", c, docker, index), func(t *testing.T) {
					tag := fmt.Sprintf("t-%s-%v-%v", c, docker, index)
					img := registry.Image{Docker: docker, Layers: []registry.Layer{
						registry.Files(map[string]string{"d/file": incompressible(300<<10, 1)}),
						registry.Files(map[string]string{"d/second": tag}),
					}}
					for i := range img.Layers {
						img.Layers[i].Compression = c
					}
					p := add(t, r, "kinds", tag, img)
					want := p.Manifest.Digest
					if index {
						img.Platform = ocispec.Platform{OS: "linux", Architecture: "s390x"}
						other := add(t, r, "kinds", "", img)
						attestation := p.Manifest
						attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
						var err error
						if want, err = r.AddIndex("kinds", tag, docker, attestation, other.Manifest, p.Manifest); err != nil {
							t.Fatal(err)
						}
					}
					s := openStore(t, t.TempDir())
					got := mustPull(t, s, r.Host()+"/kinds:"+tag)
					if got.ID != p.ID.String() || got.ManifestDigest != p.Manifest.Digest {
						t.Errorf("Pull() = %s, manifest %s; want %s, %s", got.ID, got.ManifestDigest, p.ID, p.Manifest.Digest)
					}
					if diff := cmp.Diff([]string{r.Host() + "/kinds@" + want.String()}, got.RepoDigests); diff != "" {
						t.Errorf("RepoDigests (-want +got):\n%s", diff)
					}
					b, err := os.ReadFile(filepath.Join(inRootfs(t, s, got.ID, RootfsOptions{Readonly: true}), "d/second"))
					if string(b) != tag {
						t.Errorf("d/second = %q, %v; want %q", b, err, tag)
					}
				})
			}
		}
	}
}

func TestPullByDigest(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", simple("x"))
	s := openStore(t, t.TempDir())
	for _, ref := range []string{"app@" + p.Manifest.Digest.String(), "app:v9@" + p.Manifest.Digest.String()} {
		img := mustPull(t, s, r.Host()+"/"+ref)
		if img.ID != p.ID.String() || len(img.RepoTags) != 0 || len(img.RepoDigests) != 1 {
			t.Errorf("Pull(%s) = %s, tags %v, digests %v; want %s, none, one", ref, img.ID, img.RepoTags, img.RepoDigests, p.ID)
		}
	}
}

func TestPullErrors(t *testing.T) {
	needRoot(t)
	onBlobs := func(f registry.Fault) func(*http.Request) *registry.Fault {
		return func(r *http.Request) *registry.Fault {
			if strings.Contains(r.URL.Path, "/blobs/") {
				return &f
			}
			return nil
		}
	}
	always := func(f registry.Fault) func(*http.Request) *registry.Fault {
		return func(*http.Request) *registry.Fault { return &f }
	}
	for name, tc := range map[string]struct {
		ref   string
		fault func(*http.Request) *registry.Fault
		want  error
		says  string
	}{
		"no such tag":        {"app:missing", nil, ErrNotFound, "missing"},
		"no such repository": {"other:v1", nil, ErrNotFound, ""},
		"reference":          {"app:v1:v2", nil, ErrReference, ""},
		"forbidden":          {"app:v1", always(registry.Fault{Status: 403, Message: "not for you"}), ErrUnauthorized, "not for you"},
		"broken registry":    {"app:v1", always(registry.Fault{Status: 500, Message: "on fire"}), ErrUnavailable, "500"},
		"blob missing":       {"app:v1", onBlobs(registry.Fault{Status: 404}), ErrNotFound, ""},
		"wrong content":      {"app:v1", onBlobs(registry.Fault{FlipAt: 40}), ErrDigest, ""},
		"wrong length":       {"short:v1", nil, ErrUnavailable, "at 5 of 500"},
		"longer":             {"long:v1", nil, ErrDigest, "expected size"},
		"stalled":            {"app:v1", onBlobs(registry.Fault{StallAfter: -1}), ErrStalled, ""},
		"cut at the start":   {"app:v1", onBlobs(registry.Fault{CutAfter: -1}), ErrUnavailable, ""},
		"wrong diff ID":      {"diff:v1", nil, ErrDigest, "configuration says"},
		"other platform":     {"mips:v1", nil, ErrPlatform, "mips"},
		"not in index":       {"index:v1", nil, ErrPlatform, "mips"},
		"layer count":        {"count:v1", nil, ErrInvalid, "diff IDs"},
		"schema 1":           {"schema1:v1", nil, ErrInvalid, "schema 1"},
		"confused type":      {"both:v1", nil, ErrInvalid, "both"},
		"hostile layer":      {"hostile:v1", nil, ErrInvalid, "outside"},
		"encrypted":          {"encrypted:v1", nil, ErrSealed, "encrypted"},
		"too many layers":    {"many:v1", nil, ErrTooLarge, ""},
		"no registry":        {"", nil, ErrUnavailable, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, registry.Options{})
			add(t, r, "app", "v1", simple(incompressible(1000, 1)))
			addBroken(t, r)
			r.SetFault(tc.fault)
			s := openStore(t, t.TempDir(), func(c *Config) { c.ProgressTimeout = 300 * time.Millisecond })
			ref := r.Host() + "/" + tc.ref
			if tc.ref == "" {
				ref = "127.0.0.1:1/app:v1"
			}
			_, err := s.Pull(t.Context(), ref, nil, PullOptions{})
			if err == nil {
				t.Fatal("Pull() = nil; want an error")
			}
			if (tc.want != nil && !errors.Is(err, tc.want)) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("Pull() = %v; want %v that says %q", err, tc.want, tc.says)
			}
			if tc.want != ErrReference && !strings.Contains(err.Error(), strings.Split(ref, "/")[0]) {
				t.Errorf("Pull() = %v; want the host in it", err)
			}
			isClean(t, s)
		})
	}
}

// addBroken stores images that are wrong in themselves.
func addBroken(t *testing.T, r *registry.Server) {
	t.Helper()
	raw := func(repo string, edit func(m *ocispec.Manifest)) {
		l, err := r.AddBlob(registry.Files(map[string]string{"f": "x"}).Blob())
		if err != nil {
			t.Fatal(err)
		}
		cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}
		cfg.RootFS.DiffIDs = []digest.Digest{digest.FromString("something else")}
		c, err := r.AddBlob(mustJSON(t, cfg))
		if err != nil {
			t.Fatal(err)
		}
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: c, Layers: []ocispec.Descriptor{l}}
		m.SchemaVersion = 2
		edit(&m)
		if _, err := r.AddManifest(repo, "v1", mustJSON(t, m)); err != nil {
			t.Fatal(err)
		}
	}
	raw("diff", func(*ocispec.Manifest) {})
	raw("short", func(m *ocispec.Manifest) {
		d, err := r.AddBlob([]byte("short"))
		if err != nil {
			t.Fatal(err)
		}
		m.Layers[0] = ocispec.Descriptor{Digest: d.Digest, Size: 500}
	})
	raw("long", func(m *ocispec.Manifest) { m.Layers[0].Size -= 7 })
	raw("count", func(m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) })
	raw("encrypted", func(m *ocispec.Manifest) { m.Layers[0].MediaType = ocispec.MediaTypeImageLayerGzip + "+encrypted" })
	raw("many", func(m *ocispec.Manifest) {
		for range 500 {
			m.Layers = append(m.Layers, m.Layers[0])
		}
	})
	for repo, doc := range map[string]string{
		"schema1": `{"schemaVersion":1,"fsLayers":[{"blobSum":"sha256:a"}]}`,
		"both":    `{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`,
	} {
		if _, err := r.AddManifest(repo, "v1", []byte(doc)); err != nil {
			t.Fatal(err)
		}
	}
	img := simple("x")
	img.Platform = ocispec.Platform{OS: "linux", Architecture: "mips64le"}
	p := add(t, r, "mips", "v1", img)
	if _, err := r.AddIndex("index", "v1", false, p.Manifest); err != nil {
		t.Fatal(err)
	}
	add(t, r, "hostile", "v1", registry.Image{Layers: []registry.Layer{registry.Files(map[string]string{"../../f": "x"})}})
}

// TestPullResumes: connections that break and stall cost time and nothing else, and what came is not fetched again.
func TestPullResumes(t *testing.T) {
	needRoot(t)
	for name, fault := range map[string]registry.Fault{
		"cut":   {CutAfter: 200 << 10},
		"stall": {StallAfter: 200 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, registry.Options{})
			p := add(t, r, "app", "v1", simple(incompressible(1<<20, 3)))
			var n atomic.Int32
			r.SetFault(func(req *http.Request) *registry.Fault {
				if strings.Contains(req.URL.Path, p.Layers[0].Digest.String()) && n.Add(1) <= 3 {
					return &fault
				}
				return nil
			})
			s := openStore(t, t.TempDir(), func(c *Config) { c.ProgressTimeout = 300 * time.Millisecond })
			mustPull(t, s, r.Host()+"/app:v1")
			var ranges int
			for _, q := range r.Requests() {
				if q.Range != "" {
					ranges++
				}
			}
			if ranges < 3 {
				t.Errorf("%d requests for a rest; want 3", ranges)
			}
		})
	}
}

func TestPullRateLimited(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", simple("x"))
	var n atomic.Int32
	r.SetFault(func(*http.Request) *registry.Fault {
		if n.Add(1)%3 != 0 {
			return &registry.Fault{Status: http.StatusTooManyRequests, Message: "slow down"}
		}
		return nil
	})
	s := openStore(t, t.TempDir())
	mustPull(t, s, r.Host()+"/app:v1")
}

func TestPullAuth(t *testing.T) {
	needRoot(t)
	for _, kind := range []registry.AuthKind{registry.BasicAuth, registry.BearerAuth} {
		r := newRegistry(t, registry.Options{Auth: kind, Username: "u", Password: "p:w", RefreshToken: "refresh"})
		add(t, r, "app", "v1", simple("x"))
		b64 := base64.StdEncoding.EncodeToString([]byte("u:p:w"))
		for name, tc := range map[string]struct {
			auth *Auth
			ok   bool
		}{
			"none":          {nil, false},
			"password":      {&Auth{Username: "u", Password: "p:w"}, true},
			"wrong":         {&Auth{Username: "u", Password: "x"}, false},
			"base64":        {&Auth{Auth: b64}, true},
			"not base64":    {&Auth{Auth: "%%%"}, false},
			"identity":      {&Auth{IdentityToken: "refresh"}, kind == registry.BearerAuth},
			"token":         {&Auth{RegistryToken: r.Token()}, kind == registry.BearerAuth},
			"this server":   {&Auth{Auth: b64, ServerAddress: "http://" + r.Host() + "/v1/"}, true},
			"bare server":   {&Auth{Auth: b64, ServerAddress: r.Host()}, true},
			"another's":     {&Auth{Auth: b64, ServerAddress: "https://example.com"}, false},
			"another token": {&Auth{RegistryToken: r.Token(), ServerAddress: "https://example.com"}, false},
		} {
			t.Run(string(kind)+" "+name, func(t *testing.T) {
				s := openStore(t, t.TempDir())
				_, err := s.Pull(t.Context(), r.Host()+"/app:v1", tc.auth, PullOptions{})
				if tc.ok && err != nil {
					t.Errorf("Pull() = %v; want it to work", err)
				}
				if !tc.ok && !errors.Is(err, ErrUnauthorized) {
					t.Errorf("Pull() = %v; want ErrUnauthorized", err)
				}
				if err != nil && (strings.Contains(err.Error(), "p:w") || strings.Contains(err.Error(), b64)) {
					t.Errorf("Pull() = %v; it has the secret in it", err)
				}
			})
		}
	}
}

// TestPullMirror: hosts.toml sends pulls of a name elsewhere.
func TestPullMirror(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "library/busybox", "latest", simple("x"))
	certs := t.TempDir()
	dir := filepath.Join(certs, "docker.io")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", r.Host())
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, t.TempDir(), func(c *Config) {
		c.RegistryConfigDir = []string{filepath.Join(certs, "none"), certs}
		c.Pinned = []string{"docker.io/library/*"}
	})
	mustPull(t, s, "busybox")
	img, err := s.Get("busybox:latest")
	if err != nil || img.ID != p.ID.String() || !img.Pinned {
		t.Errorf("Get(busybox:latest) = %+v, %v; want %s, pinned", img, err, p.ID)
	}
}

// TestPullJoined: many pulls of images that share layers fetch each blob once.
func TestPullJoined(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	base := registry.Files(map[string]string{"base": incompressible(200<<10, 9)})
	for i := range 3 {
		add(t, r, "app", fmt.Sprintf("v%d", i), registry.Image{Layers: []registry.Layer{base, registry.Files(map[string]string{"own": fmt.Sprint(i)})}})
	}
	r.SetFault(func(req *http.Request) *registry.Fault { return &registry.Fault{Delay: 20 * time.Millisecond} })
	s := openStore(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), fmt.Sprintf("%s/app:v%d", r.Host(), i%3), nil, PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[string]int{}
	for _, q := range r.Requests() {
		if q.Method == http.MethodGet && strings.Contains(q.Path, "/blobs/") {
			seen[q.Path]++
		}
	}
	for p, n := range seen {
		if n != 1 {
			t.Errorf("%s was fetched %d times; want once", p, n)
		}
	}
	if n := len(layersOnDisk(t, s.cfg.Root)); n != 4 {
		t.Errorf("%d layers on disk; want 4", n)
	}
}

// TestPullAbandoned: the pull ends with its last client, the layers that were complete serve the next one.
func TestPullAbandoned(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{
		registry.Files(map[string]string{"quick": "x"}), registry.Files(map[string]string{"slow": incompressible(100<<10, 1)}),
	}})
	var broken atomic.Bool
	broken.Store(true)
	r.SetFault(func(req *http.Request) *registry.Fault {
		if broken.Load() && strings.Contains(req.URL.Path, p.Layers[1].Digest.String()) {
			return &registry.Fault{StallAfter: 1000}
		}
		return nil
	})
	root := t.TempDir()
	s := openStore(t, root)
	ctx, cancel := context.WithCancel(t.Context())
	patient := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, r.Host()+"/app:v1", nil, PullOptions{})
		patient <- err
	}()
	for len(layersOnDisk(t, root)) == 0 {
		time.Sleep(time.Millisecond)
	}
	quick, cancelQuick := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancelQuick()
	if _, err := s.Pull(quick, r.Host()+"/app:v1", nil, PullOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Pull with a deadline = %v; want DeadlineExceeded", err)
	}
	cancel()
	if err := <-patient; !errors.Is(err, context.Canceled) {
		t.Errorf("Pull cancelled = %v; want Canceled", err)
	}
	broken.Store(false)
	mustPull(t, s, r.Host()+"/app:v1")
	var n int
	for _, q := range r.Requests() {
		if q.Method == http.MethodGet && strings.Contains(q.Path, p.Layers[0].Digest.String()) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the complete layer was fetched %d times; want once", n)
	}
}

func TestPullDiskFull(t *testing.T) {
	needRoot(t)
	s := openStore(t, smallDisk(t, "1m"), anyFormat)
	r := newRegistry(t, registry.Options{})
	add(t, r, "zeros", "v1", simple(strings.Repeat("compresses well ", 1<<20)))
	add(t, r, "noise", "v1", simple(incompressible(4<<20, 1)))
	for _, ref := range []string{"zeros:v1", "noise:v1"} {
		if _, err := s.Pull(t.Context(), r.Host()+"/"+ref, nil, PullOptions{}); !errors.Is(err, errNoSpace) {
			t.Errorf("Pull(%s) = %v; want ENOSPC", ref, err)
		}
		isClean(t, s)
	}
	add(t, r, "small", "v1", simple("x"))
	mustPull(t, s, r.Host()+"/small:v1")
}

// BenchmarkPull: four layers of 16 MiB, compressed about two to one, from a registry on this machine.
func BenchmarkPull(b *testing.B) {
	needRoot(b)
	for _, c := range []registry.Compression{registry.Gzip, registry.Zstd} {
		b.Run(string(c), func(b *testing.B) {
			r := newRegistry(b, registry.Options{})
			var img registry.Image
			var size int64
			for i := range 4 {
				files := map[string]string{}
				for j := range 16 {
					files[fmt.Sprintf("l%d/f%d", i, j)] = strings.Repeat(incompressible(32, byte(i*16+j)), 8<<10) + incompressible(768<<10, byte(j))
				}
				l := registry.Files(files)
				l.Compression = c
				img.Layers = append(img.Layers, l)
				size += int64(len(l.Tar))
			}
			add(b, r, "big", "v1", img)
			s := openStore(b, b.TempDir(), func(c *Config) { c.Log = nil })
			b.SetBytes(size)
			for b.Loop() {
				got := mustPull(b, s, r.Host()+"/big:v1")
				if err := s.Remove(b.Context(), got.ID); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
