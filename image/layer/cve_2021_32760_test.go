package layer

import (
	"archive/tar"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestCVE_2021_32760: an entry's mode, owner and time are set on the entry and never on what a link of that name, or a hard link
// to a link, leads to.
func TestCVE_2021_32760(t *testing.T) {
	needRoot(t)
	canary := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(canary, []byte("sings"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(canary)
	if err != nil {
		t.Fatal(err)
	}
	open := func(kind byte, name, target string) entry {
		return entry{tar.Header{Name: name, Typeflag: kind, Linkname: target, Mode: 0o4777, Uid: 1234, Gid: 1234}, ""}
	}
	for name, archive := range map[string][]byte{
		"link":                makeTar(t, open(tar.TypeSymlink, "l", canary)),
		"hard link to a link": makeTar(t, open(tar.TypeSymlink, "l", canary), open(tar.TypeLink, "h", "l")),
		"directory":           makeTar(t, open(tar.TypeSymlink, "l", filepath.Dir(canary)), entry{tar.Header{Name: "l/", Typeflag: tar.TypeDir, Mode: 0o777, Uid: 1234}, ""}),
		"replaced":            makeTar(t, entry{tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o600}, ""}, open(tar.TypeSymlink, "f", canary), open(tar.TypeLink, "f2", "f")),
	} {
		if _, _, err := unpack(t, archive, Options{}); err != nil {
			t.Logf("%s: refused: %v", name, err)
		}
		after, err := os.Stat(canary)
		if err != nil || after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) ||
			after.Sys().(*syscall.Stat_t).Uid != before.Sys().(*syscall.Stat_t).Uid {
			t.Fatalf("%s: the file outside is %v (%v); want it untouched", name, after, err)
		}
	}
}
