package gpu

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ldconfig is the judge of what is written here.
func ldconfig(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"/sbin/ldconfig", "/usr/sbin/ldconfig"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Skip("needs ldconfig of glibc")
	return ""
}

func listLDCache(t *testing.T, file string) []string {
	t.Helper()
	out, err := exec.Command(ldconfig(t), "-p", "-C", file).CombinedOutput()
	if err != nil {
		t.Fatalf("ldconfig -p: %v\n%s", err, out)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "\t") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// TestLDCacheOfTheSystem: what is read from this machine's cache and written again is the same to ldconfig.
func TestLDCacheOfTheSystem(t *testing.T) {
	data, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		t.Skipf("needs a cache of the loader: %v", err)
	}
	entries, err := parseLDCache(data)
	if err != nil {
		t.Fatal(err)
	}
	want := listLDCache(t, "/etc/ld.so.cache")
	if len(entries) != len(want) || len(entries) == 0 {
		t.Fatalf("parseLDCache found %d entries; ldconfig %d", len(entries), len(want))
	}
	file := filepath.Join(t.TempDir(), "cache")
	if err := os.WriteFile(file, encodeLDCache(entries), 0o644); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, listLDCache(t, file)); d != "" {
		t.Errorf("ldconfig -p (-system's +ours):\n%s", d)
	}
}

func TestLDCacheMerge(t *testing.T) {
	const abi = ldELFLibc6 | ldFlagX8664
	have := []ldEntry{
		{Key: "libc.so.6", Value: "/lib/libc.so.6", Flags: abi},
		{Key: "libcuda.so.1", Value: "/stub/libcuda.so.1", Flags: abi},
		{Key: "libcuda.so.1", Value: "/lib32/libcuda.so.1", Flags: ldELFLibc6},
		{Key: "libfoo.so.10", Value: "/a/libfoo.so.10", Flags: abi},
		{Key: "libfoo.so.9", Value: "/a/libfoo.so.9", Flags: abi},
		{Key: "libv.so.1", Value: "/usr/lib/glibc-hwcaps/x86-64-v3/libv.so.1", Flags: abi, HWCapName: "x86-64-v3"},
		{Key: "libv.so.1", Value: "/usr/lib/glibc-hwcaps/x86-64-v2/libv.so.1", Flags: abi, HWCapName: "x86-64-v2"},
		{Key: "libv.so.1", Value: "/usr/lib/libv.so.1", Flags: abi},
		{Key: "libold.so.1", Value: "/usr/lib/tls/libold.so.1", Flags: abi, HWCap: 1 << 3, OSVersion: 7},
	}
	ours := []ldEntry{{Key: "libcuda.so.1", Value: "/d/libcuda.so.1", Flags: abi}, {Key: "libz.so", Value: "/d/libz.so", Flags: abi}}
	data := encodeLDCache(mergeLDCache(have, ours))
	got, err := parseLDCache(data)
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, e := range got {
		order = append(order, e.Value)
	}
	want := []string{
		"/d/libz.so", "/usr/lib/glibc-hwcaps/x86-64-v3/libv.so.1", "/usr/lib/glibc-hwcaps/x86-64-v2/libv.so.1", "/usr/lib/libv.so.1",
		"/usr/lib/tls/libold.so.1", "/a/libfoo.so.10", "/a/libfoo.so.9", "/d/libcuda.so.1", "/lib32/libcuda.so.1", "/lib/libc.so.6",
	}
	if d := cmp.Diff(want, order); d != "" {
		t.Errorf("merged (-want +got):\n%s", d)
	}
	for _, e := range append(slices.Clone(have), ours...) {
		if strings.HasPrefix(e.Value, "/stub") {
			continue
		}
		if !slices.Contains(got, e) {
			t.Errorf("%+v is lost; have %+v", e, got)
		}
	}
	if !bytes.Equal(encodeLDCache(got), data) {
		t.Error("encoding what was parsed gives other bytes")
	}
	file := filepath.Join(t.TempDir(), "cache")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if lines := listLDCache(t, file); len(lines) != len(want) || !strings.Contains(lines[1], `hwcap: "x86-64-v3"`) {
		t.Errorf("ldconfig -p: %q", lines)
	}
}

func TestLDCacheErrors(t *testing.T) {
	good := encodeLDCache([]ldEntry{{Key: "a", Value: "/a", HWCapName: "x"}})
	for n := range good[:len(good)-1] {
		if n >= ldHeaderSize+ldEntrySize+10 {
			break // what follows a short cache's strings are extensions
		}
		if _, err := parseLDCache(good[:n]); err == nil {
			t.Errorf("parseLDCache of the first %d bytes: no error", n)
		}
	}
	other := bytes.Clone(good)
	other[28] = 3
	if _, err := parseLDCache(other); err == nil || !strings.Contains(err.Error(), "byte order") {
		t.Errorf("a big-endian cache: %v", err)
	}
	old := append([]byte(ldMagicOld+"\x00\x01\x00\x00\x00"), make([]byte, 12)...)
	old = append(append(old, make([]byte, (8-len(old)%8)%8)...), good...)
	if e, err := parseLDCache(old); err != nil || len(e) != 1 {
		t.Errorf("a cache after the old format = %v, %v; want one entry", e, err)
	}
}

func FuzzLDCache(f *testing.F) {
	f.Add([]byte(ldMagic))
	f.Add(encodeLDCache(nil))
	f.Add(encodeLDCache([]ldEntry{{Key: "liba.so.1", Value: "/liba.so.1", Flags: 3, HWCapName: "x86-64-v3"}, {Key: "b", Value: "/b"}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseLDCache(data)
		if err != nil {
			return
		}
		again, err := parseLDCache(encodeLDCache(entries))
		if err != nil {
			t.Fatal(err)
		}
		key := func(list []ldEntry) []string {
			var out []string
			for _, e := range list {
				out = append(out, fmt.Sprintf("%+v", e))
			}
			slices.Sort(out)
			return out
		}
		if d := cmp.Diff(key(entries), key(again)); d != "" {
			t.Errorf("after a round trip:\n%s", d)
		}
	})
}
