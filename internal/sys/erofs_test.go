package sys

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountErofs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		t.Skip("no mkfs.erofs in $PATH (erofs-utils)")
	}
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "f"), []byte("content"), 0o640); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command(mkfs, name, src).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	m, err := MountErofs(f)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	// It does not need the descriptor that it was made with, nor the name.
	if err := errors.Join(f.Close(), os.Remove(name)); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(procPath(int(m.Fd()), "."))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if b, err := root.ReadFile("f"); string(b) != "content" {
		t.Errorf("f = %q, %v; want content", b, err)
	}
	if err := root.WriteFile("g", nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write = %v; want EROFS", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(m.Fd()), &st); err != nil || st.Flags&unix.ST_NODEV != 0 || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("flags %#x, %v; want read-only, with devices", st.Flags, err)
	}
}

func TestMountErofsRefuses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := MountErofs(f)
	if err == nil {
		m.Close()
	}
	if err == nil || !strings.HasPrefix(err.Error(), "mount erofs: ") || !errors.Is(err, errors.ErrUnsupported) && !strings.Contains(err.Error(), name) {
		t.Errorf("MountErofs of zeros = %v; want an error that names %s", err, name)
	}
	t.Log(err)
}

// TestMountErofsNotAFile: what a kernel without file-backed mounts says of files, others say of directories.
func TestMountErofsNotAFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	d, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if m, err := MountErofs(d); !errors.Is(err, errors.ErrUnsupported) {
		if err == nil {
			m.Close()
		}
		t.Errorf("MountErofs of a directory = %v; want errors.ErrUnsupported", err)
	} else {
		t.Log(err)
	}
}
