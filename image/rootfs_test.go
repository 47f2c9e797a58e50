package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/internal/sys"
)

func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRootfsIsDetached(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", simple("x"))
	s := openStore(t, t.TempDir())
	img := mustPull(t, s, r.Host()+"/app:v1")
	before := mounts(t)
	dir := t.TempDir()
	f, err := s.Rootfs(t.Context(), img.ID, dir, RootfsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if after := mounts(t); after != before {
		t.Errorf("mount table changed:\n%s", after)
	}
	path := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	if err := os.WriteFile(path+"/new", []byte("n"), 0o600); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// The same directory again: what was written is there, whatever the volatile mount left in work/.
	f, err = s.Rootfs(t.Context(), img.ID, dir, RootfsOptions{})
	if err != nil {
		t.Fatalf("Rootfs again: %v", err)
	}
	defer f.Close()
	if b, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(int(f.Fd())) + "/new"); string(b) != "n" {
		t.Errorf("new = %q, %v; want n", b, err)
	}
}

func TestRootfsReadonly(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "one", "v1", simple("x"))
	add(t, r, "whiteout", "v1", registry.Image{Layers: []registry.Layer{registry.Files(map[string]string{"f": "x", ".wh.g": ""})}})
	add(t, r, "two", "v1", registry.Image{Layers: []registry.Layer{registry.Files(map[string]string{"f": "x"}), registry.Files(map[string]string{"g": "y"})}})
	add(t, r, "none", "v1", registry.Image{})
	s := openStore(t, t.TempDir())
	for repo, want := range map[string]string{"one": "f", "whiteout": "f", "two": "f g", "none": ""} {
		fs := inRootfs(t, s, mustPull(t, s, r.Host()+"/"+repo+":v1").ID, RootfsOptions{Readonly: true})
		if got := strings.Join(names(t, fs), " "); got != want {
			t.Errorf("%s has %q; want %q", repo, got, want)
		}
		if err := os.WriteFile(fs+"/x", nil, 0o600); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("%s: write = %v; want EROFS", repo, err)
		}
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// TestRootfsManyLayers: as many layers as are accepted can be mounted, with one more for attributes.
func TestRootfsManyLayers(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	img := registry.Image{Layers: []registry.Layer{registry.Entries([]tar.Header{{Name: "./", Typeflag: tar.TypeDir, Mode: 0o711}}, nil)}}
	for i := range maxLayers - 1 {
		img.Layers = append(img.Layers, registry.Files(map[string]string{fmt.Sprintf("f%d", i): "x"}))
	}
	add(t, r, "many", "v1", img)
	s := openStore(t, t.TempDir())
	start := time.Now()
	got := mustPull(t, s, r.Host()+"/many:v1")
	pulled := time.Now()
	fs := inRootfs(t, s, got.ID, RootfsOptions{})
	t.Logf("pulled %d layers in %v, mounted in %v", len(img.Layers), pulled.Sub(start), time.Since(pulled))
	if n := len(names(t, fs)); n != maxLayers-1 {
		t.Errorf("%d files; want %d", n, maxLayers-1)
	}
	if st, err := os.Stat(fs); err != nil || st.Mode().Perm() != 0o711 {
		t.Errorf("root directory has mode %v, %v; want 0711", st.Mode(), err)
	}
}

// TestLayerTwice: overlayfs refuses the same directory twice; images have the same layer twice.
func TestLayerTwice(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	a, b := registry.Files(map[string]string{"f": "a"}), registry.Files(map[string]string{"f": "b", "g": "b"})
	add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{a, b, a}})
	s := openStore(t, t.TempDir())
	fs := inRootfs(t, s, mustPull(t, s, r.Host()+"/app:v1").ID, RootfsOptions{})
	if got, err := os.ReadFile(fs + "/f"); string(got) != "a" {
		t.Errorf("f = %q, %v; want a", got, err)
	}
	if got, err := os.ReadFile(fs + "/g"); string(got) != "b" {
		t.Errorf("g = %q, %v; want b", got, err)
	}
}

