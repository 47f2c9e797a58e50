package initproc_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestCVE_2021_30465: targets whose links lead out of the root are made inside of it,
// and nothing outside is touched.
func TestCVE_2021_30465(t *testing.T) {
	outside := t.TempDir()
	vol := t.TempDir()
	writeTo(t, filepath.Join(vol, "f"), "volume\n", 0o644)
	for _, link := range []string{outside, "../../../../../../../../.." + outside, "/proc/self/root" + outside} {
		b := newBox(t, `cat /link/new/dir/f`)
		if err := os.Symlink(link, filepath.Join(b.root, "link")); err != nil {
			t.Fatal(err)
		}
		// Before procfs is mounted, /proc/self is only a name in the image.
		b.m.Mounts = append([]initmsg.Mount{{Source: vol, File: -1, Target: "/link/new/dir"}}, b.m.Mounts...)
		b.m.Mounts = append(b.m.Mounts, initmsg.Mount{Source: vol + "/f", File: -1, Target: "/link/file"})
		b.m.Devices = append(b.m.Devices, char("/link/null", 1, 3))
		b.m.Symlinks = append(b.m.Symlinks, initmsg.Symlink{Target: "x", Path: "/link/symlink"})
		if strings.HasPrefix(link, "/proc") { // is not there yet, then covered
			b.m.Process.Args[2] = "true"
		}
		b.run()
		if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
			t.Fatalf("through %s the init made %v outside (%v)", link, left, err)
		}
	}
}

// TestCVE_2021_30465_Race swaps a directory of the target's path with a link
// that leads out, while containers start.
func TestCVE_2021_30465_Race(t *testing.T) {
	outside := t.TempDir()
	b := newBox(t, "true")
	vol := t.TempDir()
	x, y := filepath.Join(b.root, "x"), filepath.Join(b.root, "y")
	if err := os.Mkdir(x, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/../../../../../../../.."+outside, y); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		b.m.Mounts = append(b.m.Mounts, initmsg.Mount{Source: vol, File: -1, Target: "/x/new" + itoa(i) + "/dir"})
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			unix.Renameat2(unix.AT_FDCWD, x, unix.AT_FDCWD, y, unix.RENAME_EXCHANGE)
		}
	}()
	inside := 0
	for range 20 {
		if r := b.run(); r.failure == nil {
			inside++
		}
	}
	stop.Store(true)
	<-done
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("the init made %v outside (%v)", left, err)
	}
	t.Logf("%d of 20 starts succeeded", inside)
}
