package sys

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDirFD(t *testing.T) {
	root := t.TempDir()
	d, err := OpenDirFD(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, name := range []string{"a", "a/b"} {
		if err := d.Mkdir(name); err != nil {
			t.Fatalf("Mkdir(%s) = %v", name, err)
		}
	}
	if err := d.Mkdir("x/y"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Mkdir(x/y) = %v; want not exist", err)
	}
	if err := os.Symlink("b", root+"/a/link"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Dir("a/link"); !errors.Is(err, syscall.ENOTDIR) && !errors.Is(err, syscall.ELOOP) {
		t.Errorf("Dir(link) = %v; want a refusal", err)
	}
	if _, err := OpenDirFD(root + "/a/link"); err == nil {
		t.Error("OpenDirFD(link) = nil; want a refusal")
	}
	a, err := d.Dir("a")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	names, err := a.Subdirs()
	if diff := cmp.Diff([]string{"b"}, names); diff != "" || err != nil {
		t.Errorf("Subdirs: %v\n%s", err, diff)
	}
	if err := d.Rmdir("a"); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("Rmdir(a) = %v; want not empty", err)
	}
	if err := d.Rmdir("a/b"); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]bool{"a": true, "a/b": false, "a/link": true, "none/x": false} {
		if got, err := d.Exists(name); got != want || err != nil {
			t.Errorf("Exists(%s) = %t, %v; want %t", name, got, err, want)
		}
	}
}

func TestDirFDFiles(t *testing.T) {
	root := t.TempDir()
	d, err := OpenDirFD(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n, err := d.WriteFile("f", "x"); n != 0 || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("WriteFile(missing) = %d, %v; want 0, not exist: it never creates", n, err)
	}
	long := strings.Repeat("0123456789", 3000)
	if err := os.WriteFile(root+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := d.WriteFile("f", "ab", long); n != 2 || err != nil {
		t.Errorf("WriteFile = %d, %v; want 2", n, err)
	}
	for _, capacity := range []int{0, 1, 512, 1 << 20} {
		if got, err := d.ReadWhole("f", make([]byte, 0, capacity)); err != nil || len(got) != len(long)+2 {
			t.Errorf("ReadWhole with %d bytes of room: %d bytes, %v; want %d", capacity, len(got), err, len(long)+2)
		}
		got, err := d.ReadFile("f", make([]byte, 0, capacity))
		if err != nil || string(got) != "ab"+long {
			t.Errorf("ReadFile with %d bytes of room: %d bytes, %v; want %d", capacity, len(got), err, len(long)+2)
		}
	}
	if _, err := d.ReadFile("none", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadFile(none) = %v; want not exist", err)
	}
}

// TestReadWhole: files of control groups, and of many lines among them, come in one read.
func TestReadWhole(t *testing.T) {
	looked := 0
	for _, path := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/blkio", "/sys/fs/cgroup"} {
		d, err := OpenDirFD(path)
		if err != nil {
			continue
		}
		defer d.Close()
		for _, name := range []string{"memory.stat", "cpu.stat", "io.stat", "cpu.pressure", "blkio.throttle.io_service_bytes_recursive", "memory.numa_stat"} {
			whole, err := d.ReadWhole(name, make([]byte, 0, 16<<10))
			if err != nil {
				continue
			}
			looked++
			all, err := d.ReadFile(name, nil)
			if lines := strings.Count(string(all), "\n"); err != nil || strings.Count(string(whole), "\n") != lines {
				t.Errorf("ReadWhole(%s/%s) has %d lines; want %d, %v", path, name, strings.Count(string(whole), "\n"), lines, err)
			}
		}
	}
	if looked == 0 {
		t.Skip("needs control groups below /sys/fs/cgroup")
	}
}
