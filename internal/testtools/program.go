package testtools

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// CRIShim is the path of bin/cri-shim, the whole daemon in one file. It is built first, unless $CRI_SHIM_LIBEXEC
// says that all is built or there is no Go to build it with. The test is skipped where there is none, and fails
// where it does not build.
func CRIShim(t testing.TB) string {
	t.Helper()
	path, err := criShim()
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("needs bin/cri-shim: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// CRIShimOCI is the path of bin/cri-shim-oci; see CRIShim.
func CRIShimOCI(t testing.TB) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(CRIShim(t)), "cri-shim-oci")
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs bin/cri-shim-oci: %v", err)
	}
	return path
}

var criShim = sync.OnceValues(func() (string, error) {
	root, err := repositoryRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "bin", "cri-shim")
	_, noGo := exec.LookPath("go")
	if os.Getenv("CRI_SHIM_LIBEXEC") == "" && noGo == nil {
		if out, err := exec.Command("make", "-s", "-C", root, "build").CombinedOutput(); err != nil {
			return "", fmt.Errorf("make build: %w\n%s", err, out)
		}
	}
	_, err = os.Stat(path)
	return path, err
})

// Crictl is the path of crictl in the version that hack/tools pins; it is built when it is not there yet. The
// test is skipped where there is none, and fails where it does not build.
func Crictl(t testing.TB) string {
	t.Helper()
	path, err := crictl()
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("needs crictl: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var crictl = sync.OnceValues(func() (string, error) {
	root, err := repositoryRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, ".cache", "tools", "crictl")
	if _, noGo := exec.LookPath("go"); noGo == nil {
		if out, err := exec.Command(filepath.Join(root, "hack", "tools", "build.sh"), "crictl").CombinedOutput(); err != nil {
			return "", fmt.Errorf("hack/tools/build.sh crictl: %w\n%s", err, out)
		}
	}
	_, err = os.Stat(path)
	return path, err
})
