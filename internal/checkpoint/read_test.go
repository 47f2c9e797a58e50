package checkpoint

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry { return entry{tar.Header{Name: name, Typeflag: tar.TypeReg}, body} }

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := e.Header
		h.Mode, h.Size = 0o600, int64(len(e.body))
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = io.WriteString(w, e.body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

var whole = []entry{
	file("config.dump", `{"id":"c1","rootfsImage":"a/b:c"}`), file("spec.dump", `{"ociVersion":"1.0.2"}`),
	file("network.status", `{"pod":{"interfaces":{"eth0":{"subnets":[{"ipnet":"10.0.0.1/32"}]}}}}`), file("deleted.files", `["/etc/a"]`),
	{tar.Header{Name: "checkpoint/", Typeflag: tar.TypeDir}, ""}, file("checkpoint/inventory.img", "i"), file("./checkpoint/descriptors.json", "[]"),
	file("rootfs-diff.tar", "diff"), file("volumes/x.tar", "ignored"), {tar.Header{Name: "volumes/l", Typeflag: tar.TypeSymlink, Linkname: "/"}, ""},
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	data := archive(t, whole...)
	// The same as a folder, as the layer of an image is.
	layer := filepath.Join(dir, "layer")
	for _, e := range whole {
		at := filepath.Join(layer, e.Name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if e.Typeflag == tar.TypeReg {
			if err := os.WriteFile(at, []byte(e.body), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, from := range map[string]func() Source{
		"tar": func() Source { return Tar(bytes.NewReader(data)) }, "folder": func() Source { return Dir(layer) },
	} {
		docs, err := Inspect(t.Context(), from(), Limits{1 << 20, 100})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := &Documents{
			Config: Config{ID: "c1", RootfsImage: "a/b:c"}, Spec: []byte(`{"ociVersion":"1.0.2"}`), Deleted: []string{"/etc/a"},
			Network: map[string]Network{"pod": {map[string]Interface{"eth0": {Subnets: []Subnet{{IPNet: "10.0.0.1/32"}}}}}},
		}
		if diff := cmp.Diff(want, docs); diff != "" {
			t.Errorf("%s: Inspect (-want +got):\n%s", name, diff)
		}
		images, layers := filepath.Join(dir, name), ""
		err = Unpack(t.Context(), from(), images, Limits{1 << 20, 100}, func(r io.Reader) error {
			text, err := io.ReadAll(r)
			layers += string(text)
			return err
		})
		if err != nil || layers != "diff" {
			t.Errorf("%s: Unpack = %q, %v; want the difference", name, layers, err)
		}
		names := []string{}
		entries, err := os.ReadDir(images)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if err != nil || !slices.Equal(names, []string{"descriptors.json", "inventory.img"}) {
			t.Errorf("%s: images: %v, %v", name, names, err)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	big := string(make([]byte, maxJSON+1))
	for name, tc := range map[string]struct {
		data []byte
		want error
	}{
		"empty":             {archive(t), ErrInvalid},
		"no archive":        {[]byte("gzip or whatever, but long enough to be taken for a header of tar" + string(make([]byte, 512))), ErrInvalid},
		"cut":               {archive(t, whole...)[:700], ErrInvalid},
		"no specification":  {archive(t, whole[0]), ErrInvalid},
		"no JSON":           {archive(t, file("config.dump", "{"), whole[1]), ErrInvalid},
		"other JSON":        {archive(t, file("config.dump", "[1]"), whole[1]), ErrInvalid},
		"deleted":           {archive(t, whole[0], whole[1], file("deleted.files", `{"a":1}`)), ErrInvalid},
		"a large document":  {archive(t, file("config.dump", big), whole[1]), ErrTooLarge},
		"twice":             {archive(t, whole[0], whole[1], file("./config.dump", "{}")), ErrInvalid},
		"an image twice":    {archive(t, append(whole, file("checkpoint//inventory.img", "j"))...), ErrInvalid},
		"above":             {archive(t, append(whole, file("checkpoint/../../x.img", "j"))...), ErrInvalid},
		"a link":            {archive(t, append(whole, entry{tar.Header{Name: "checkpoint/core-1.img", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}, ""})...), ErrInvalid},
		"a hard link":       {archive(t, append(whole, entry{tar.Header{Name: "checkpoint/core-1.img", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}, ""})...), ErrInvalid},
		"a device":          {archive(t, append(whole, entry{tar.Header{Name: "checkpoint/core-1.img", Typeflag: tar.TypeChar}, ""})...), ErrInvalid},
		"a file as folder":  {archive(t, append(whole, file("checkpoint", ""))...), ErrInvalid},
		"a folder as file":  {archive(t, append(whole, entry{tar.Header{Name: "status/", Typeflag: tar.TypeDir}, ""})...), ErrInvalid},
		"a long name":       {archive(t, append(whole, file("checkpoint/"+string(bytes.Repeat([]byte{'a'}, 200))+".img", ""))...), ErrInvalid},
		"larger than limit": {archive(t, append(whole, file("checkpoint/pages-1.img", string(make([]byte, 8<<20))))...), ErrTooLarge},
		"too many":          {archive(t, slices.Repeat([]entry{file("x", "")}, 200)...), ErrTooLarge},
	} {
		images := filepath.Join(t.TempDir(), "images")
		_, err := Inspect(t.Context(), Tar(bytes.NewReader(tc.data)), Limits{6 << 20, 100})
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: Inspect = %v; want %v", name, err, tc.want)
		}
		if err := Unpack(t.Context(), Tar(bytes.NewReader(tc.data)), images, Limits{6 << 20, 100}, drop); err == nil && name == "a link" {
			t.Errorf("%s: unpacked", name)
		}
	}
}

func drop(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// A layer may have anything in place of a file.
func TestDirRefuses(t *testing.T) {
	for name, make := range map[string]func(at string) error{
		"link":   func(at string) error { return os.Symlink("/etc/passwd", at) },
		"FIFO":   func(at string) error { return syscall.Mkfifo(at, 0o600) },
		"folder": func(at string) error { return os.Mkdir(at, 0o700) },
	} {
		dir := t.TempDir()
		if err := make(filepath.Join(dir, "config.dump")); err != nil {
			t.Fatal(err)
		}
		if _, err := Inspect(t.Context(), Dir(dir), Limits{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("a %s as config.dump: %v; want ErrInvalid", name, err)
		}
		dir = t.TempDir()
		if name != "folder" {
			if err := make(filepath.Join(dir, "checkpoint")); err != nil {
				t.Fatal(err)
			}
			if _, err := Inspect(t.Context(), Dir(dir), Limits{}); !errors.Is(err, ErrInvalid) {
				t.Errorf("a %s as checkpoint: %v; want ErrInvalid", name, err)
			}
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(archive(f, whole...))
	f.Add(archive(f, whole[0]))
	f.Fuzz(func(t *testing.T, data []byte) {
		limits := Limits{1 << 20, 64}
		docs, err := Inspect(t.Context(), Tar(bytes.NewReader(data)), limits)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("Inspect = %v; want ErrInvalid or ErrTooLarge", err)
			}
			return
		}
		if docs.Spec == nil {
			t.Error("no specification, and no error")
		}
		dir := t.TempDir()
		images := filepath.Join(dir, "images")
		_ = Unpack(t.Context(), Tar(bytes.NewReader(data)), images, limits, drop)
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Errorf("beside the images: %v, %v", entries, err)
		}
		inside, err := os.ReadDir(images)
		for _, e := range inside {
			if !e.Type().IsRegular() {
				t.Errorf("%s is no regular file", e.Name())
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
}
