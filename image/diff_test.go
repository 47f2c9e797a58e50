package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cri-shim/cri-shim/internal/sys"
)

func diffTar(t testing.TB, headers ...tar.Header) io.Reader {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

func TestApplyDiff(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	root, upper := filepath.Join(dir, "root"), filepath.Join(dir, "upper")
	for _, d := range []string{filepath.Join(root, "tmp"), filepath.Join(root, "etc/deep"), upper} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky), os.Chown(filepath.Join(root, "etc/deep"), 12, 34)); err != nil {
		t.Fatal(err)
	}
	image, err := os.OpenFile(root, sys.OpenPath|sys.OpenDirectory, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	apply := func(deleted []string, headers ...tar.Header) error {
		return ApplyDiff(t.Context(), image, upper, diffTar(t, headers...), deleted, DiffLimits{1 << 20, 100})
	}
	err = apply([]string{"/tmp/gone", "etc/deep/x", "/again"}, tar.Header{Name: "again", Typeflag: tar.TypeReg, Mode: 0o644}, tar.Header{Name: "new/", Typeflag: tar.TypeDir, Mode: 0o700})
	if err != nil {
		t.Fatal(err)
	}
	stat := func(name string) (st syscall.Stat_t) {
		t.Helper()
		if err := syscall.Lstat(filepath.Join(upper, name), &st); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return st
	}
	for _, name := range []string{"tmp/gone", "etc/deep/x"} {
		if st := stat(name); st.Mode&syscall.S_IFMT != syscall.S_IFCHR || st.Rdev != 0 {
			t.Errorf("%s: mode %o; want overlayfs's mark that it is gone", name, st.Mode)
		}
	}
	if st := stat("again"); st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		t.Errorf("again: mode %o; want the new file", st.Mode)
	}
	if st := stat("tmp"); st.Mode&0o7777 != 0o1777 {
		t.Errorf("tmp: mode %o; want the image's, 1777", st.Mode&0o7777)
	}
	if st := stat("etc/deep"); st.Uid != 12 || st.Gid != 34 {
		t.Errorf("etc/deep: owner %d:%d; want the image's, 12:34", st.Uid, st.Gid)
	}
	for _, name := range []string{"", "/", "..", "a\x00b", "/.wh.x", "a/.wh..wh..opq"} {
		if err := apply([]string{name}); !errors.Is(err, ErrInvalid) {
			t.Errorf("deleted %q: %v; want ErrInvalid", name, err)
		}
	}
	if err := apply(nil, tar.Header{Name: "../x", Typeflag: tar.TypeReg}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a difference that leaves: %v; want ErrInvalid", err)
	}
}

func FuzzWhiteouts(f *testing.F) {
	f.Add("/etc/passwd")
	f.Add("../../x")
	f.Fuzz(func(t *testing.T, name string) {
		r, err := whiteouts([]string{name})
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("whiteouts(%q) = %v; want ErrInvalid", name, err)
			}
			return
		}
		h, err := tar.NewReader(io.MultiReader(r, bytes.NewReader(make([]byte, 1024)))).Next()
		if err != nil || !filepath.IsLocal(h.Name) {
			t.Errorf("whiteouts(%q): an entry %v, %v; want one that stays inside", name, h, err)
		}
	})
}
