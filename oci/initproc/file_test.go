package initproc_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestFiles: a file for the root replaces what the image has there, and never what a link of the image leads to.
func TestFiles(t *testing.T) {
	b := newBox(t, `cat /etc/cache /deep/er/file; cat /etc/other; stat -c %a /etc/cache; readlink /etc/cache || echo no link`)
	outside := filepath.Join(t.TempDir(), "outside")
	writeTo(t, outside, "untouched\n", 0o600)
	writeTo(t, filepath.Join(b.root, "etc/other"), "other\n", 0o644)
	if err := os.Symlink("other", filepath.Join(b.root, "etc/cache")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../../../.."+filepath.Dir(outside), filepath.Join(b.root, "link")); err != nil {
		t.Fatal(err)
	}
	b.m.Files = []initmsg.File{
		{Path: "/etc/cache", Data: []byte("new\n")}, {Path: "/deep/er/file", Data: []byte("made\n")},
		{Path: "/link/outside", Data: []byte("escaped\n")},
	}
	want(t, "output", b.ok(), "new\nmade\nother\n644\nno link")
	if data, err := os.ReadFile(outside); err != nil || string(data) != "untouched\n" {
		t.Errorf("the host's file = %q, %v; want it untouched", data, err)
	}
}

func TestFileOverDirectory(t *testing.T) {
	b := newBox(t, "true")
	b.m.Files = []initmsg.File{{Path: "/etc", Data: []byte("x")}}
	b.fails("files", 0, "/etc")
}
