package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A file of a checkpoint is a link to one of the node's, which the restored container is then given.
func TestCVE_2026_53489(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(`{"id":"secret"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"config.dump", "rootfs-diff.tar", "checkpoint/pages-1.img"} {
		dir := t.TempDir()
		at := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(secret, at)); err != nil {
			t.Fatal(err)
		}
		images := filepath.Join(t.TempDir(), "images")
		if err := Unpack(t.Context(), Dir(dir), images, Limits{}, drop); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s is a link: %v; want ErrInvalid", name, err)
		}
	}
	dir := t.TempDir()
	if err := os.Symlink(filepath.Dir(secret), filepath.Join(dir, "checkpoint")); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(t.Context(), Dir(dir), filepath.Join(t.TempDir(), "images"), Limits{}, drop); !errors.Is(err, ErrInvalid) {
		t.Errorf("checkpoint is a link: %v; want ErrInvalid", err)
	}
}
