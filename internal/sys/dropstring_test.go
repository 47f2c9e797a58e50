package sys

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestDropStringPages(t *testing.T) {
	// A private mapping of a file, as the executable's read-only data is.
	const size = 1 << 20
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, bytes.Repeat([]byte("0123456789abcdef"), size/16), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	addr := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))

	if n := strings.Count(unsafe.String(&mem[0], size), "\x00"); n != 0 {
		t.Fatalf("%d zero bytes; want 0", n)
	}
	if got := rss(t, addr); got != size {
		t.Fatalf("resident after reading = %d; want %d", got, size)
	}
	// A string that starts and ends inside a page: those two pages hold others' data and stay.
	s := unsafe.String(&mem[100], size-200)
	if err := DropStringPages(s); err != nil {
		t.Fatal(err)
	}
	if got, want := rss(t, addr), 2*os.Getpagesize(); got != want {
		t.Errorf("resident after dropping = %d; want %d", got, want)
	}
	if got := s[:12]; got != "456789abcdef" {
		t.Errorf("read again = %q; want 456789abcdef", got)
	}
}

func TestDropStringPagesShort(t *testing.T) {
	for _, s := range []string{"", "x", strings.Repeat("x", 4095)} {
		if err := DropStringPages(s); err != nil {
			t.Errorf("DropStringPages(%d bytes) = %v; want nil", len(s), err)
		}
		if strings.Trim(s, "x") != "" {
			t.Errorf("DropStringPages(%d bytes) changed the string", len(s))
		}
	}
}
