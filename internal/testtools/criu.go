package testtools

import (
	"os"
	"os/exec"
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
