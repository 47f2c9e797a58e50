package sys

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A program that is there on every Linux machine these tests run on.
const shell = "/bin/sh"

func run(t *testing.T, f *os.File, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("/proc/self/fd/3", args...)
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestSealedExecutable(t *testing.T) {
	src, err := os.Open(shell)
	if err != nil {
		t.Skipf("no shell to copy: %v", err)
	}
	defer src.Close()
	f, err := SealedExecutable("cri-shim-test", src)
	if errors.Is(err, ErrMemfdNoExec) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	out, err := run(t, f, "-c", "readlink /proc/$$/exe")
	if want := "/memfd:cri-shim-test (deleted)\n"; err != nil || out != want {
		t.Errorf("run = %q, %v; want %q", out, err, want)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("WriteAt = %v; want EPERM", err)
	}
	if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Errorf("Truncate(0) = %v; want EPERM", err)
	}
	if err := f.Truncate(1 << 30); !errors.Is(err, unix.EPERM) {
		t.Errorf("Truncate(1 GiB) = %v; want EPERM", err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); !errors.Is(err, unix.EPERM) {
		t.Errorf("adding a seal = %v; want EPERM", err)
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("F_GETFD = %#x, %v; want close-on-exec", flags, err)
	}
}

func TestReadOnlyExecutable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: clones a mount")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOEXEC, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	data, err := os.ReadFile(shell)
	if err != nil {
		t.Skipf("no shell to copy: %v", err)
	}
	path := filepath.Join(dir, "program")
	if err := os.WriteFile(path, data, 0o500); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(path, "-c", "true").Run(); !errors.Is(err, unix.EACCES) {
		t.Fatalf("running from the noexec mount = %v; want EACCES", err)
	}

	f, err := ReadOnlyExecutable(path)
	if errors.Is(err, unix.ENOSYS) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	// The attack of CVE-2019-5736: take hold of the running program through /proc, wait until it no
	// longer runs (until then the kernel says ETXTBSY), then open it for writing.
	out, err := run(t, f, "-c", "echo here; exec 4</proc/$$/exe; exec "+shell+" -c ': >> /proc/self/fd/4'")
	if err == nil || !strings.Contains(out, "here") || !strings.Contains(out, "Read-only file system") {
		t.Errorf("run = %q, %v; want it to start and to be refused the write", out, err)
	}
}

func TestReadOnlyExecutableRefuses(t *testing.T) {
	if _, err := ReadOnlyExecutable(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EPERM) {
		t.Errorf("ReadOnlyExecutable(absent) = %v; want not exist (or not permitted)", err)
	}
}

// rss is the resident size in bytes of the mapping that holds addr.
func rss(t *testing.T, addr uintptr) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	inside := false
	for line := range strings.Lines(string(data)) {
		var from, to uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			inside = from <= addr && addr < to
		}
		var kib int
		if n, _ := fmt.Sscanf(line, "Rss: %d kB", &kib); n == 1 && inside {
			return kib << 10
		}
	}
	t.Fatalf("no mapping holds %#x", addr)
	return 0
}
