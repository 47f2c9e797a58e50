package initproc_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestCVE_2026_41579 (and CVE-2026-88264, CVE-2026-88265): the image's /dev is a link to a directory of the host, with and
// without a file system mounted on it. Nothing is made, removed or changed there.
func TestCVE_2026_41579(t *testing.T) {
	outside := t.TempDir()
	writeTo(t, filepath.Join(outside, "ptmx"), "host", 0o600)
	writeTo(t, filepath.Join(outside, "null"), "host", 0o600)
	for _, link := range []string{outside, "../../../../../../../../../.." + outside, "/proc/self/root" + outside} {
		for _, mounted := range []bool{false, true} {
			b := newBox(t, "echo >/dev/console")
			if err := os.Remove(filepath.Join(b.root, "dev")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(link, filepath.Join(b.root, "dev")); err != nil {
				t.Fatal(err)
			}
			if !mounted {
				b.m.Mounts = slices.DeleteFunc(b.m.Mounts, func(m initmsg.Mount) bool { return m.Target == "/dev" })
			}
			child, conn := consolePair(t)
			b.m.Process.Terminal, b.m.Process.ConsoleFile = true, b.file(child)
			b.run()
			child.Close()
			conn.Close()
			left, err := os.ReadDir(outside)
			if err != nil || len(left) != 2 {
				t.Fatalf("/dev to %s, mounted %v: the host's folder has %v (%v); want it untouched", link, mounted, left, err)
			}
			for _, f := range left {
				fi, err := os.Lstat(filepath.Join(outside, f.Name()))
				if err != nil || fi.Mode() != 0o600 || read(t, filepath.Join(outside, f.Name())) != "host" {
					t.Fatalf("/dev to %s, mounted %v: the host's %s is %v (%v); want it untouched", link, mounted, f.Name(), fi, err)
				}
			}
		}
	}
}
