package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// callTimeout bounds every call; it is for a guest without hardware support on a machine that has other work.
const callTimeout = 2 * time.Minute

// node is a daemon with everything that it needs, all its own.
type node struct {
	pb.RuntimeServiceClient
	pb.ImageServiceClient

	dir     string // everything is below it
	name    string // of the CNI network and the bridge
	cgroup  string // below which the pods and the supervisors are
	gpuRoot string // of a node that seems to have GPUs
	handler string // of pods for which a test names none
	subnet  int    // 10.77.N.0/24 and fd77:0:0:N::/64
	program string
	config  map[string]string // keys of the configuration to their TOML values
	conn    *grpc.ClientConn
	daemon  *exec.Cmd
	ended   chan error

	mu   sync.Mutex
	pods map[string]string // all pods ever made to their cgroups
}

func needNode(t *testing.T) {
	t.Helper()
	testtools.NeedPrivate(t)
	testtools.CRIShim(t)
	testtools.CNIPlugins(t)
}

// newNode starts a daemon for one test; with config over the harness's own.
func newNode(t *testing.T, config map[string]string) *node {
	t.Helper()
	needNode(t)
	n, err := startNode(t, config)
	if n != nil {
		t.Cleanup(func() {
			if t.Failed() {
				n.showLog(t)
			}
			if err := n.close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var nodes atomic.Int32

func startNode(t *testing.T, config map[string]string) (*node, error) {
	if err := images.start(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "cri-shim-e2e")
	if err != nil {
		return nil, err
	}
	number := int(nodes.Add(1))
	n := &node{
		dir: dir, program: testtools.CRIShim(t), subnet: number, name: fmt.Sprintf("e2e%d", number),
		cgroup: "/" + filepath.Base(dir), pods: map[string]string{}, config: map[string]string{
			"root": quote(dir, "root"), "state": quote(dir, "state"), "listen": quote(dir, "sock"),
			"netns_dir": quote(dir, "netns"), "supervisor_cgroup": quote("/"+filepath.Base(dir), "supervisors"),
			"cni_conf_dir": quote(dir, "net.d"), "cni_bin_dirs": "[" + quote(testtools.CNIPlugins(t)) + "]",
			"registry_config_dirs": "[" + quote(dir, "certs.d") + "]",
			"log_level":            `"debug"`,
		},
	}
	if handler := os.Getenv(handlerEnv); handler != "" {
		n.handler, n.config["runtimes"] = handler, runtimesTable(t, handler)
	}
	for key, value := range config {
		n.config[key] = value
	}
	if err := n.writeNetwork(); err != nil {
		return n, err
	}
	if err := n.start(); err != nil {
		return n, err
	}
	for _, image := range []string{busybox(), web()} {
		if _, err := n.PullImage(context.Background(), &pb.PullImageRequest{Image: &pb.ImageSpec{Image: image}}); err != nil {
			return n, err
		}
	}
	return n, nil
}

func quote(path ...string) string { return fmt.Sprintf("%q", filepath.Join(path...)) }

func (n *node) path(elements ...string) string {
	return filepath.Join(append([]string{n.dir}, elements...)...)
}

// writeNetwork writes the pod network: a bridge with IPv4 and IPv6, host ports and bandwidth.
func (n *node) writeNetwork() error {
	if err := os.MkdirAll(n.path("net.d"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(n.path("net.d", "10-e2e.conflist"), fmt.Appendf(nil, `{
  "cniVersion": "1.1.0", "name": %[1]q, "plugins": [
    {"type": "bridge", "bridge": %[1]q, "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "dataDir": %[3]q,
      "ranges": [[{"subnet": "10.77.%[2]d.0/24"}], [{"subnet": "fd77:0:0:%[2]d::/64"}]],
      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}]}`, n.name, n.subnet, n.path("ipam")), 0o644)
}

// gateway is the address of the bridge.
func (n *node) gateway() string { return fmt.Sprintf("10.77.%d.1", n.subnet) }

func (n *node) socket() string { return n.path("sock") }

// command is the daemon's, not yet started.
func (n *node) command() (*exec.Cmd, error) {
	var config bytes.Buffer
	for key, value := range n.config {
		fmt.Fprintf(&config, "%s = %s\n", key, value)
	}
	if err := os.WriteFile(n.path("config.toml"), config.Bytes(), 0o644); err != nil {
		return nil, err
	}
	return exec.Command(n.program, "serve", "--config", n.path("config.toml")), nil
}

// shim runs a command of the program and returns what it prints.
func (n *node) shim(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(n.program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("cri-shim %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// start starts the daemon and waits until it answers.
func (n *node) start() error {
	log, err := os.OpenFile(n.path("daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd, err := n.command()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	n.daemon, n.ended = cmd, ended
	if n.conn == nil {
		if err := n.connect(); err != nil {
			return err
		}
	}
	return n.waitReady()
}

func (n *node) connect() error {
	conn, err := grpc.NewClient("unix:"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", n.socket())
		}))
	if err != nil {
		return err
	}
	n.conn = conn
	n.RuntimeServiceClient, n.ImageServiceClient = pb.NewRuntimeServiceClient(conn), pb.NewImageServiceClient(conn)
	return nil
}

func (n *node) waitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	for {
		n.conn.ResetConnectBackoff()
		_, err := n.Version(ctx, &pb.VersionRequest{})
		if err == nil {
			return nil
		}
		select {
		case ended := <-n.ended:
			n.ended <- ended
			return fmt.Errorf("the daemon ended: %v\n%s", ended, n.logTail())
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer: %w\n%s", err, n.logTail())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// stop ends the daemon with a signal and waits for it.
func (n *node) stop(sig syscall.Signal) error {
	if n.daemon == nil {
		return nil
	}
	if err := n.daemon.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	defer func() { n.daemon = nil }()
	select {
	case err := <-n.ended:
		if sig == syscall.SIGTERM && err != nil {
			return fmt.Errorf("the daemon ended with %w\n%s", err, n.logTail())
		}
		return nil
	case <-time.After(callTimeout):
		err := n.daemon.Process.Kill()
		return errors.Join(fmt.Errorf("the daemon does not end within %s of %s", callTimeout, sig), err)
	}
}

// restart ends the daemon with a signal and starts it again.
func (n *node) restart(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := n.stop(sig); err != nil {
		t.Fatal(err)
	}
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
}

func (n *node) logTail() string {
	text, err := os.ReadFile(n.path("daemon.log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "")
}

func (n *node) showLog(t *testing.T) {
	t.Logf("the end of the daemon's log:\n%s", n.logTail())
}

// ctx ends with the test or after callTimeout.
func ctx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	t.Cleanup(cancel)
	return ctx
}
