package image

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners and device nodes")
	}
}

func newRegistry(t testing.TB, o registry.Options) *registry.Server {
	t.Helper()
	r, err := registry.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// formatVariable has the format of layers that the tests are to use; hack/test.sh runs them once with each.
const formatVariable = "CRI_SHIM_TEST_LAYER_FORMAT"

func directories(c *Config) { c.LayerFormat = LayerDirectory }

// anyFormat is for stores on file systems that cannot hold images.
func anyFormat(c *Config) { c.LayerFormat = LayerAuto }

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func openStore(t testing.TB, root string, change ...func(*Config)) *Store {
	t.Helper()
	cfg := Config{Root: root, RegistryConfigDir: []string{}, ProgressTimeout: 5 * time.Second}
	cfg.Log = slog.New(slog.NewTextHandler(testLog{t}, nil))
	for _, c := range change {
		c(&cfg)
	}
	if cfg.LayerFormat == "" && cfg.Snapshotter != SnapshotNative {
		cfg.LayerFormat = os.Getenv(formatVariable)
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

func add(t testing.TB, r *registry.Server, repo, tag string, img registry.Image) registry.Pushed {
	t.Helper()
	p, err := r.AddImage(repo, tag, img)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustPull(t testing.TB, s *Store, ref string) *Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref, nil, PullOptions{})
	if err != nil {
		t.Fatalf("Pull(%s): %v", ref, err)
	}
	return img
}

// inRootfs mounts the image and gives the path of the mount, through the descriptor: it is attached nowhere.
func inRootfs(t testing.TB, s *Store, id string, o RootfsOptions) string {
	t.Helper()
	f, err := s.Rootfs(t.Context(), id, t.TempDir(), o)
	if err != nil {
		t.Fatalf("Rootfs(%s): %v", id, err)
	}
	t.Cleanup(func() { f.Close() })
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
}

func TestPullListGetRemove(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "team/app", "v1", registry.Image{
		Layers: []registry.Layer{
			registry.Files(map[string]string{"bin/app": "one", "etc/app/conf": "a", "etc/gone": "x"}),
			registry.Files(map[string]string{"bin/app": "two", "etc/.wh.gone": "", "etc/app/.wh..wh..opq": "", "etc/app/new": "b"}),
		},
		Config: ocispec.ImageConfig{Env: []string{"A=b"}},
	})
	root := t.TempDir()
	s := openStore(t, root)
	ref := r.Host() + "/team/app:v1"
	img := mustPull(t, s, ref)
	if img.ID != p.ID.String() {
		t.Errorf("Pull().ID = %s; want %s", img.ID, p.ID)
	}
	if diff := cmp.Diff([]string{ref}, img.RepoTags); diff != "" {
		t.Errorf("RepoTags (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{r.Host() + "/team/app@" + p.Manifest.Digest.String()}, img.RepoDigests); diff != "" {
		t.Errorf("RepoDigests (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(p.DiffIDs, img.Layers); diff != "" {
		t.Errorf("Layers (-want +got):\n%s", diff)
	}
	if img.Size <= 0 || len(img.Config.Config.Env) != 1 {
		t.Errorf("Size = %d, Env = %v; want both", img.Size, img.Config.Config.Env)
	}
	for _, name := range []string{ref, img.ID, p.ID.Encoded(), p.ID.Encoded()[:8], "sha256:" + p.ID.Encoded()[:12], img.RepoDigests[0], ref + "@" + p.Manifest.Digest.String()} {
		got, err := s.Get(name)
		if err != nil || got.ID != img.ID {
			t.Errorf("Get(%s) = %v, %v; want %s", name, got, err, img.ID)
		}
	}
	fs := inRootfs(t, s, img.ID, RootfsOptions{})
	for name, want := range map[string]string{"bin/app": "two", "etc/app/new": "b"} {
		if b, err := os.ReadFile(filepath.Join(fs, name)); string(b) != want {
			t.Errorf("%s = %q, %v; want %q", name, b, err, want)
		}
	}
	for _, name := range []string{"etc/gone", "etc/app/conf"} {
		if _, err := os.Lstat(filepath.Join(fs, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Lstat(%s) = %v; want it hidden", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(fs, "bin/app"), []byte("three"), 0o755); err != nil {
		t.Errorf("write into the root file system: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openStore(t, root)
	if got := s.List(); len(got) != 1 || !cmp.Equal(got[0].RepoTags, img.RepoTags) || got[0].Size != img.Size {
		t.Errorf("List() after reopening = %+v; want %+v", got, img)
	}
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Errorf("Remove(%s): %v", ref, err)
	}
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Errorf("Remove(%s) again: %v", ref, err)
	}
	if _, err := s.Get(img.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get after Remove = %v; want ErrNotFound", err)
	}
	if left := layersOnDisk(t, root); len(left) != 0 {
		t.Errorf("layers left after Remove: %v", left)
	}
}

func layersOnDisk(t testing.TB, root string) []string {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(root, "layers", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}
