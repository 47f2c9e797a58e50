package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

const (
	riscv  = "linux/riscv64"
	power  = "linux/ppc64le"
	armv6  = "linux/arm/v6"
	noSuch = "linux/mips64le"
)

// here is this machine's platform.
func here() string { return "linux/" + runtime.GOARCH }

// addPlatforms pushes an index of images whose file "f" has the platform and body. It has attestations too.
func addPlatforms(t testing.TB, r *registry.Server, repo, tag, body string, names ...string) map[string]registry.Pushed {
	t.Helper()
	all := map[string]registry.Pushed{}
	var entries []ocispec.Descriptor
	for _, name := range names {
		f := append(strings.Split(name, "/"), "")
		p := add(t, r, repo, "", registry.Image{
			Platform: ocispec.Platform{OS: f[0], Architecture: f[1], Variant: f[2]},
			Layers:   []registry.Layer{registry.Files(map[string]string{"shared": "by all"}), registry.Files(map[string]string{"f": name + " " + body})},
		})
		all[name] = p
		said := p.Manifest
		said.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
		entries = append(entries, p.Manifest, said)
	}
	if _, err := r.AddIndex(repo, tag, false, entries...); err != nil {
		t.Fatal(err)
	}
	return all
}

func pullPlatforms(t testing.TB, s *Store, ref string, o PullOptions) []*Image {
	t.Helper()
	all, err := s.PullPlatforms(t.Context(), ref, nil, o)
	if err != nil {
		t.Fatalf("PullPlatforms(%s, %+v): %v", ref, o, err)
	}
	return all
}

// platformsOf are those that a name has, in order.
func platformsOf(t testing.TB, s *Store, ref string) []string {
	t.Helper()
	all, err := s.Inspect(t.Context(), ref)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, i := range all {
		out = append(out, i.Platform)
	}
	return out
}

func wantPlatforms(t testing.TB, s *Store, ref string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, platformsOf(t, s, ref)); diff != "" {
		t.Errorf("platforms of %s (-want +got):\n%s", ref, diff)
	}
}

func TestPullPlatforms(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := addPlatforms(t, r, "app", "v1", "1", riscv, here(), armv6, power)
	s := openStore(t, t.TempDir())
	ref := r.Host() + "/app:v1"

	// One that this machine cannot run, and then all.
	first := pullPlatforms(t, s, ref, PullOptions{Platforms: []string{armv6}})
	if len(first) != 1 || first[0].ID != p[armv6].ID.String() || first[0].Platform != armv6 || !first[0].Foreign {
		t.Errorf("PullPlatforms(%s) = %+v; want it alone", armv6, first)
	}
	err := s.Runnable(ref)
	if !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), ref+" is here for "+armv6+", and this machine is "+here()) {
		t.Errorf("Runnable() = %v; want ErrPlatform with both platforms", err)
	}
	all := pullPlatforms(t, s, ref, PullOptions{AllPlatforms: true})
	if len(all) != 4 || all[0].ID != p[here()].ID.String() {
		t.Fatalf("PullPlatforms(all) = %+v; want 4, this machine's first", all)
	}
	wantPlatforms(t, s, ref, here(), armv6, power, riscv)
	wantPlatforms(t, s, all[0].RepoDigests[0], here(), armv6, power, riscv)
	wantPlatforms(t, s, p[power].ID.String(), power)
	if err := s.Runnable(ref); err != nil {
		t.Errorf("Runnable() = %v; want nil", err)
	}
	if err := s.Runnable(p[riscv].ID.String()); !errors.Is(err, ErrPlatform) {
		t.Errorf("Runnable(%s) = %v; want ErrPlatform", riscv, err)
	}
	for name, pushed := range p {
		if got := volume(t, s, pushed.ID.String())["f"]; got != name+" 1" {
			t.Errorf("f of %s = %q", name, got)
		}
	}

	// CRI clients see one image, with all that it takes.
	list := s.List()
	if len(list) != 1 || list[0].ID != p[here()].ID.String() || !slices.Equal(list[0].RepoTags, []string{ref}) || len(list[0].Platforms) != 4 {
		t.Fatalf("List() = %+v; want this machine's image alone", list)
	}
	if alone := s.views[p[here()].ID].Size; list[0].Size <= alone {
		t.Errorf("Size = %d; want more than one platform's %d", list[0].Size, alone)
	}
	if every, err := s.ListAll(t.Context()); err != nil || len(every) != 4 {
		t.Errorf("ListAll() = %d images, %v; want 4", len(every), err)
	}
	if n := len(layersOnDisk(t, s.cfg.Root)); n != 5 {
		t.Errorf("%d layers; want 5, one of them shared", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.cfg.Root)
	wantPlatforms(t, s, ref, here(), armv6, power, riscv)
	if got := s.List(); len(got) != 1 || !cmp.Equal(got[0], list[0]) {
		t.Errorf("reopened: List(): %s", cmp.Diff(list, got))
	}

	if rep := verify(t, s, VerifyOptions{Images: []string{ref}}); rep.Layers != 5 {
		t.Errorf("Verify(%s) = %d layers; want 5", ref, rep.Layers)
	}
	if err := s.Remove(t.Context(), list[0].ID); err != nil { // as the CRI does
		t.Fatal(err)
	}
	isClean(t, s)
	if left := layersOnDisk(t, s.cfg.Root); len(left) != 0 {
		t.Errorf("layers left: %v", left)
	}
}

