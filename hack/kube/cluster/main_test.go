package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/hack/kube/node"
)

// one is the cluster of all tests.
var one *Cluster

func TestMain(m *testing.M) {
	if os.Getenv("KUBE_APISERVER") == "" {
		fmt.Println("cluster: $KUBE_APISERVER is not set: hack/kube/test-cluster.sh runs these tests")
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "c")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := 1
	began := time.Now()
	if one, err = Start(dir, ""); err == nil {
		fmt.Printf("the cluster is ready after %.1f s\n", time.Since(began).Seconds())
		code = m.Run()
		err = errors.Join(one.emptied(), one.Err(), one.Stop())
	}
	err = errors.Join(err, node.Blames(filepath.Join(dir, "kubelet.log"), provoked...))
	if err != nil {
		fmt.Fprintf(os.Stderr, "--- FAIL: %v\n", err)
		code = 1
	}
	keepLogs(dir)
	return code
}

// provoked are errors that the tests make on purpose.
var provoked = []string{}

func keepLogs(dir string) {
	keep := os.Getenv("KEEP_LOGS")
	if keep == "" {
		return
	}
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, log := range logs {
		text, err := os.ReadFile(log)
		if err == nil {
			err = os.WriteFile(filepath.Join(keep, filepath.Base(log)), text, 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// emptied deletes CoreDNS, the last pod, and fails if the runtime has anything then.
func (c *Cluster) emptied() error {
	if _, err := c.Kubectl("", "-n", "kube-system", "delete", "deployment", "coredns"); err != nil {
		return err
	}
	return c.until("no pod sandbox, container or network namespace is left", 3*time.Minute, func() error {
		for _, list := range [][]string{{"pods", "-q"}, {"ps", "-a", "-q"}} {
			out, err := node.Crictl(c.dir, list...)
			if err == nil && strings.TrimSpace(out) != "" {
				err = fmt.Errorf("crictl %s: %v", strings.Join(list, " "), strings.Fields(out))
			}
			if err != nil {
				return err
			}
		}
		left, err := os.ReadDir(c.path("netns"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%s has %v", c.path("netns"), left)
		}
		return err
	})
}
