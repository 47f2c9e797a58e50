package image

import (
	"archive/tar"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// TestImpliedDeep: a path of a few kilobytes in each of some layers is no work for minutes.
func TestImpliedDeep(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	deep := strings.Repeat("d/", 400)
	var img registry.Image
	for i := range 10 {
		img.Layers = append(img.Layers, registry.Entries([]tar.Header{{Name: fmt.Sprintf("%sf%d", deep, i), Typeflag: tar.TypeReg, Mode: 0o644}}, nil))
	}
	add(t, r, "deep", "v1", img)
	s := openStore(t, t.TempDir())
	start := time.Now()
	id := mustPull(t, s, r.Host()+"/deep:v1").ID
	took := time.Since(start)
	t.Logf("pulled in %v", took)
	if took > time.Minute {
		t.Errorf("10 layers of one path each took %v", took)
	}
	fs := inRootfs(t, s, id, RootfsOptions{})
	if got := len(names(t, fs+"/"+strings.TrimSuffix(deep, "/"))); got != 10 {
		t.Errorf("%d files at the end of the path; want 10", got)
	}
}
