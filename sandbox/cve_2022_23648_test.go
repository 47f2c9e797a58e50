package sandbox

import (
	"os"
	"path/filepath"
	"testing"
)

// TestCVE_2022_23648: an image's VOLUME path, and links on the way to it, do not have the host's files copied into a volume.
func TestCVE_2022_23648(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("copies owners: needs root")
	}
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := t.TempDir()
	for name, target := range map[string]string{"absolute": host, "relative": "../../../../../../../../.." + host, "proc": "/proc/self/root" + host} {
		if err := os.Symlink(target, filepath.Join(image, name)); err != nil {
			t.Fatal(err)
		}
	}
	// A link inside of a volume stays a link.
	if err := os.Mkdir(filepath.Join(image, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(host, filepath.Join(image, "data", "link")); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, path := range []string{
		"/absolute", "/relative", "/proc", "/../../../../../../../../../.." + host, "../../../../../../../../../.." + host, host, "/absolute/../absolute", "/data",
	} {
		volume := t.TempDir()
		if err := fillVolumes(root, map[string]string{path: volume}); err != nil {
			t.Logf("%s: refused: %v", path, err)
		}
		err := filepath.WalkDir(volume, func(p string, d os.DirEntry, err error) error {
			if filepath.Base(p) == "secret" {
				t.Errorf("VOLUME %s: the host's file is in the volume, at %s", path, p)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	volume := t.TempDir()
	if err := fillVolumes(root, map[string]string{"/data": volume}); err != nil {
		t.Fatal(err)
	}
	if link, err := os.Readlink(filepath.Join(volume, "link")); link != host {
		t.Errorf("a link in a volume = %q, %v; want it copied as a link", link, err)
	}
}
