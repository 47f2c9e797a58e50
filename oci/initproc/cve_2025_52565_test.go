package initproc_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestCVE_2025_52565: /dev/console, /dev/pts and ptmx of the image are links or files.
// The terminal must be bound to nothing else, and must come from a real devpts.
func TestCVE_2025_52565(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	writeTo(t, outside, "untouched", 0o644)
	terminal := func(b *box, stage, text string) {
		t.Helper()
		child, conn := consolePair(t)
		defer child.Close()
		defer conn.Close()
		b.m.Process.Terminal, b.m.Process.ConsoleFile = true, b.file(child)
		// Without a tmpfs on /dev, the image has its say.
		b.m.Mounts = append([]initmsg.Mount{b.m.Mounts[0]}, b.m.Mounts[2:]...)
		b.m.Devices, b.m.Symlinks = nil, nil
		b.fails(stage, 0, text)
		want(t, "the file outside", read(t, outside), "untouched")
	}
	for _, link := range []string{outside, "/proc/sys/kernel/core_pattern", "../secret"} {
		b := newBox(t, "true")
		writeTo(t, filepath.Join(b.root, "secret"), "", 0o644)
		if err := os.Symlink(link, filepath.Join(b.root, "dev/console")); err != nil {
			t.Fatal(err)
		}
		terminal(b, "terminal", "too many levels of symbolic links")
	}
	b := newBox(t, "true")
	noPTS(b)
	os.MkdirAll(filepath.Join(b.root, "dev/pts"), 0o755)
	writeTo(t, filepath.Join(b.root, "dev/pts/ptmx"), "", 0o666)
	terminal(b, "terminal", "not on a devpts")

	b = newBox(t, "true")
	noPTS(b)
	// The host's terminals by a link: RESOLVE_IN_ROOT keeps inside, and no link is taken.
	os.Symlink("/proc/self/root/dev/pts", filepath.Join(b.root, "dev/pts"))
	terminal(b, "terminal", "/dev/pts/ptmx")
}

// noPTS takes the devpts out of the message.
func noPTS(b *box) { b.m.Mounts = append(b.m.Mounts[:2:2], b.m.Mounts[3:]...) }
