package image

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cri-shim/cri-shim/hack/registry"
)

func TestTagAndPin(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "one", "v1", simple("1"))
	add(t, r, "two", "v1", simple("2"))
	root := t.TempDir()
	s := openStore(t, root, func(c *Config) { c.Pinned = []string{r.Host() + "/two:v1"} })
	one, two := mustPull(t, s, r.Host()+"/one:v1"), mustPull(t, s, r.Host()+"/two:v1")

	name, err := s.Tag(t.Context(), one.ID, "kindest/app", false)
	if want := "docker.io/kindest/app:latest"; err != nil || name != want {
		t.Fatalf("Tag() = %q, %v; want %q", name, err, want)
	}
	for range 2 { // its own name again is no conflict
		if _, err := s.Tag(t.Context(), r.Host()+"/one:v1", "kindest/app:latest", false); err != nil {
			t.Errorf("Tag() again = %v; want nil", err)
		}
	}
	if _, err := s.Tag(t.Context(), two.ID, "kindest/app", false); !errors.Is(err, ErrExists) {
		t.Errorf("Tag() with the name of another = %v; want ErrExists", err)
	}
	for _, bad := range []string{"kindest/app@" + one.ID, "UPPER", ""} {
		if _, err := s.Tag(t.Context(), one.ID, bad, true); !errors.Is(err, ErrReference) {
			t.Errorf("Tag(%q) = %v; want ErrReference", bad, err)
		}
	}
	if _, err := s.Tag(t.Context(), "nothing", "a", true); !errors.Is(err, ErrNotFound) {
		t.Errorf("Tag of nothing = %v; want ErrNotFound", err)
	}
	if _, err := s.Tag(t.Context(), two.ID, "kindest/app", true); err != nil {
		t.Fatal(err)
	}
	for pinned, operation := range map[bool]string{true: "pin image: ", false: "unpin image: "} {
		if err := s.Pin(t.Context(), "nothing", pinned); !errors.Is(err, ErrNotFound) || !strings.HasPrefix(err.Error(), operation) {
			t.Errorf("Pin(nothing, %v) = %v; want ErrNotFound that begins with %q", pinned, err, operation)
		}
	}
	if err := s.Pin(t.Context(), one.ID, true); err != nil {
		t.Fatal(err)
	}
	if err := s.Pin(t.Context(), two.ID, false); !errors.Is(err, ErrExists) {
		t.Errorf("Pin(false) of an image that the configuration pins = %v; want ErrExists", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, root)
	if got, err := s.Get("kindest/app"); err != nil || got.ID != two.ID {
		t.Errorf("Get of a tag that was taken, after reopening = %v, %v; want %s", got, err, two.ID)
	}
	got, err := s.Get(one.ID)
	if err != nil || !got.Pinned || !cmp.Equal(got.RepoTags, one.RepoTags) {
		t.Errorf("after reopening: %+v, %v; want it pinned, with its first tags", got, err)
	}
	if err := s.Pin(t.Context(), one.ID, false); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Get(one.ID); got.Pinned {
		t.Error("still pinned after Pin(false)")
	}
}

func TestImportNames(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "one", "v1", simple("1"))
	two := add(t, r, "two", "v1", simple("2"))
	s := openStore(t, t.TempDir())
	named := mustPull(t, s, r.Host()+"/one:v1").RepoTags[0]
	mustPull(t, s, r.Host()+"/two:v1")
	if err := s.Remove(t.Context(), r.Host()+"/two:v1"); err != nil {
		t.Fatal(err)
	}
	unnamed := mustPull(t, s, r.Host()+"/two@"+two.Manifest.Digest.String())
	archive := export(t, s, named, unnamed.ID)
	manifest := exportedManifest(t, s, named)
	for name, tt := range map[string]struct {
		o    ImportOptions
		want []string // of all images, tags and digests without what follows the @
	}{
		"plain":       {ImportOptions{}, []string{named}},
		"digests":     {ImportOptions{Digests: true, Unnamed: "import-x"}, []string{named, repository(named) + "@", "docker.io/library/import-x@"}},
		"skip named":  {ImportOptions{Digests: true, SkipNamed: true, Unnamed: "import-x"}, []string{named, "docker.io/library/import-x@"}},
		"no basename": {ImportOptions{Digests: true}, []string{named, repository(named) + "@"}},
	} {
		s2 := openStore(t, t.TempDir())
		imgs, err := s2.Import(t.Context(), bytes.NewReader(archive), tt.o)
		if err != nil || len(imgs) != 2 {
			t.Fatalf("%s: Import() = %v, %v; want two images", name, imgs, err)
		}
		var got []string
		for _, i := range imgs {
			got = append(got, i.RepoTags...)
			for _, d := range i.RepoDigests {
				got = append(got, repository(d)+"@")
			}
			if i.Pinned {
				t.Errorf("%s: %s is pinned", name, i.ID)
			}
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: names (-want +got):\n%s", name, d)
		}
	}
	s2 := openStore(t, t.TempDir())
	imgs, err := s2.Import(t.Context(), bytes.NewReader(archive), ImportOptions{Pin: true, Digests: true, PlatformName: "linux/" + s2.cfg.Platform.Architecture})
	if err != nil || !imgs[0].Pinned || !imgs[1].Pinned {
		t.Fatalf("Import(Pin) = %v, %v; want both pinned", imgs, err)
	}
	if _, err := s2.Get(repository(named) + "@" + manifest); err != nil {
		t.Errorf("Get by the digest of the archive's manifest: %v", err)
	}
	if _, err := s2.Import(t.Context(), bytes.NewReader(archive), ImportOptions{PlatformName: "no/such/platform/at/all"}); !errors.Is(err, ErrPlatform) {
		t.Errorf("Import with a platform that is none = %v; want ErrPlatform", err)
	}
}

// exportedManifest is the digest of the manifest that an export gives an image.
func exportedManifest(t *testing.T, s *Store, ref string) string {
	t.Helper()
	files, _ := tarFiles(t, export(t, s, ref), nil)
	var idx struct{ Manifests []struct{ Digest string } }
	fromJSON(t, files["index.json"], &idx)
	return idx.Manifests[0].Digest
}
