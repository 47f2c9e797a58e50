package testtools

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/cri-shim/cri-shim/internal/sys"
)

const privateEnv = "CRI_SHIM_TEST_PRIVATE_NETWORK"

// RunPrivate is for TestMain: as root it runs the package's tests (a *testing.M, or what wraps one) in network and
// mount namespaces that end with them, with lo up, and returns their exit code. Without root they run where they
// are; see NeedPrivate.
func RunPrivate(m interface{ Run() int }) int {
	if os.Getenv(privateEnv) != "" {
		if err := sys.LoopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}
	if os.Geteuid() != 0 {
		return m.Run()
	}
	runtime.LockOSThread() // the child ends with this thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), privateEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = sys.OwnNetworkAndMounts()
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "tests in a private network:", err)
		return 1
	}
	return 0
}

// NeedPrivate skips a test that must not touch the machine's own network.
func NeedPrivate(t testing.TB) {
	t.Helper()
	if os.Getenv(privateEnv) == "" {
		t.Skip("needs root: runs in network and mount namespaces of its own")
	}
}
