package initproc_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCVE_2019_19921 (and CVE-2023-27561): /proc and /sys of the image are links, to a
// volume say, or no directories.
func TestCVE_2019_19921(t *testing.T) {
	for _, name := range []string{"proc", "sys"} {
		for _, target := range []string{"tmp", "/tmp", "/no/such", "/proc/self/root/tmp"} {
			b := newBox(t, "true")
			os.Remove(filepath.Join(b.root, name))
			if err := os.Symlink(target, filepath.Join(b.root, name)); err != nil {
				t.Fatal(err)
			}
			b.fails("mount", unix.ELOOP, "mount /"+name+": the target must not be, or be reached by, a symbolic link")
		}
		b := newBox(t, "true")
		os.Remove(filepath.Join(b.root, name))
		writeTo(t, filepath.Join(b.root, name), "", 0o644)
		b.fails("mount", unix.ENOTDIR, "mount /"+name)
	}
}
