package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/hack/kube/node"
)

// startTimeout bounds each wait of the start: several programs of a hundred megabytes begin at once.
const startTimeout = 5 * time.Minute

// Cluster is a running one.
type Cluster struct {
	dir     string
	outside string // host:port that the machine reaches the API server by, or none
	parts   []*node.Program
	daemon  *node.Program
}

// Start starts all parts, with everything that they write below dir, and returns when the node is ready and CoreDNS
// answers. outside is an address at which the caller forwards connections to Address; dir/kubeconfig names it.
func Start(dir, outside string) (*Cluster, error) {
	c := &Cluster{dir: dir, outside: outside}
	err := c.start()
	if err != nil {
		err = errors.Join(err, c.Stop())
	}
	return c, err
}

// Address is where the API server listens, inside.
const Address = "127.0.0.1:6443"

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

func (c *Cluster) start() error {
	if err := errors.Join(c.writeConfigs(), makeNetwork()); err != nil {
		return err
	}
	if err := os.Link(node.Env("COREDNS"), c.path("coredns", "coredns")); err != nil {
		if err := copyFile(node.Env("COREDNS"), c.path("coredns", "coredns")); err != nil {
			return err
		}
	}
	for _, begin := range []func() error{c.startRegistry, c.startEtcd, c.startAPIServer, c.StartDaemon} {
		if err := begin(); err != nil {
			return err
		}
	}
	if err := c.wait("the API server is ready", "get", "--raw", "/readyz"); err != nil {
		return err
	}
	for _, begin := range []func() error{c.startControllers, c.startProxy, c.startKubelet} {
		if err := begin(); err != nil {
			return err
		}
	}
	if err := c.wait("CoreDNS is deployed", "apply", "-f", c.path("coredns.yaml")); err != nil {
		return err
	}
	for _, w := range []struct {
		what string
		args []string
	}{
		{"pods have a service account", []string{"get", "serviceaccount", "default"}},
		{"the node is ready", []string{"wait", "--for=condition=Ready", "node/" + NodeName, "--timeout=10s"}},
		{"CoreDNS is ready", []string{"-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=10s"}},
	} {
		if err := c.wait(w.what, w.args...); err != nil {
			return err
		}
	}
	return nil
}

