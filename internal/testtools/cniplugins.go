package testtools

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// CNIPlugins is a folder with the reference CNI plugins that hack/cniplugins pins; they are built when they are
// not there yet, and taken as they are on a machine without Go. The test is skipped where neither is possible.
func CNIPlugins(t testing.TB) string {
	t.Helper()
	dir, err := cniPlugins()
	if err != nil {
		t.Skipf("needs the reference CNI plugins: %v", err)
	}
	return dir
}

var cniPlugins = sync.OnceValues(func() (string, error) {
	root, err := repositoryRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, ".cache", "cni-bin")
	if _, err := exec.LookPath("go"); err != nil && haveAll(dir, []string{"bridge", "host-local", "portmap", "bandwidth"}) == nil {
		return dir, nil
	}
	build := filepath.Join(root, "hack", "cniplugins", "build.sh")
	if out, err := exec.Command(build, dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	return dir, nil
})
