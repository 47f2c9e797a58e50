package sandbox

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestOpenLog: a link or a FIFO at the log's path, as a container with the folder of logs as a volume can make it, neither has the
// daemon write elsewhere nor stops it.
func TestOpenLog(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(name string, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	for _, path := range []string{
		at("link", os.Symlink(victim, filepath.Join(dir, "link"))),
		at("dangling", os.Symlink(filepath.Join(dir, "made"), filepath.Join(dir, "dangling"))),
		at("fifo", syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600)),
		"/dev/null", dir,
	} {
		if f, err := openLog(path); err == nil {
			f.Close()
			t.Errorf("openLog(%s) = nil error; want it refused", path)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "made")); err == nil {
		t.Error("openLog made what a link leads to")
	}
	for _, path := range []string{"", filepath.Join(dir, "log"), filepath.Join(dir, "log"), victim} {
		f, err := openLog(path)
		if err != nil {
			t.Errorf("openLog(%q) = %v", path, err)
			continue
		}
		if _, err := f.WriteString("line\n"); err != nil {
			t.Error(err)
		}
		f.Close()
	}
}