// makeNetwork makes the node's address, on a bridge of its own, and a way for what has no other: packets to a
// service's address have to be sent before they can be redirected.
func makeNetwork() error {
	for _, args := range []string{
		"link set lo up", "link add node0 type bridge", "address add " + nodeAddress + "/24 dev node0", "link set node0 up",
		"route add default dev node0",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// begin starts a part that runs to the end.
func (c *Cluster) begin(name, path string, args ...string) error {
	p, err := node.Start(c.dir, name, path, args...)
	if err == nil {
		c.parts = append(c.parts, p)
	}
	return err
}

func (c *Cluster) startRegistry() error {
	return c.begin("registry", node.Env("REGISTRY"), "-listen="+registry, "-root="+c.path("images"),
		"-add=kube/test:1="+node.Env("TEST_ROOTFS"), "-add=kube/coredns:1="+c.path("coredns"))
}

func (c *Cluster) startEtcd() error {
	return c.begin("etcd", node.Env("ETCD"), "--data-dir="+c.path("etcd"), "--unsafe-no-fsync",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380")
}

func (c *Cluster) startAPIServer() error {
	pki := c.path("pki") + "/"
	return c.begin("apiserver", node.Env("KUBE_APISERVER"), "--etcd-servers=http://127.0.0.1:2379",
		"--secure-port=6443", "--advertise-address="+nodeAddress, "--service-cluster-ip-range="+serviceCIDR,
		"--anonymous-auth=false", "--token-auth-file="+c.path("tokens.csv"), "--authorization-mode=AlwaysAllow", "--allow-privileged",
		"--tls-cert-file="+pki+"apiserver.crt", "--tls-private-key-file="+pki+"apiserver.key", "--client-ca-file="+pki+"ca.crt",
		"--kubelet-certificate-authority="+pki+"ca.crt", "--kubelet-preferred-address-types=InternalIP",
		"--kubelet-client-certificate="+pki+"kube-apiserver.crt", "--kubelet-client-key="+pki+"kube-apiserver.key",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+pki+"service-account.key",
		"--service-account-signing-key-file="+pki+"service-account.key")
}

func (c *Cluster) startControllers() error {
	return errors.Join(
		c.begin("controller-manager", node.Env("KUBE_CONTROLLER_MANAGER"), "--kubeconfig="+c.path("controller-manager.kubeconfig"),
			"--bind-address=127.0.0.1", "--leader-elect=false", "--root-ca-file="+c.path("pki", "ca.crt"),
			"--service-account-private-key-file="+c.path("pki", "service-account.key"),
			"--allocate-node-cidrs", "--cluster-cidr="+podRange, "--node-cidr-mask-size=24",
			"--flex-volume-plugin-dir="+c.path("plugins")),
		c.begin("scheduler", node.Env("KUBE_SCHEDULER"), "--kubeconfig="+c.path("scheduler.kubeconfig"),
			"--bind-address=127.0.0.1", "--leader-elect=false"),
	)
}

func (c *Cluster) startProxy() error {
	return c.begin("proxy", node.Env("KUBE_PROXY"), "--config="+c.path("proxy.yaml"))
}

func (c *Cluster) startKubelet() error {
	return c.begin("kubelet", node.Env("KUBELET"), "--config="+c.path("kubelet.yaml"), "--kubeconfig="+c.path("kubelet.kubeconfig"),
		"--root-dir="+c.path("kubelet"), "--cert-dir="+c.path("kubelet", "pki"), "--hostname-override="+NodeName,
		"--node-ip="+nodeAddress, "--v=2")
}

// StartDaemon starts cri-shim; Start has done it once.
func (c *Cluster) StartDaemon() (err error) {
	c.daemon, err = node.StartDaemon(c.dir)
	return err
}

// StopDaemon ends cri-shim with a signal.
func (c *Cluster) StopDaemon(sig syscall.Signal) error {
	err := c.daemon.Stop(sig)
	c.daemon = nil
	return err
}

// Err is the end of a part that was not told to end.
func (c *Cluster) Err() error {
	for _, p := range append(c.parts[:len(c.parts):len(c.parts)], c.daemon) {
		if p == nil {
			continue
		}
		if err := p.Err(); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends all parts. Pods run on, as without a cluster, to the end of their namespaces. The daemon and the kubelet may
// say how it was; of the others, whose data ends with the cluster, some take their time or answer SIGTERM with
// exit status 1.
func (c *Cluster) Stop() error {
	var errs []error
	if c.daemon != nil {
		errs = append(errs, c.StopDaemon(syscall.SIGTERM))
	}
	for len(c.parts) > 0 {
		last, sig := c.parts[len(c.parts)-1], syscall.SIGKILL
		if last.Name == "kubelet" {
			sig = syscall.SIGTERM
		}
		c.parts = c.parts[:len(c.parts)-1]
		errs = append(errs, last.Stop(sig))
	}
	return errors.Join(errs...)
}

// until waits, as node.Until does.
func (c *Cluster) until(what string, limit time.Duration, try func() error) error {
	return node.Until(what, limit, append(c.parts[:len(c.parts):len(c.parts)], c.daemon), try)
}

// wait repeats a command of kubectl until it succeeds.
func (c *Cluster) wait(what string, args ...string) error {
	return c.until(what, startTimeout, func() error {
		_, err := c.Kubectl("", args...)
		return err
	})
}

// command is kubectl as the administrator.
func (c *Cluster) command(args ...string) *exec.Cmd {
	cmd := exec.Command(node.Env("KUBECTL"), append([]string{"--kubeconfig", c.path("admin.kubeconfig"), "--cache-dir", c.path("kubectl-cache")}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+c.dir)
	return cmd
}

// Kubectl runs it with stdin and returns what it printed to its standard output.
func (c *Cluster) Kubectl(stdin string, args ...string) (string, error) {
	cmd := c.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return stdout.String(), nil
}