// TestPlatformErrors: what is not there, or makes no sense, is an error that says what there is, and nothing is left.
func TestPlatformErrors(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	addPlatforms(t, r, "app", "v1", "1", riscv, here())
	add(t, r, "single", "v1", simple("x"))
	// The index says another architecture than the configuration.
	lie := add(t, r, "lie", "", simple("x")).Manifest
	lie.Platform = &ocispec.Platform{OS: "linux", Architecture: "riscv64"}
	if _, err := r.AddIndex("lie", "v1", false, lie); err != nil {
		t.Fatal(err)
	}
	var many []ocispec.Descriptor
	for range maxPlatforms + 1 {
		many = append(many, lie)
	}
	if _, err := r.AddIndex("many", "v1", false, many...); err != nil {
		t.Fatal(err)
	}
	missing := add(t, r, "half", "", simple("x")).Manifest
	gone := lie
	gone.Digest = digest.FromString("nobody has it")
	if _, err := r.AddIndex("half", "v1", false, missing, gone); err != nil {
		t.Fatal(err)
	}
	said := missing
	said.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	if _, err := r.AddIndex("none", "v1", false, said); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, t.TempDir())
	for name, tc := range map[string]struct {
		ref  string
		o    PullOptions
		want error
		says string
	}{
		"not in the index": {"app:v1", PullOptions{Platforms: []string{here(), noSuch}}, ErrPlatform, noSuch + " is not among"},
		"no index":         {"single:v1", PullOptions{Platforms: []string{riscv}}, ErrPlatform, "image is for " + here() + ", wanted " + riscv},
		"no platform":      {"app:v1", PullOptions{Platforms: []string{"no/such/platform/at/all"}}, ErrPlatform, "no/such"},
		"both":             {"app:v1", PullOptions{Platforms: []string{riscv}, AllPlatforms: true}, ErrPlatform, "and all"},
		"lie":              {"lie:v1", PullOptions{AllPlatforms: true}, ErrPlatform, "image is for " + here() + ", wanted " + riscv},
		"lie, one":         {"lie:v1", PullOptions{Platforms: []string{riscv}}, ErrPlatform, "image is for"},
		"too many":         {"many:v1", PullOptions{AllPlatforms: true}, nil, ""},
		"half of it":       {"half:v1", PullOptions{AllPlatforms: true}, ErrNotFound, gone.Digest.String()},
		"attestations":     {"none:v1", PullOptions{AllPlatforms: true}, ErrPlatform, ""},
	} {
		_, err := s.PullPlatforms(t.Context(), r.Host()+"/"+tc.ref, nil, tc.o)
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: PullPlatforms() = %v; want %v that says %q", name, err, tc.want, tc.says)
		}
		isClean(t, s)
	}
	if got := pullPlatforms(t, s, r.Host()+"/single:v1", PullOptions{AllPlatforms: true}); len(got) != 1 || got[0].Platform != here() {
		t.Errorf("all platforms of an image without an index = %+v", got)
	}
}

