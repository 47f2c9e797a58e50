package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// get fetches the page of AddWeb, once something listens.
func get(t *testing.T, address string) {
	t.Helper()
	client := http.Client{Timeout: 2 * time.Second}
	defer client.CloseIdleConnections()
	var last string
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		resp, err := client.Get("http://" + address + "/")
		if err != nil {
			last = err.Error()
			time.Sleep(10 * time.Millisecond)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil && string(body) == "hello from a pod\n" {
			return
		}
		last = fmt.Sprintf("%s %q %v", resp.Status, body, err)
	}
	t.Errorf("http://%s/: %s; want hello from a pod", address, last)
}

// serveWeb runs a web server. Clients use timeout(1): wget -T of a static busybox crashes.
func (p *pod) serveWeb(t *testing.T) *container {
	t.Helper()
	return p.run(t, nil, func(c *pb.ContainerConfig) { c.Image.Image = web() })
}

func TestPodNetwork(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	server := n.runPod(t)
	server.serveWeb(t)
	s := server.status(t)
	if !strings.HasPrefix(s.Network.Ip, fmt.Sprintf("10.77.%d.", n.subnet)) || len(s.Network.AdditionalIps) != 1 ||
		!strings.HasPrefix(s.Network.AdditionalIps[0].Ip, fmt.Sprintf("fd77:0:0:%d:", n.subnet)) {
		t.Fatalf("addresses = %v; want one of each family", s.Network)
	}
	v6 := s.Network.AdditionalIps[0].Ip
	get(t, net.JoinHostPort(s.Network.Ip, "8080"))
	get(t, net.JoinHostPort(v6, "8080"))
	if out, err := exec.CommandContext(ctx(t), "ping", "-c1", "-W5", s.Network.Ip).CombinedOutput(); err != nil {
		t.Errorf("ping: %v\n%s", err, out)
	}
	client := n.runPod(t)
	for _, address := range []string{s.Network.Ip, "[" + v6 + "]"} {
		if got := client.output(t, "timeout 10 wget -q -O - http://"+address+":8080/"); got != "hello from a pod\n" {
			t.Errorf("from another pod, %s answers %q; want hello from a pod", address, got)
		}
	}
	if got := client.output(t, "ping -c 1 -W 5 "+s.Network.Ip+" >/dev/null && echo pong"); got != "pong\n" {
		t.Errorf("ping from another pod: %q; want pong", got)
	}
	if got := client.output(t, "timeout 5 wget -q -O - http://127.0.0.1:8080/ || echo refused"); got != "refused\n" {
		t.Errorf("a pod's loopback answers %q; want it to be its own", got)
	}
}

func freePort(t *testing.T) int32 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

func TestHostPort(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	port := freePort(t)
	p := n.runPod(t, func(c *pb.PodSandboxConfig) {
		c.PortMappings = []*pb.PortMapping{{ContainerPort: 8080, HostPort: port}}
	})
	p.serveWeb(t)
	get(t, fmt.Sprintf("127.0.0.1:%d", port))
	get(t, fmt.Sprintf("%s:%d", n.gateway(), port))
	if got := n.runPod(t).output(t, fmt.Sprintf("timeout 10 wget -q -O - http://%s:%d/", n.gateway(), port)); got != "hello from a pod\n" {
		t.Errorf("from another pod, the host port answers %q", got)
	}
	if _, err := n.StopPodSandbox(ctx(t), &pb.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second); err == nil {
		conn.Close()
		t.Error("the host port is open after the pod was stopped")
	}
}

func TestHostNetwork(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork)
	if got, want := p.output(t, "readlink /proc/self/ns/net"), namespace(t, "net"); got != want {
		t.Errorf("network namespace = %q; want the node's, %q", got, want)
	}
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got := p.output(t, "hostname"); got != hostname+"\n" {
		t.Errorf("hostname = %q; want the node's, %q", got, hostname)
	}
	if ip := p.ip(t); ip != "" {
		t.Errorf("address = %q; want none: the kubelet knows the node's", ip)
	}
}

// namespace is what readlink prints in the test's own namespace.
func namespace(t *testing.T, kind string) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return link + "\n"
}

