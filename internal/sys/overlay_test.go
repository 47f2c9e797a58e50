package sys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// TestMountOverlay: both ways to mount give the same, up to as many layers as the kernel takes.
func TestMountOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	for name, mount := range map[string]func(Overlay) (*os.File, error){"fsmount": mountOverlayFs, "mount": mountOverlayLegacy} {
		for _, n := range []int{1, 2, 500} {
			t.Run(fmt.Sprintf("%s %d", name, n), func(t *testing.T) {
				o := overlayOf(t, n)
				if detached := n == 2; detached {
					o.Detached = true
					for i, l := range o.Lower {
						c, err := CloneTree(l, true, nil)
						if err != nil {
							t.Fatal(err)
						}
						defer c.Close()
						o.Lower[i] = c
					}
				}
				f, err := mount(o)
				if errors.Is(err, errNoLowerdirAppend) {
					t.Skip("overlay has no lowerdir+ (Linux 6.8)")
				}
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				root := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
				entries, err := os.ReadDir(root)
				if err != nil || len(entries) != n {
					t.Errorf("%d entries, %v; want %d", len(entries), err, n)
				}
				if b, err := os.ReadFile(root + "/same"); string(b) != "0" && n > 1 {
					t.Errorf("same = %q, %v; want that of the first layer", b, err)
				}
				if err := os.WriteFile(root+"/new", nil, 0o600); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(filepath.Join(o.Upper.Name(), "new")); err != nil {
					t.Errorf("written file is not in the upper directory: %v", err)
				}
			})
		}
	}
}

// overlayOf makes n layers with n files altogether: one of its own in each but the last, and "same" in all.
func overlayOf(t *testing.T, n int) Overlay {
	t.Helper()
	base := t.TempDir()
	open := func(name string) *os.File {
		p := filepath.Join(base, name)
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(p, OpenPath|OpenDirectory, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	o := Overlay{Volatile: true, Upper: open("upper"), Work: open("work")}
	for i := range n {
		l := open("l" + strconv.Itoa(i))
		o.Lower = append(o.Lower, l)
		files := []string{"same", "f" + strconv.Itoa(i)}
		if i == n-1 {
			files = files[:1]
		}
		for _, name := range files {
			if err := os.WriteFile(filepath.Join(l.Name(), name), []byte(strconv.Itoa(i)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return o
}

// TestCloneSubtree: both ways give a part of a detached mount, read-only.
func TestCloneSubtree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	for name, clone := range map[string]func(root, dir *os.File, readonly bool) (*os.File, error){"any": CloneSubtree, "attached": cloneAttached} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "a", "b", "file"), []byte("there"), 0o644); err != nil {
				t.Fatal(err)
			}
			whole, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer whole.Close()
			root, err := CloneTree(whole, true, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			fd, err := OpenInRoot(int(root.Fd()), "a/b", os.O_RDONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			sub := os.NewFile(uintptr(fd), "b")
			defer sub.Close()
			f, err := clone(root, sub, true)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			at := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
			if b, err := os.ReadFile(at + "/file"); string(b) != "there" {
				t.Errorf("file = %q, %v; want there", b, err)
			}
			if err := os.WriteFile(at+"/new", nil, 0o644); !errors.Is(err, syscall.EROFS) {
				t.Errorf("writing = %v; want %v", err, syscall.EROFS)
			}
		})
	}
}