// TestPlatformBroken: a platform that cannot be fetched leaves the name as it was.
func TestPlatformBroken(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	old := addPlatforms(t, r, "app", "v1", "old", here())
	s := openStore(t, t.TempDir())
	ref := r.Host() + "/app:v1"
	pullPlatforms(t, s, ref, PullOptions{AllPlatforms: true})
	p := addPlatforms(t, r, "app", "v1", "new", here(), riscv)
	if err := os.Remove(filepath.Join(r.Root(), "blobs", "sha256", p[riscv].Layers[1].Digest.Encoded())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PullPlatforms(t.Context(), ref, nil, PullOptions{AllPlatforms: true}); !errors.Is(err, ErrNotFound) {
		t.Errorf("PullPlatforms() = %v; want ErrNotFound", err)
	}
	if img, err := s.Get(ref); err != nil || img.ID != old[here()].ID.String() || len(s.List()) != 1 {
		t.Errorf("Get() = %+v, %v; want the image from before", img, err)
	}
	if got := mustPull(t, s, ref); got.ID != p[here()].ID.String() {
		t.Errorf("Pull() = %s; want %s", got.ID, p[here()].ID)
	}
}

// TestPlatformNames: a name that moves takes all platforms with it, and names that share some keep what is theirs.
func TestPlatformNames(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	one := addPlatforms(t, r, "app", "v1", "1", here(), riscv, power)
	s := openStore(t, t.TempDir())
	ref, other := r.Host()+"/app:v1", r.Host()+"/app:v2"
	pullPlatforms(t, s, ref, PullOptions{AllPlatforms: true})

	// v2 has this machine's image and riscv's of v1, and another for power.
	changed := addPlatforms(t, r, "app", "", "2", power)
	if _, err := r.AddIndex("app", "v2", false, one[here()].Manifest, one[riscv].Manifest, changed[power].Manifest); err != nil {
		t.Fatal(err)
	}
	pullPlatforms(t, s, other, PullOptions{Platforms: []string{here(), power}})
	wantPlatforms(t, s, ref, here(), power, riscv)
	wantPlatforms(t, s, other, here(), power)
	all, err := s.Inspect(t.Context(), other)
	if err != nil || all[1].ID != changed[power].ID.String() {
		t.Errorf("Inspect(v2) = %+v, %v; want its own image for power", all, err)
	}
	if l := s.List(); len(l) != 1 || len(l[0].RepoTags) != 2 {
		t.Errorf("List() = %+v; want one image with two tags", l)
	}

	if _, err := s.Tag(t.Context(), ref, "example.org/copy:1", false); err != nil {
		t.Fatal(err)
	}
	wantPlatforms(t, s, "example.org/copy:1", here(), power, riscv)
	if _, err := s.Tag(t.Context(), ref, "example.org/copy:1", false); err != nil {
		t.Errorf("Tag() again = %v", err)
	}
	if _, err := s.Tag(t.Context(), changed[power].ID.String(), "example.org/copy:1", false); !errors.Is(err, ErrExists) {
		t.Errorf("Tag() of what another image has = %v; want ErrExists", err)
	}
	if err := s.Pin(t.Context(), other, true); err != nil {
		t.Fatal(err)
	}
	f, err := s.Free(t.Context(), FreeOptions{DryRun: true, Unused: true})
	if err != nil || len(f.Images) != 0 {
		t.Errorf("Free() with one of them pinned = %+v, %v; want nothing", f, err)
	}
	if err := s.Pin(t.Context(), other, false); err != nil {
		t.Fatal(err)
	}
	if err := s.Hold(one[here()].ID.String(), "ctr"); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Free(t.Context(), FreeOptions{DryRun: true, Unused: true}); err != nil || len(f.Images) != 0 {
		t.Errorf("Free() with one of them in use = %+v, %v; want nothing", f, err)
	}
	if err := s.Release("ctr"); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Free(t.Context(), FreeOptions{DryRun: true, Unused: true}); err != nil || len(f.Images) != 4 {
		t.Errorf("Free() = %+v, %v; want all 4", f, err)
	}

	if err := s.Remove(t.Context(), "example.org/copy:1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	wantPlatforms(t, s, other, here(), power)
	if every, err := s.ListAll(t.Context()); err != nil || len(every) != 2 {
		t.Errorf("ListAll() after the removal of v1 = %d images, %v; want v2's two", len(every), err)
	}

	// v2 moves, and only one platform of it is pulled: the others are not of that name any more.
	moved := addPlatforms(t, r, "app", "v2", "3", here(), riscv)
	pullPlatforms(t, s, other, PullOptions{Platforms: []string{riscv}})
	wantPlatforms(t, s, other, riscv)
	if err := s.Runnable(other); !errors.Is(err, ErrPlatform) {
		t.Errorf("Runnable() = %v; want ErrPlatform", err)
	}
	mustPull(t, s, other)
	wantPlatforms(t, s, other, here(), riscv)
	if img, err := s.Get(other); err != nil || img.ID != moved[here()].ID.String() {
		t.Errorf("Get(v2) = %+v, %v; want this machine's", img, err)
	}
	// One that has a digest of its own besides goes with the name, too.
	pullPlatforms(t, s, r.Host()+"/app@"+moved[riscv].Manifest.Digest.String(), PullOptions{Platforms: []string{riscv}})
	if err := s.Remove(t.Context(), moved[here()].ID.String()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(moved[riscv].ID.String()); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get() of the other platform = %v; want ErrNotFound", err)
	}
	pullPlatforms(t, s, other, PullOptions{AllPlatforms: true})
	wantPlatforms(t, s, other, here(), riscv)
	// By its ID one platform goes alone.
	if err := s.Remove(t.Context(), moved[riscv].ID.String()); err != nil {
		t.Fatal(err)
	}
	wantPlatforms(t, s, other, here())
}

// TestPlatformArchives: an export has just the platforms that are there, and an import gives them back.
func TestPlatformArchives(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := addPlatforms(t, r, "app", "v1", "1", here(), riscv, power)
	s := openStore(t, t.TempDir())
	ref := r.Host() + "/app:v1"
	pullPlatforms(t, s, ref, PullOptions{Platforms: []string{here(), power}})
	export := func(o ExportOptions) []byte {
		t.Helper()
		var b bytes.Buffer
		if err := s.Export(t.Context(), &b, []string{ref}, o); err != nil {
			t.Fatalf("Export(%+v): %v", o, err)
		}
		return b.Bytes()
	}
	entries := func(b []byte) (all []string) {
		t.Helper()
		files, _ := tarFiles(t, b, nil)
		var idx ocispec.Index
		fromJSON(t, files["index.json"], &idx)
		if len(idx.Manifests) != 1 || idx.Manifests[0].Annotations["io.containerd.image.name"] != ref {
			t.Fatalf("index.json: %+v; want one entry of that name", idx)
		}
		if idx.Manifests[0].MediaType == ocispec.MediaTypeImageIndex {
			var inner ocispec.Index
			fromJSON(t, files[blobName(idx.Manifests[0].Digest)], &inner)
			idx = inner
		}
		for _, m := range idx.Manifests {
			all = append(all, m.Platform.OS+"/"+m.Platform.Architecture)
		}
		return all
	}
	if _, err := s.PullPlatforms(t.Context(), ref, nil, PullOptions{Platforms: []string{noSuch}}); err == nil {
		t.Error("a platform that is nowhere was pulled")
	}
	whole := export(ExportOptions{AllPlatforms: true})
	for want, b := range map[string][]byte{
		here() + " " + power: whole, here(): export(ExportOptions{}), power: export(ExportOptions{Platforms: []string{power}}),
		power + " " + here(): export(ExportOptions{Platforms: []string{power, here()}}),
	} {
		if got := strings.Join(entries(b), " "); got != want {
			t.Errorf("export has %q; want %q", got, want)
		}
	}
	err := s.Export(t.Context(), io.Discard, []string{ref}, ExportOptions{Platforms: []string{riscv}})
	if !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), power) {
		t.Errorf("Export() of a platform that is not there = %v; want ErrPlatform that says what is", err)
	}

	into := openStore(t, t.TempDir())
	if got, err := into.Import(t.Context(), bytes.NewReader(whole), ImportOptions{}); err != nil || len(got) != 1 || got[0].ID != p[here()].ID.String() {
		t.Errorf("Import() = %+v, %v; want this machine's alone", got, err)
	}
	got, err := into.Import(t.Context(), bytes.NewReader(whole), ImportOptions{AllPlatforms: true, Digests: true})
	if err != nil || len(got) != 2 {
		t.Fatalf("Import(all) = %+v, %v; want two", got, err)
	}
	wantPlatforms(t, into, ref, here(), power)
	var again bytes.Buffer
	if err := into.Export(t.Context(), &again, []string{ref}, ExportOptions{AllPlatforms: true}); err != nil || !bytes.Equal(again.Bytes(), whole) {
		t.Errorf("what was imported is exported as something else: %v", err)
	}
	for _, name := range []string{here(), power} {
		if f := volume(t, into, p[name].ID.String())["f"]; f != name+" 1" {
			t.Errorf("f of %s = %q", name, f)
		}
	}
	old, err := openStore(t, t.TempDir()).Import(t.Context(), bytes.NewReader(oldDocker(t, export(ExportOptions{}))), ImportOptions{AllPlatforms: true})
	if err != nil || len(old) != 1 || old[0].ID != p[here()].ID.String() {
		t.Errorf("Import(all) of what docker save wrote before version 25 = %+v, %v; want its image", old, err)
	}
	if _, err := into.Import(t.Context(), bytes.NewReader(whole), ImportOptions{AllPlatforms: true, PlatformName: power}); !errors.Is(err, ErrPlatform) {
		t.Errorf("Import(all, and one) = %v; want ErrPlatform", err)
	}
	if err := into.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	isClean(t, into)

	// Entries of one name instead of an index, and an archive that lacks what its index names.
	flat := func(files map[string]string) {
		var idx, inner ocispec.Index
		fromJSON(t, files["index.json"], &idx)
		fromJSON(t, files[blobName(idx.Manifests[0].Digest)], &inner)
		for i := range inner.Manifests {
			inner.Manifests[i].Annotations = idx.Manifests[0].Annotations
		}
		files["index.json"] = string(mustJSON(t, inner))
	}
	lacking := func(d digest.Digest) func(map[string]string) {
		return func(files map[string]string) { delete(files, blobName(d)) }
	}
	var manifest string
	files, _ := tarFiles(t, whole, nil)
	for name, body := range files {
		if strings.Contains(body, p[power].ID.String()) && strings.HasPrefix(name, "blobs/") {
			manifest = name
		}
	}
	if manifest == "" {
		t.Fatal("no manifest for power in the export")
	}
	for name, tc := range map[string]struct {
		change []func(map[string]string)
		want   []string
	}{
		"flat":                   {[]func(map[string]string){flat}, []string{here(), power}},
		"no layer":               {[]func(map[string]string){lacking(p[power].DiffIDs[1])}, []string{here()}},
		"no configuration":       {[]func(map[string]string){lacking(p[power].ID)}, []string{here()}},
		"no manifest":            {[]func(map[string]string){func(f map[string]string) { delete(f, manifest) }}, []string{here()}},
		"flat, no manifest":      {[]func(map[string]string){flat, func(f map[string]string) { delete(f, manifest) }}, []string{here()}},
		"not for this machine":   {[]func(map[string]string){lacking(p[here()].ID)}, []string{power}},
		"nothing but an index":   {[]func(map[string]string){lacking(p[here()].ID), lacking(p[power].ID)}, nil},
		"flat, and nothing else": {[]func(map[string]string){flat, lacking(p[here()].ID), lacking(p[power].ID)}, nil},
	} {
		into := openStore(t, t.TempDir())
		files, _ := tarFiles(t, whole, nil)
		for _, c := range tc.change {
			c(files)
		}
		delete(files, "manifest.json")
		_, err := into.Import(t.Context(), bytes.NewReader(tarOf(t, files)), ImportOptions{AllPlatforms: true})
		if (err == nil) != (tc.want != nil) {
			t.Errorf("%s: Import() = %v", name, err)
		}
		if diff := cmp.Diff(tc.want, platformsOf(t, into, ref)); diff != "" {
			t.Errorf("%s: platforms (-want +got):\n%s", name, diff)
		}
	}
}

