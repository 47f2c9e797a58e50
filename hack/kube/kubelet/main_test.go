package kubelet

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	parts "github.com/cri-shim/cri-shim/hack/kube/node"
)

// machine is what all tests share.
var machine *node

func TestMain(m *testing.M) {
	if os.Getenv("KUBELET") == "" {
		fmt.Println("kubelet: $KUBELET is not set: hack/kube/test-kubelet.sh runs these tests")
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kl")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := 1
	if machine, err = startNode(dir); err == nil {
		code = m.Run()
		err = machine.gone()
	}
	if machine != nil {
		err = errors.Join(err, machine.stop())
	}
	if err == nil {
		err = parts.Blames(machine.path("kubelet.log"), "ImageVolumeMountFailed: ") // TestImageVolumeError
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "--- FAIL: %v\n", err)
		code = 1
	}
	if keep := os.Getenv("KEEP_LOGS"); keep != "" {
		for _, name := range []string{"kubelet", "daemon"} {
			text, _ := os.ReadFile(machine.path(name + ".log"))
			os.WriteFile(keep+"/"+name+".log", text, 0o644)
		}
	}
	return code
}

// gone waits until the pods of the tests have left nothing in the runtime.
func (n *node) gone() error {
	return n.until("no pod sandbox is left", 3*time.Minute, func() error {
		out, err := n.cri("pods", "-q")
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("pod sandboxes %s", strings.Fields(out))
		}
		return err
	})
}
