package initproc_test

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestCVE_2024_45310: while the missing targets of mounts, devices and the working directory are made in a volume, another
// container swaps a directory of the volume with a link that leads out. Nothing may appear on the host.
func TestCVE_2024_45310(t *testing.T) {
	outside, shared := t.TempDir(), t.TempDir()
	x, y := filepath.Join(shared, "x"), filepath.Join(shared, "y")
	if err := os.Mkdir(x, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/../../../../../../../.."+outside, y); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	writeTo(t, file, "", 0o644)
	b := newBox(t, "true")
	b.m.Mounts = append(b.m.Mounts, initmsg.Mount{Source: shared, File: -1, Target: "/shared"})
	for i := range 10 {
		b.m.Mounts = append(b.m.Mounts, initmsg.Mount{Source: file, File: -1, Target: "/shared/x/f" + itoa(i)})
		b.m.Devices = append(b.m.Devices, initmsg.Device{Path: "/shared/x/d" + itoa(i) + "/fifo", Mode: unix.S_IFIFO | 0o600})
		b.m.Symlinks = append(b.m.Symlinks, initmsg.Symlink{Target: "f", Path: "/shared/x/l" + itoa(i)})
		b.m.Mounts = append(b.m.Mounts, initmsg.Mount{Source: file, File: -1, Target: "/shared/new/" + itoa(i) + "/f"})
	}
	b.m.Process.Cwd, b.m.Process.CreateCwd = "/shared/x/cwd/dir", true
	var stop atomic.Bool
	var swapping sync.WaitGroup
	// The one is there from the beginning, the other is swapped as soon as the init has made it.
	fresh, z := filepath.Join(shared, "new"), filepath.Join(shared, "z")
	if err := os.Symlink("/../../../../../../../.."+outside, z); err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]string{{x, y}, {fresh, z}} {
		swapping.Go(func() {
			for !stop.Load() {
				unix.Renameat2(unix.AT_FDCWD, pair[0], unix.AT_FDCWD, pair[1], unix.RENAME_EXCHANGE)
			}
		})
	}
	for range 20 {
		b.run()
		unix.Unlink(fresh) // so that it is made again
		os.RemoveAll(fresh)
		os.Symlink("/../../../../../../../.."+outside, z)
	}
	stop.Store(true)
	swapping.Wait()
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("the init made %v outside (%v)", left, err)
	}
}
