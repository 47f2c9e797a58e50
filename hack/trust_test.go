package hack

import (
	"os"
	"os/exec"
	"testing"
)

// TestTrustModule runs the tests of cmd/cri-shim-trust, which is a module of its own.
func TestTrustModule(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the go command")
	}
	cmd := exec.Command("go", "test", "-count=1", "-tags", "containers_image_openpgp", "./...")
	cmd.Dir = "../cmd/cri-shim-trust"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("go test: %v\n%s", err, out)
	}
}