// TestImpliedDirectories: directories that an upper layer has no entry for keep what the lower layer says.
func TestImpliedDirectories(t *testing.T) {
	needRoot(t)
	dir := func(name string, mode int64, uid int) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, Uid: uid}
	}
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644} }
	home := dir("home/user/", 0o700, 1000)
	home.PAXRecords = map[string]string{"SCHILY.xattr.user.k": "v"}
	base := registry.Entries([]tar.Header{
		dir("./", 0o750, 5), dir("tmp/", 0o1777, 0), dir("home/", 0o755, 0), home, dir("gone/", 0o700, 1), dir("hidden/", 0o700, 1),
		dir("file/", 0o700, 1), dir("chmod/", 0o700, 1), dir("link/", 0o711, 0),
	}, nil)
	middle := registry.Entries([]tar.Header{file(".wh.gone"), file("hidden/.wh..wh..opq"), file("tmp/one"), dir("chmod/", 0o705, 2)}, nil)
	top := registry.Entries([]tar.Header{file("tmp/two"), file("home/user/new"), file("gone/again"), file("hidden/x"), file("chmod/x"), file("deep/er/x")}, nil)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{base, middle, top}})
	root := t.TempDir()
	s := openStore(t, root)
	img := mustPull(t, s, r.Host()+"/app:v1")
	check := func(s *Store, o RootfsOptions) {
		t.Helper()
		fs := inRootfs(t, s, img.ID, o)
		for name, want := range map[string]string{
			".": "750 5", "tmp": "1777 0", "home": "755 0", "home/user": "700 1000", "gone": "755 0", "hidden": "755 0",
			"chmod": "705 2", "deep/er": "755 0",
		} {
			f, err := os.Open(fs)
			if err != nil {
				t.Fatal(err)
			}
			st, err := sys.Lstatat(int(f.Fd()), name)
			if got := fmt.Sprintf("%o %d", st.Mode&0o7777, st.Uid); err != nil || got != want {
				t.Errorf("%s is %s, %v; want %s", name, got, err, want)
			}
			f.Close()
		}
		f, err := os.Open(fs)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if v, err := sys.Getxattrat(int(f.Fd()), "home/user", "user.k"); string(v) != "v" {
			t.Errorf("user.k of home/user = %q, %v; want v", v, err)
		}
		if got := strings.Join(names(t, fs+"/tmp"), " "); got != "one two" {
			t.Errorf("tmp has %q; want one two", got)
		}
		if got := strings.Join(names(t, fs+"/gone"), " "); got != "again" {
			t.Errorf("gone has %q; want again", got)
		}
	}
	check(s, RootfsOptions{})
	check(s, RootfsOptions{Readonly: true})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check(openStore(t, root), RootfsOptions{})
}

// TestRootfsUserNamespace: with an idmapped rootfs, the image's root is the namespace's.
func TestRootfsUserNamespace(t *testing.T) {
	needRoot(t)
	userns := newUserNS(t, 100000)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{
		registry.Entries([]tar.Header{{Name: "f", Typeflag: tar.TypeReg, Uid: 7, Mode: 0o644}}, []string{"x"}), registry.Files(map[string]string{"g": ""})}})
	s := openStore(t, t.TempDir())
	img := mustPull(t, s, r.Host()+"/app:v1")
	for _, ro := range []bool{false, true} {
		f, err := s.Rootfs(t.Context(), img.ID, t.TempDir(), RootfsOptions{UserNS: userns, Readonly: ro})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fs := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
		for name, want := range map[string]uint32{"/f": 100007, "/g": 100000, "/.": 100000} {
			st, err := os.Stat(fs + name)
			if err != nil {
				t.Fatal(err)
			}
			if got := st.Sys().(*syscall.Stat_t).Uid; got != want {
				t.Errorf("owner of %s = %d; want %d (readonly %v)", name, got, want, ro)
			}
		}
	}
}

// newUserNS makes a user namespace that maps 65536 IDs from first on.
func newUserNS(t *testing.T, first int) *os.File {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: m, GidMappings: m, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Skipf("user namespace: %v", err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// BenchmarkRootfs makes the root of one container more of an image with 7 layers; "first" is the first one of the image.
func BenchmarkRootfs(b *testing.B) {
	needErofs(b)
	r := newRegistry(b, registry.Options{})
	img := registry.Image{}
	for i := range 7 {
		img.Layers = append(img.Layers, registry.Files(map[string]string{fmt.Sprintf("d/f%d", i): "x"}))
	}
	add(b, r, "app", "v1", img)
	for _, bc := range []struct {
		name   string
		format func(*Config)
		first  bool
	}{{"directory", directories, false}, {"erofs", asImages, false}, {"erofs/first", asImages, true}} {
		b.Run(bc.name, func(b *testing.B) {
			s := openStore(b, b.TempDir(), bc.format)
			got := mustPull(b, s, r.Host()+"/app:v1")
			dir := filepath.Join(b.TempDir(), "ctr")
			var took []time.Duration
			for b.Loop() {
				if bc.first {
					for _, id := range got.Layers {
						s.trees.drop(id)
					}
				}
				if err := os.Mkdir(dir, 0o700); err != nil {
					b.Fatal(err)
				}
				start := time.Now()
				f, err := s.Rootfs(b.Context(), got.ID, dir, RootfsOptions{})
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
				if err := errors.Join(f.Close(), os.RemoveAll(dir)); err != nil {
					b.Fatal(err)
				}
			}
			// Without the unmounting: it is not on the way of a start.
			slices.Sort(took)
			b.ReportMetric(float64(took[0].Microseconds()), "min-us")
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "median-us")
		})
	}
}
