package kubelet

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
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
		err = machine.blames()
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

// Lines of the kubelet that blame the runtime, and those that a restart of the daemon explains.
var (
	blame     = regexp.MustCompile(`(?i)rpc error|PLEG is not healthy|runtime service failed|image service failed|FailedCreatePodSandBox|FailedKillPod|CreateContainerError|RunContainerError|KillContainerError|RuntimeNotReady`)
	restarted = regexp.MustCompile(`code = Unavailable|code = Canceled|error reading from server: EOF|connection refused`)
)

// blames fails when the kubelet saw an error of the runtime.
func (n *node) blames() error {
	text, err := os.ReadFile(n.path("kubelet.log"))
	if err != nil {
		return err
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if blame.MatchString(line) && !restarted.MatchString(line) && !expectedLine(line) {
			found = append(found, line[:min(len(line)-1, 600)])
		}
	}
	if len(found) == 0 {
		return nil
	}
	return fmt.Errorf("the kubelet blames the runtime in %d lines:\n%s", len(found), strings.Join(found[:min(len(found), 40)], "\n"))
}

// expectedLine knows the errors that tests provoke.
func expectedLine(line string) bool {
	for _, text := range []string{
		"pleg has yet to be successful", // at the kubelet's start
		// The kubelet removes containers and asks for them again.
		"DeleteContainer returned error", `"ContainerStatus from runtime service failed" err="rpc error: code = NotFound`,
	} {
		if strings.Contains(line, text) {
			return true
		}
	}
	return false
}
