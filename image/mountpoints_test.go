package image

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// TestMountpoints: what is mounted over in every container is there without costing its writable layer anything, and the
// image's own files and whiteouts win.
func TestMountpoints(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "none", "v1", registry.Image{})
	add(t, r, "own", "v1", registry.Image{Layers: []registry.Layer{
		registry.Files(map[string]string{"etc/hosts": "mine", "etc/passwd": "p"}), registry.Files(map[string]string{".wh.proc": "", "etc/.wh.hostname": ""}),
	}})
	s := openStore(t, t.TempDir())

	dir := t.TempDir()
	f, err := s.Rootfs(t.Context(), mustPull(t, s, r.Host()+"/none:v1").ID, dir, RootfsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	fs := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	if got := strings.Join(append(names(t, fs), names(t, fs+"/etc")...), " "); got != "dev etc proc sys hostname hosts resolv.conf" {
		t.Errorf("an image without layers has %s", got)
	}
	if made := names(t, dir+"/upper"); len(made) != 0 {
		t.Errorf("in the writable layer: %v", made)
	}
	if err := os.WriteFile(fs+"/etc/hosts", []byte("changed"), 0o644); err != nil {
		t.Error(err)
	}
	f.Close()
	if b, err := os.ReadFile(s.path("mountpoints/etc/hosts")); err != nil || len(b) != 0 {
		t.Errorf("a container wrote %q into the store, %v", b, err)
	}

	own := inRootfs(t, s, mustPull(t, s, r.Host()+"/own:v1").ID, RootfsOptions{})
	if b, err := os.ReadFile(own + "/etc/hosts"); string(b) != "mine" {
		t.Errorf("etc/hosts = %q, %v; want the image's", b, err)
	}
	if got := strings.Join(append(names(t, own), names(t, own+"/etc")...), " "); got != "dev etc sys hosts passwd resolv.conf" {
		t.Errorf("the image has %s", got)
	}
}
