package kubelet

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	parts "github.com/cri-shim/cri-shim/hack/kube/node"
)

// Ports of the kubelet, in the network namespace of the tests.
const (
	secure   = "https://127.0.0.1:10250"
	readOnly = "http://127.0.0.1:10255"
	// nodeName ends the names of static pods.
	nodeName = "node"
)

// node is a daemon and a kubelet that uses it.
type node struct {
	dir             string
	registry        string // host:port
	daemon, kubelet *parts.Program
	servers         []*parts.Program
}

func (n *node) path(elem ...string) string { return filepath.Join(append([]string{n.dir}, elem...)...) }

func (n *node) image() string { return n.registry + "/kube/test:1" }

func startNode(dir string) (*node, error) {
	n := &node{dir: dir}
	for _, d := range []string{"net.d", "manifests", "certs.d", "pod-logs", "kubelet"} {
		if err := os.MkdirAll(n.path(d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := n.writeConfigs(); err != nil {
		return nil, err
	}
	reg, err := parts.Start(dir, "registry", parts.Env("REGISTRY"), "-listen=127.0.0.1:5000", "-root="+n.path("images"),
		"-add=kube/test:1="+parts.Env("TEST_ROOTFS"), "-add=kube/volume:1="+parts.Env("TEST_VOLUME"), "-add=kube/unused:1="+parts.Env("TEST_VOLUME"))
	if err != nil {
		return nil, err
	}
	n.registry = "127.0.0.1:5000"
	n.servers = append(n.servers, reg)
	err = n.until("the registry answers", time.Minute, func() error {
		_, err := get("http://" + n.registry + "/v2/")
		return err
	})
	if err != nil {
		return n, err
	}
	if err := n.startDaemon(); err != nil {
		return n, err
	}
	return n, n.startKubelet()
}

func (n *node) startDaemon() (err error) {
	n.daemon, err = parts.StartDaemon(n.dir)
	return err
}

func (n *node) startKubelet(more ...string) (err error) {
	n.kubelet, err = parts.Start(n.dir, "kubelet", parts.Env("KUBELET"), append([]string{"--config=" + n.path("kubelet.yaml"),
		"--root-dir=" + n.path("kubelet"), "--cert-dir=" + n.path("kubelet", "pki"), "--hostname-override=" + nodeName,
		"--node-ip=127.0.0.1", "--v=2"}, more...)...)
	if err != nil {
		return err
	}
	return n.until("the kubelet is healthy", 2*time.Minute, func() error {
		_, err := get(secure + "/healthz")
		return err
	})
}

func (n *node) stop() error {
	var errs []error
	for _, p := range append([]*parts.Program{n.kubelet, n.daemon}, n.servers...) {
		if p != nil {
			errs = append(errs, p.Stop(syscall.SIGTERM))
		}
	}
	return errors.Join(errs...)
}

// until tries again until there is no error, and tells the last one.
func (n *node) until(what string, limit time.Duration, try func() error) error {
	return parts.Until(what, limit, []*parts.Program{n.daemon, n.kubelet}, try)
}

func (n *node) eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	if err := n.until(what, 3*time.Minute, try); err != nil {
		t.Fatal(err)
	}
}

var (
	client = parts.Client
	get    = parts.Get
)

// pods are all that the kubelet knows, with their statuses.
func pods() ([]corev1.Pod, error) {
	text, err := get(readOnly + "/pods")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	return list.Items, nil
}

// cri runs crictl and returns its standard output.
func (n *node) cri(args ...string) (string, error) { return parts.Crictl(n.dir, args...) }
