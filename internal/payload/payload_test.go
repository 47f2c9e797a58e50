package payload

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const script = "/bin/sh"

func TestSeparateProgram(t *testing.T) {
	data, err := os.ReadFile(script)
	if err != nil {
		t.Skipf("no program to copy: %v", err)
	}
	dir := t.TempDir()
	p := program{name: "cri-shim-payload-test"}

	_, err = p.open(t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "make build") {
		t.Fatalf("open without a program = %v; want an error that says what to do", err)
	}
	if err := os.WriteFile(filepath.Join(dir, p.name), data, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv(LibexecVariable, dir)
	f, err := p.open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	checkRuns(t, f)
}

func TestEmbeddedProgram(t *testing.T) {
	data, err := os.ReadFile(script)
	if err != nil {
		t.Skipf("no program to copy: %v", err)
	}
	embedded := string(data)
	p := program{name: "cri-shim-payload-test", embedded: &embedded}
	files := make([]*os.File, 8)
	var wg sync.WaitGroup
	for i := range files {
		wg.Go(func() {
			f, err := p.open(t.TempDir())
			if err != nil {
				t.Error(err)
			}
			files[i] = f
		})
	}
	wg.Wait()
	for _, f := range files {
		if f != files[0] {
			t.Fatalf("concurrent calls made several files: %v", files)
		}
	}
	t.Cleanup(func() { files[0].Close() })
	checkRuns(t, files[0])
}

func TestReadOnlyCopy(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: clones a mount")
	}
	src, err := os.Open(script)
	if err != nil {
		t.Skipf("no program to copy: %v", err)
	}
	defer src.Close()
	dir := t.TempDir()
	f, err := readOnlyCopy(dir, "program", src)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	checkRuns(t, f)
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left in the state directory: %v", left)
	}
}

func TestReadOnlyCopyFails(t *testing.T) {
	_, err := readOnlyCopy(filepath.Join(t.TempDir(), "absent"), "program", strings.NewReader(""))
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("readOnlyCopy into an absent directory = %v; want not exist", err)
	}
}

func checkRuns(t *testing.T, f *os.File) {
	t.Helper()
	cmd := exec.Command("/proc/self/fd/3", "-c", "echo alive")
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "alive\n" {
		t.Errorf("running %s = %q, %v; want alive", f.Name(), out, err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Errorf("writing to %s succeeded; want an error", f.Name())
	}
}
