package testtools

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// CRIU is the criu program: $CRIU, else the one in $PATH. Whether it suits the kernel is for the test to find out. The
// test is skipped where there is none.
func CRIU(t testing.TB) string {
	t.Helper()
	name := os.Getenv("CRIU")
	if name == "" {
		name = "criu"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs criu in $CRIU or $PATH: %v", err)
	}
	return path
}

// Checkpointctl is the path of checkpointctl in the version that hack/checkpointctl pins; it is built when it is not there
// yet. The test is skipped where there is none, and fails where it does not build.
func Checkpointctl(t testing.TB) string {
	t.Helper()
	return built(t, "checkpointctl", checkpointctl)
}

var checkpointctl = sync.OnceValues(func() (string, error) {
	return tool("checkpointctl", func(root, path string) *exec.Cmd {
		cmd := exec.Command("go", "build", "-C", filepath.Join(root, "hack", "checkpointctl"), "-trimpath", "-mod=readonly",
			"-o", path, "github.com/checkpoint-restore/checkpointctl")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		return cmd
	})
})
