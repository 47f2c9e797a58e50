package initproc_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestCVE_2025_31133: the image's /dev/null is a link or a file; what covers masked
// files must be the null device all the same, and what is a link must not send
// the mask elsewhere.
func TestCVE_2025_31133(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	writeTo(t, outside, "untouched", 0o644)
	for name, fake := range map[string]func(path string) error{
		"link to procfs":  func(p string) error { return os.Symlink("/proc/sysrq-trigger", p) },
		"link to outside": func(p string) error { return os.Symlink(outside, p) },
		"file":            func(p string) error { return os.WriteFile(p, []byte("fake"), 0o666) },
		"other device":    func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) },
		"nothing":         func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, `stat -c '%F %t:%T' /secret /proc/version`)
			if err := fake(filepath.Join(b.root, "dev/null")); err != nil {
				t.Fatal(err)
			}
			writeTo(t, filepath.Join(b.root, "secret"), "secret", 0o644)
			if err := os.Symlink(outside, filepath.Join(b.root, "away")); err != nil {
				t.Fatal(err)
			}
			b.m.Mounts = []initmsg.Mount{b.m.Mounts[0]}
			b.m.Devices, b.m.Symlinks, b.m.Readonly = nil, nil, []string{"/away"}
			b.m.Masked = []string{"/secret", "/proc/version", "/away"}
			want(t, "what covers", b.ok(), "character special file 1:3\ncharacter special file 1:3")
			want(t, "the file outside", read(t, outside), "untouched")
		})
	}
}
