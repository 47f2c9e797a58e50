package testtools

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Binaries builds cri-shim-supervisor and cri-shim-init from this tree, once per test process, and
// returns the folder they are in: .cache/bin of the repository. Where $CRI_SHIM_LIBEXEC names a folder that
// has them (a guest without Go, a user that may not write here) that folder is returned instead, and the test
// fails if one is missing. The test is skipped without Go, and fails where they do not build.
func Binaries(t testing.TB) string {
	t.Helper()
	dir, err := binaries()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skipf("cri-shim-supervisor and cri-shim-init are not in $CRI_SHIM_LIBEXEC and cannot be built: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var binaries = sync.OnceValues(func() (string, error) {
	names := []string{"cri-shim-supervisor", "cri-shim-init", "cri-shim-classes"}
	if dir := os.Getenv("CRI_SHIM_LIBEXEC"); dir != "" {
		// Never others than those that were named: tests of changed programs would pass with unchanged ones.
		return dir, haveAll(dir, names)
	}
	if _, err := exec.LookPath("go"); err != nil {
		return "", err
	}
	root, err := repositoryRoot()
	if err != nil {
		return "", err
	}
	out := filepath.Join(root, ".cache", "bin")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	// Other test processes run these programs or build them too: each builds aside and renames.
	tmp, err := os.MkdirTemp(out, "build.")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	args := []string{"build", "-buildvcs=false", "-trimpath", "-o", tmp + "/"}
	for _, name := range names {
		args = append(args, "./cmd/"+name)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, output)
	}
	for _, name := range names {
		if err := os.Rename(filepath.Join(tmp, name), filepath.Join(out, name)); err != nil {
			return "", err
		}
	}
	return out, nil
})

func haveAll(dir string, names []string) error {
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("programs for tests: %w", err)
		}
	}
	return nil
}

// repositoryRoot is the nearest folder above the current one (go test runs in the package's) that
// holds a go.mod.
func repositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for start := dir; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above %s", start)
		}
	}
}