func TestNetworkFiles(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t, func(c *pb.PodSandboxConfig) {
		c.Hostname = "the-host"
		c.DnsConfig = &pb.DNSConfig{
			Servers: []string{"10.1.2.3", "fd00::53"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5"},
		}
	})
	if got, want := p.output(t, "cat /etc/resolv.conf"), "search a.test b.test\nnameserver 10.1.2.3\nnameserver fd00::53\noptions ndots:5\n"; got != want {
		t.Errorf("/etc/resolv.conf = %q; want %q", got, want)
	}
	if got := p.output(t, "hostname; cat /etc/hostname; echo $HOSTNAME"); got != "the-host\nthe-host\nthe-host\n" {
		t.Errorf("hostname, /etc/hostname, $HOSTNAME = %q; want the-host", got)
	}
	hosts := p.output(t, "cat /etc/hosts")
	for _, want := range []string{"127.0.0.1", "localhost", p.ip(t), "the-host"} {
		if !strings.Contains(hosts, want) {
			t.Errorf("/etc/hosts = %q; want %s in it", hosts, want)
		}
	}
	// The kubelet brings its own hosts file.
	own := n.path("own-hosts")
	if err := os.WriteFile(own, []byte("1.2.3.4 own\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := p.output(t, "cat /etc/hosts", func(c *pb.ContainerConfig) {
		c.Mounts = []*pb.Mount{{HostPath: own, ContainerPath: "/etc/hosts"}}
	})
	if got != "1.2.3.4 own\n" {
		t.Errorf("/etc/hosts = %q; want the one that was mounted", got)
	}
}

func TestSysctls(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t, func(c *pb.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.core.somaxconn": "517", "kernel.shm_rmid_forced": "1"}
	})
	if got := p.output(t, "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced"); got != "517\n1\n" {
		t.Errorf("sysctls = %q; want 517 and 1", got)
	}
	// enable_unprivileged_ports and enable_unprivileged_icmp.
	if got := p.output(t, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range"); got != "0\n0\t2147483647\n" {
		t.Errorf("sysctls of every pod = %q; want 0 and all groups", got)
	}
}

func TestBandwidth(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	n.runPod(t, func(c *pb.PodSandboxConfig) {
		c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "7M", "kubernetes.io/egress-bandwidth": "9M"}
	})
	out, err := exec.CommandContext(ctx(t), "tc", "qdisc", "show").CombinedOutput()
	if err != nil {
		t.Skipf("needs tc: %v", err)
	}
	if !strings.Contains(string(out), "rate 7Mbit") || !strings.Contains(string(out), "rate 9Mbit") {
		t.Errorf("tc qdisc show = %s; want rates of 7Mbit and 9Mbit", out)
	}
}

// TestNoNetworkYet: a node whose network add-on comes later says where it looked, and goes on by itself.
func TestNoNetworkYet(t *testing.T) {
	t.Parallel()
	needNode(t)
	n := newNode(t, nil)
	conf := n.path("net.d", "10-e2e.conflist")
	if err := os.Rename(conf, n.path("later")); err != nil {
		t.Fatal(err)
	}
	n.restart(t, stopSignal)
	c := n.condition(t, "NetworkReady")
	if c.Status || !strings.Contains(c.Message, n.path("net.d")) {
		t.Errorf("NetworkReady = %v; want false and where it looked, %s", c, n.path("net.d"))
	}
	if c := n.condition(t, "RuntimeReady"); !c.Status {
		t.Errorf("RuntimeReady = %v; want true", c)
	}
	_, err := n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{Config: n.podConfig()})
	if err == nil || !strings.Contains(err.Error(), n.path("net.d")) {
		t.Errorf("RunPodSandbox without a network = %v; want an error that names %s", err, n.path("net.d"))
	}
	if got := n.runPod(t, hostNetwork).output(t, "echo works"); got != "works\n" {
		t.Errorf("a pod on the node's network says %q; want works", got)
	}
	if err := os.Rename(n.path("later"), conf); err != nil {
		t.Fatal(err)
	}
	n.becomes(t, "NetworkReady")
	n.runPod(t)
}
