package kubelet

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
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
	daemon, kubelet *program
	servers         []*program
}

// program is a process that is expected to run until it is told to end.
type program struct {
	name  string
	cmd   *exec.Cmd
	log   string
	ended chan error
}

func startProgram(dir, name, path string, args ...string) (*program, error) {
	p := &program{name: name, cmd: exec.Command(path, args...), log: filepath.Join(dir, name+".log"), ended: make(chan error, 1)}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = log, log, "/"
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.ended <- p.cmd.Wait() }()
	return p, nil
}

// stop ends it with a signal; an exit by that signal or with status 0 is expected.
func (p *program) stop(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	select {
	case err := <-p.ended:
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == sig {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		return nil
	case <-time.After(time.Minute):
		return errors.Join(fmt.Errorf("%s does not end", p.name), p.cmd.Process.Kill())
	}
}

func (p *program) tail() string {
	text, _ := os.ReadFile(p.log)
	return string(text[max(0, len(text)-4000):])
}

func env(name string) string {
	v := os.Getenv(name)
	if v == "" {
		panic("$" + name + " is not set: run hack/kube/test-kubelet.sh")
	}
	return v
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
	reg, err := startProgram(dir, "registry", env("REGISTRY"), "-listen=127.0.0.1:5000", "-root="+n.path("images"),
		"-add=kube/test:1="+env("TEST_ROOTFS"), "-add=kube/volume:1="+env("TEST_VOLUME"), "-add=kube/unused:1="+env("TEST_VOLUME"))
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
	if n.daemon, err = startProgram(n.dir, "daemon", env("CRI_SHIM"), "serve", "--config", n.path("config.toml")); err != nil {
		return err
	}
	return n.until("the daemon listens", time.Minute, func() error {
		_, err := os.Stat(n.path("sock"))
		return err
	})
}

func (n *node) startKubelet() (err error) {
	n.kubelet, err = startProgram(n.dir, "kubelet", env("KUBELET"), "--config="+n.path("kubelet.yaml"),
		"--root-dir="+n.path("kubelet"), "--cert-dir="+n.path("kubelet", "pki"), "--hostname-override="+nodeName,
		"--node-ip=127.0.0.1", "--v=2")
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
	for _, p := range append([]*program{n.kubelet, n.daemon}, n.servers...) {
		if p != nil {
			errs = append(errs, p.stop(syscall.SIGTERM))
		}
	}
	return errors.Join(errs...)
}

// until tries again until there is no error, and tells the last one.
func (n *node) until(what string, limit time.Duration, try func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return nil
		}
		for _, p := range []*program{n.daemon, n.kubelet} {
			if p == nil {
				continue
			}
			select {
			case err := <-p.ended:
				p.ended <- err
				return fmt.Errorf("%s ended: %v\n%s", p.name, err, p.tail())
			default:
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not after %v: %s: %w", limit, what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (n *node) eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	if err := n.until(what, 3*time.Minute, try); err != nil {
		t.Fatal(err)
	}
}

var client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

func get(url string) (string, error) {
	r, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return "", err
	}
	if r.StatusCode != http.StatusOK {
		return "", fmt.Errorf("GET %s: %s: %s", url, r.Status, body)
	}
	return string(body), nil
}

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
func (n *node) cri(args ...string) (string, error) {
	socket := "unix://" + n.path("sock")
	cmd := exec.CommandContext(context.Background(), env("CRICTL"), append([]string{
		"--config", "/dev/null", "--runtime-endpoint", socket, "--image-endpoint", socket, "--timeout", "30s",
	}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("crictl %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return string(out), nil
}
