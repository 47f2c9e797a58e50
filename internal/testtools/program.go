package testtools

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// CRIShim is the path of bin/cri-shim, the whole daemon in one file. It is built first, unless $CRI_SHIM_LIBEXEC
// says that all is built or there is no Go to build it with. The test is skipped where there is none, and fails
// where it does not build.
func CRIShim(t testing.TB) string {
	t.Helper()
	return built(t, "bin/cri-shim", criShim)
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
	return built(t, "crictl", crictl)
}

var crictl = sync.OnceValues(func() (string, error) {
	return tool("crictl", func(root, _ string) *exec.Cmd {
		return exec.Command(filepath.Join(root, "hack", "tools", "build.sh"), "crictl")
	})
})

// built is the path of a program, which build makes where it can.
func built(t testing.TB, name string, build func() (string, error)) string {
	t.Helper()
	path, err := build()
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("needs %s: %v", name, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// tool is the path of a tool below .cache/tools, made by the command of the repository where there is Go.
func tool(name string, command func(root, path string) *exec.Cmd) (string, error) {
	root, err := repositoryRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, ".cache", "tools", name)
	if _, noGo := exec.LookPath("go"); noGo == nil {
		cmd := command(root, path)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	_, err = os.Stat(path)
	return path, err
}
