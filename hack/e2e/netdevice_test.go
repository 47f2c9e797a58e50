package e2e

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// TestNetDevice: an interface of the node that a CDI device brings is in the pod, with its addresses, for the container
// that asked first and for those that are started after it; no other pod gets it.
func TestNetDevice(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (iproute2)")
	}
	n := gpuNode(t, nil)
	n.writeCDI(t, "nic.json", `{"cdiVersion": "1.1.0", "kind": "example.com/nic", "devices": [
  {"name": "one", "containerEdits": {"netDevices": [{"hostInterfaceName": "nic0", "name": "net1"}]}},
  {"name": "again", "containerEdits": {"netDevices": [{"hostInterfaceName": "nic0", "name": "eth0"}]}}]}`)
	ip(t, "link", "add", "nic0", "type", "veth", "peer", "name", "wire0")
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "wire0").Run() })
	ip(t, "addr", "add", "10.66.0.1/24", "dev", "nic0")
	p := n.runPod(t)

	// A name that the pod has is an error, and leaves the interface on the node.
	c := p.create(t, sh("true"), cdi("example.com/nic=again"))
	if _, err := n.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: c.id}); err == nil || !strings.Contains(err.Error(), "linux.netDevices[nic0]: the container's network namespace has an interface named eth0 already") {
		t.Errorf("StartContainer with a name that is taken = %v", err)
	}
	const script = "ip addr show dev net1"
	const want = "inet 10.66.0.1/24"
	for _, when := range []string{"first", "again", "after the daemon was killed"} {
		if got := p.output(t, script, cdi("example.com/nic=one")); !strings.Contains(got, want) || !strings.Contains(got, "UP") {
			t.Errorf("%s: the container has %q; want %s, up", when, got, want)
		}
		if when == "again" {
			n.restart(t, syscall.SIGKILL)
		}
	}
	c = n.runPod(t).create(t, sh("true"), cdi("example.com/nic=one"))
	if _, err := n.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: c.id}); err == nil || !strings.Contains(err.Error(), "there is no such interface") {
		t.Errorf("StartContainer in a second pod = %v", err)
	}
	host := n.runPod(t, hostNetwork)
	_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{
		PodSandboxId: host.id, SandboxConfig: host.config, Config: host.containerConfig("c", sh("true"), cdi("example.com/nic=one")),
	})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "linux.netDevices") {
		t.Errorf("CreateContainer on the node's network = %v; want InvalidArgument", err)
	}
}
