package checkpoint

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func entries(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	out := map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(h.Typeflag) + h.Linkname + ":" + string(data)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	upper, images, work := filepath.Join(dir, "upper"), filepath.Join(dir, "images"), filepath.Join(dir, "work")
	for _, d := range []string{upper, images, work, filepath.Join(upper, "etc")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{filepath.Join(upper, "etc/a"): "content", filepath.Join(images, "x.img"): "image"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Link(filepath.Join(upper, "etc/a"), filepath.Join(upper, "etc/b")),
		os.Symlink("/nowhere", filepath.Join(upper, "link")), os.Symlink("x.img", filepath.Join(images, "parent"))); err != nil {
		t.Fatal(err)
	}
	gone := syscall.Mknod(filepath.Join(upper, "etc/gone"), syscall.S_IFCHR, 0) == nil
	path := filepath.Join(dir, "out.tar")
	content := Content{
		JSON: map[string]any{ConfigFile: Config{ID: "c1"}}, Dirs: map[string]string{ImagesDir: images},
		Files: map[string]string{StatsFile: filepath.Join(dir, "missing")}, Upper: upper,
	}
	if err := Write(path, work, content); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := entries(t, f)
	if got["checkpoint/x.img"] != "0:image" || got["checkpoint/"] == "" || got[ConfigFile] == "" {
		t.Errorf("archive: %v", got)
	}
	if _, ok := got[StatsFile]; ok {
		t.Error("a missing file is in the archive")
	}
	if _, ok := got["checkpoint/parent"]; ok {
		t.Error("a link is in the archive")
	}
	diff := entries(t, bytes.NewReader([]byte(got[DiffFile][2:])))
	if diff["etc/a"] != "0:content" || diff["etc/b"] != "1etc/a:" || diff["link"] != "2/nowhere:" {
		t.Errorf("difference: %q", diff)
	}
	if _, ok := diff["etc/.wh.gone"]; ok != gone {
		t.Errorf("difference: whiteout %v; want %v", ok, gone)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".out.tar*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	content.Dirs = map[string]string{ImagesDir: filepath.Join(dir, "none")}
	failed := filepath.Join(dir, "failed.tar")
	if err := Write(failed, work, content); err == nil {
		t.Error("an archive without images")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*failed.tar*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestDiffOfWhatChanges: what was a file when it was looked at may be a FIFO when it is opened. (A link would lead to another of
// the container's own files: os.Root.)
func TestDiffOfWhatChanges(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	d := differ{w: tar.NewWriter(io.Discard), root: root}
	if err := d.w.WriteHeader(&tar.Header{Name: "fifo", Size: 6}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- d.content("fifo", 6) }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("content of a FIFO = nil; want an error")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("content waits for a writer of a FIFO")
	}
}
