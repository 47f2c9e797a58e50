package initproc_test

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
		b.m.Mounts = append(b.m.Mounts, initmsg.Mount{Source: file, File: -1, Target: "/shared/new" + itoa(i) + "/d/f"})
	}
	b.m.Process.Cwd, b.m.Process.CreateCwd = "/shared/x/cwd/dir", true
	var stop atomic.Bool
	var swapping sync.WaitGroup
	// The first is there from the beginning, the others are swapped as soon as the init has made them.
	link := "/../../../../../../../.." + outside
	pairs, fresh := [][2]string{{x, y}}, [][2]string{}
	for i := range 10 {
		fresh = append(fresh, [2]string{filepath.Join(shared, "new"+itoa(i)), filepath.Join(shared, "z"+itoa(i))})
	}
	for _, pairs := range [][][2]string{pairs, fresh} {
		swapping.Go(func() {
			for !stop.Load() {
				for _, p := range pairs {
					unix.Renameat2(unix.AT_FDCWD, p[0], unix.AT_FDCWD, p[1], unix.RENAME_EXCHANGE)
				}
			}
		})
	}
	// Long enough that a machine with other work swaps at the right moment too.
	for begin, round := time.Now(), 0; round < 20 || time.Since(begin) < 4*time.Second; round++ {
		for _, p := range fresh { // so that they are made again
			unix.Unlink(p[0])
			os.RemoveAll(p[0])
			os.RemoveAll(p[1])
			os.Symlink(link, p[1])
		}
		b.run()
		if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
			break
		}
	}
	stop.Store(true)
	swapping.Wait()
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("the init made %v outside (%v)", left, err)
	}
}