// TestPlatformRecords: records of before there were several platforms, and of a name that moved as the machine went down.
func TestPlatformRecords(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := addPlatforms(t, r, "app", "v1", "1", here(), riscv)
	ref := r.Host() + "/app:v1"
	forget := func(record map[string]any) {
		for _, n := range record["names"].([]any) {
			delete(n.(map[string]any), "top")
		}
	}
	for name, tc := range map[string]struct {
		change map[string]func(map[string]any)
		want   []string
	}{
		"as it was":       {nil, []string{here(), riscv}},
		"both older":      {map[string]func(map[string]any){here(): forget, riscv: forget}, []string{here(), riscv}},
		"one of them":     {map[string]func(map[string]any){here(): forget}, []string{here(), riscv}},
		"another index":   {map[string]func(map[string]any){riscv: setTop(digest.FromString("earlier"), "2000-01-01T00:00:00Z")}, []string{here()}},
		"a later index":   {map[string]func(map[string]any){riscv: setTop(digest.FromString("later"), "2999-01-01T00:00:00Z")}, []string{riscv}},
		"a damaged index": {map[string]func(map[string]any){riscv: func(r map[string]any) { r["manifestRaw"], r["configRaw"] = nil, nil }}, []string{here()}},
		"a damaged name":  {map[string]func(map[string]any){riscv: func(r map[string]any) { r["names"] = []any{map[string]any{"ref": "@@@"}} }}, []string{here()}},
	} {
		s := openStore(t, t.TempDir())
		pullPlatforms(t, s, ref, PullOptions{AllPlatforms: true})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for platform, change := range tc.change {
			path := filepath.Join(s.imageDir(p[platform].ID), "image.json")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var record map[string]any
			fromJSON(t, string(b), &record)
			change(record)
			if b, err = json.Marshal(record); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			s = openStore(t, s.cfg.Root)
			if diff := cmp.Diff(tc.want, platformsOf(t, s, ref)); diff != "" {
				t.Errorf("%s: platforms (-want +got):\n%s", name, diff)
			}
			if damaged := strings.HasPrefix(name, "a damaged"); damaged != (len(s.Problems()) > 0) {
				t.Errorf("%s: Problems() = %v", name, s.Problems())
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func setTop(top digest.Digest, at string) func(map[string]any) {
	return func(record map[string]any) {
		for _, n := range record["names"].([]any) {
			n := n.(map[string]any)
			if !strings.Contains(fmt.Sprint(n["ref"]), "@") {
				n["top"], n["at"] = top, at
			}
		}
	}
}

func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, body := range files {
		if strings.HasSuffix(name, "/") {
			continue
		}
		err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))})
		if err == nil {
			_, err = io.WriteString(w, body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestPlatformsAtOnce: pulls of one name for different platforms, and its removal, at the same time.
func TestPlatformsAtOnce(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	addPlatforms(t, r, "app", "v1", "1", here(), riscv, power)
	s := openStore(t, t.TempDir())
	ref := r.Host() + "/app:v1"
	var work sync.WaitGroup
	for _, o := range []PullOptions{{}, {AllPlatforms: true}, {Platforms: []string{riscv}}, {Platforms: []string{power, here()}}} {
		work.Go(func() {
			for range 5 {
				if _, err := s.PullPlatforms(t.Context(), ref, nil, o); err != nil {
					t.Errorf("PullPlatforms(%+v) = %v", o, err)
				}
				for _, i := range s.List() {
					if !slices.Contains(i.RepoTags, ref) {
						t.Errorf("List() has %+v; want no image without the tag", i)
					}
				}
			}
		})
	}
	work.Go(func() {
		for range 5 {
			if err := s.Remove(t.Context(), ref); err != nil {
				t.Errorf("Remove() = %v", err)
			}
		}
	})
	work.Wait()
	pullPlatforms(t, s, ref, PullOptions{AllPlatforms: true})
	wantPlatforms(t, s, ref, here(), power, riscv)
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	isClean(t, s)
	if left := layersOnDisk(t, s.cfg.Root); len(left) != 0 {
		t.Errorf("layers left: %v", left)
	}
}

// TestPlatformsInterrupted: what a daemon leaves that dies between the moves of a commit of several platforms. Once they are
// committed the next one finds all of them, and before that none.
func TestPlatformsInterrupted(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := addPlatforms(t, r, "app", "v1", "1", here(), riscv, power)
	addPlatforms(t, r, "app", "v2", "1", here(), riscv, power, armv6) // the same ones, and one more
	ref := func(tag string) string { return r.Host() + "/app:" + tag }
	order := []string{here(), power, riscv}
	for done := -1; done < 1<<len(order); done++ { // a bit for each that is in place already; -1 is not committed
		prefix := wholePrefix
		if done < 0 {
			prefix = groupPrefix
		}
		s := openStore(t, t.TempDir())
		pullPlatforms(t, s, ref("v2"), PullOptions{Platforms: []string{riscv}}) // its record is there, and is changed
		before, err := os.ReadFile(filepath.Join(s.imageDir(p[riscv].ID), "image.json"))
		if err != nil {
			t.Fatal(err)
		}
		pullPlatforms(t, s, ref("v1"), PullOptions{AllPlatforms: true})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		group := s.path("ingest", prefix+"1")
		if err := os.Mkdir(group, 0o700); err != nil {
			t.Fatal(err)
		}
		for i, platform := range order {
			if done >= 0 && done&(1<<i) != 0 {
				continue
			}
			dir, at := s.imageDir(p[platform].ID), filepath.Join(group, strings.Replace(p[platform].ID.String(), ":", "-", 1))
			if platform != riscv {
				err = os.Rename(dir, at)
			} else if err = os.Rename(dir+"/image.json", at+".json"); err == nil {
				err = os.WriteFile(dir+"/image.json", before, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			s = openStore(t, s.cfg.Root)
			if p := s.Problems(); len(p) > 0 {
				t.Errorf("Problems() = %v; want none", p)
			}
			if left := names(t, s.path("ingest")); len(left) > 0 {
				t.Errorf("left in ingest: %v", left)
			}
			wantPlatforms(t, s, ref("v2"), riscv)
			if done < 0 {
				wantPlatforms(t, s, ref("v1"))
			} else {
				wantPlatforms(t, s, ref("v1"), order...)
			}
			every, err := s.ListAll(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, img := range every {
				if err := s.Export(t.Context(), io.Discard, []string{img.ID}, ExportOptions{}); err != nil {
					t.Errorf("image %s is not whole: %v", img.RepoTags, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestKillPlatforms kills a process that makes images of many platforms visible, when the first of them is in its place.
func TestKillPlatforms(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	every := []string{here(), riscv, power, armv6, noSuch, "linux/arm/v5", "linux/s390x", "linux/loong64", "linux/mips64", "linux/sparc64", "linux/ppc64", "linux/mips"}
	addPlatforms(t, r, "app", "v1", "1", every...)
	ref := r.Host() + "/app:v1"
	rounds := 4
	if n, err := strconv.Atoi(os.Getenv("TEST_KILL_ROUNDS")); err == nil {
		rounds = n
	}
	between := 0
	for range rounds {
		root := t.TempDir()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TEST_PULL_INTO="+root, "TEST_PULL_REFS="+ref, "TEST_PULL_ONCE=1")
		var out bytes.Buffer
		cmd.Stderr = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); time.Now().Before(end); {
			if placed, err := os.ReadDir(filepath.Join(root, "images", "sha256")); err == nil && len(placed) > 0 {
				break
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || out.Len() > 0 {
			t.Fatalf("the pulling process ended by itself: %s", out.String())
		}
		if n := len(names(t, filepath.Join(root, "images", "sha256"))); n < len(every) {
			between++
		}
		s := openStore(t, root)
		if got := platformsOf(t, s, ref); len(got) != len(every) {
			t.Errorf("platforms = %q; want all %d", got, len(every))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("killed %d times, %d of them with some of the images in their places", rounds, between)
}
