package payload

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
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

// elf is a program with a build ID and nothing that could be executed.
func elf(id string) *string {
	note := string([]byte{4, 0, 0, 0, byte(len(id)), 0, 0, 0, 4, 0, 0, 0}) + "Go\x00\x00" + id
	s := "\x7fELF" + strings.Repeat("\x00", 60) + note + strings.Repeat("\x00", 64)
	return &s
}

func TestBuildID(t *testing.T) {
	for of, want := range map[string]string{
		*elf("action/main/content/0123456789abcdefghij"): "0123456789abcdefghij",
		*elf("0123456789abcdef-_"):                       "0123456789abcdef-_",
		*elf("a/short"):                                  "",
		*elf("a/../../../../etc/passwd-0123456"):         "",
		*elf("a/0123456789abcdef ghij"):                  "",
		"\x7fELF":                                        "",
		"":                                               "",
		strings.Repeat("\xff", 9) + "\x04\x00\x00\x00Go\x00\x00x": "",
	} {
		if got := buildID(of); got != want {
			t.Errorf("buildID(%q) = %q; want %q", of, got, want)
		}
	}
}

// TestKeptInit: the program is kept for the next command, cannot be written to through what is executed, and a file that
// is not as it was made is not executed.
func TestKeptInit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: clones a mount")
	}
	embedded := *elf("content/0123456789abcdef")
	dir := t.TempDir()
	path := filepath.Join(dir, ".cri-shim-payload-test-0123456789abcdef")
	open := func() (*os.File, error) {
		p := program{name: "cri-shim-payload-test", embedded: &embedded}
		return p.kept(dir)
	}
	if err := os.WriteFile(filepath.Join(dir, ".cri-shim-payload-test-old"), nil, 0o711); err != nil {
		t.Fatal(err)
	}
	f, err := open()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	made, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("in the folder: %v; want the program and nothing else", left)
	}
	if _, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), os.O_WRONLY, 0); !errors.Is(err, syscall.EROFS) {
		t.Errorf("opening what is executed for writing = %v; want EROFS", err)
	}
	again, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if fi, err := os.Stat(path); err != nil || !os.SameFile(fi, made) {
		t.Errorf("the second command has made the file anew (%v)", err)
	}
	for name, spoil := range map[string]func() error{
		"shorter":   func() error { return os.Truncate(path, 10) },
		"readable":  func() error { return os.Chmod(path, 0o755) },
		"another's": func() error { return os.Chown(path, 1, -1) },
	} {
		os.Remove(path)
		if f, err := open(); err != nil {
			t.Fatal(err)
		} else {
			f.Close()
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if f, err := open(); err == nil {
			f.Close()
			t.Errorf("a file that is %s is executed", name)
		}
	}
}

func FuzzBuildID(f *testing.F) {
	f.Add(*elf("action/content/0123456789abcdef"))
	f.Add("\x04\x00\x00\x00Go\x00\x00")
	f.Fuzz(func(t *testing.T, program string) {
		if id := buildID(program); strings.ContainsAny(id, "/.\x00") {
			t.Errorf("buildID = %q", id)
		}
	})
}
