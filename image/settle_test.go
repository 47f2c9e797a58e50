package image

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// TestSettle: an image that may not have reached the disk counts as long as the machine is up, and is nothing, not
// even a problem, after it went down.
func TestSettle(t *testing.T) {
	needRoot(t)
	for name, tc := range map[string]struct {
		crash func(s *Store, r *record) error
		want  int
	}{
		"settled":        {func(*Store, *record) error { return nil }, 1},
		"daemon killed":  {func(s *Store, r *record) error { r.Boot = s.boot; return writeRecord(s.imageDir(r.ID), r) }, 1},
		"machine killed": {func(s *Store, r *record) error { r.Boot = "another-boot"; return writeRecord(s.imageDir(r.ID), r) }, 0},
		"not written": {func(s *Store, r *record) error {
			return os.Truncate(filepath.Join(s.imageDir(r.ID), "image.json"), 0)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t, registry.Options{})
			p := add(t, reg, "app", "v1", simple("x"))
			root, ref := t.TempDir(), reg.Host()+"/app:v1"
			s := openStore(t, root)
			mustPull(t, s, ref)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s.mu.RLock()
			r := s.images[p.ID].clone()
			s.mu.RUnlock()
			if r.Boot != "" {
				t.Errorf("Boot = %q after Close; want the image settled", r.Boot)
			}
			layerJSON := filepath.Join(s.layerDir(p.DiffIDs[0]), "layer.json")
			if err := tc.crash(s, r); err != nil {
				t.Fatal(err)
			}
			if tc.want == 0 { // the layer is of the boot before as well
				if err := edit(layerJSON, s.boot, "another-boot"); err != nil {
					t.Fatal(err)
				}
			}
			s = openStore(t, root)
			if got := len(s.List()); got != tc.want || len(layersOnDisk(t, root)) != tc.want || len(s.Problems()) != 0 {
				t.Errorf("%d images, %d layers, problems %v; want %d, %[4]d, none", got, len(layersOnDisk(t, root)), s.Problems(), tc.want)
			}
			mustPull(t, s, ref)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, root)
			s.mu.RLock()
			defer s.mu.RUnlock()
			if r := s.images[p.ID]; r == nil || r.Boot != "" {
				t.Errorf("record = %+v; want it settled", r)
			}
		})
	}
}

// TestSettleFails: what could not be written back is not kept, unless it is another pull's by now.
func TestSettleFails(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t, registry.Options{})
	p := add(t, reg, "app", "v1", simple("x"))
	s := openStore(t, t.TempDir())
	mustPull(t, s, reg.Host()+"/app:v1")
	landing, eio := new(int), errors.New("EIO")
	if err := s.settle(p.ID, landing, eio); err != nil || len(s.List()) != 1 {
		t.Errorf("settle of an earlier pull = %v, %d images; want nothing done", err, len(s.List()))
	}
	s.change.Lock()
	s.mu.Lock()
	s.images[p.ID].landing = landing
	s.mu.Unlock()
	s.change.Unlock()
	if err := s.settle(p.ID, landing, eio); !errors.Is(err, eio) || len(s.List()) != 0 {
		t.Errorf("settle = %v, %d images; want the error and none", err, len(s.List()))
	}
}
