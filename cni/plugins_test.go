package cni

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/testtools"
)

// realNode is a node with the reference plugins, in a network namespace that it has for itself.
type realNode struct {
	node
	bridge string
	ipam   string // host-local's folder
}

func newRealNode(t testing.TB) *realNode {
	t.Helper()
	testtools.NeedPrivate(t)
	nd := newNode(t)
	nd.bin = testtools.CNIPlugins(t)
	bridge := fmt.Sprintf("br%d", os.Getpid()%100000)
	t.Cleanup(func() {
		if l, err := netlink.LinkByName(bridge); err == nil {
			netlink.LinkDel(l)
		}
	})
	return &realNode{node: nd, bridge: bridge, ipam: filepath.Join(filepath.Dir(nd.cache), "ipam")}
}

// write puts a dual-stack configuration in place. backend is portmap's; small makes room for two pods only.
func (r *realNode) write(t testing.TB, version, backend string, small bool) {
	t.Helper()
	v4, v6 := "10.88.0.0/24", "fd00:88::/64"
	if small {
		v4 = "10.88.0.0/29"
	}
	end := ""
	if small {
		end = `,"rangeStart":"10.88.0.2","rangeEnd":"10.88.0.3"`
	}
	write(t, filepath.Join(r.conf, "10-net.conflist"), fmt.Sprintf(`{"cniVersion":%q,"name":"testnet","plugins":[
{"type":"bridge","bridge":%q,"isGateway":true,"ipMasq":true,"hairpinMode":true,
 "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q%s}],[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
{"type":"portmap","backend":%q,"snat":true,"capabilities":{"portMappings":true}},
{"type":"bandwidth","capabilities":{"bandwidth":true}}]}`, version, r.bridge, r.ipam, v4, end, v6, backend))
}

// addresses are those that host-local holds as allocated.
func (r *realNode) addresses(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(r.ipam, "testnet"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if _, err := netip.ParseAddr(strings.ReplaceAll(e.Name(), "_", ":")); err == nil {
			out = append(out, e.Name())
		}
	}
	return out
}

// netns pins a namespace with lo up.
func (r *realNode) netns(t testing.TB, id string) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(r.cache), "netns", id)
	if err := sys.PinNamespaces([]sys.NamespacePin{{Flag: sys.NamespaceNet, Path: path}}, sys.LoopbackUp); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.UnpinNamespace(path); err != nil {
			t.Error(err)
		}
		exec.Command("umount", filepath.Dir(path)).Run()
	})
	return path
}

func (r *realNode) pod(t testing.TB, id string) Attachment {
	t.Helper()
	a := pod(id)
	a.Netns = r.netns(t, id)
	return a
}

func setup(t testing.TB, n *Networks, a Attachment) *Result {
	t.Helper()
	r, err := n.Setup(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// serve answers "hello" on a TCP port inside the pod.
func serve(t *testing.T, a Attachment, port int) {
	t.Helper()
	var l net.Listener
	err := sys.WithNetns(a.Netns, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
}

func get(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, 500*time.Millisecond)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	b, err := io.ReadAll(c)
	return string(b), err
}

// hostIP gives the test's "host" an address to reach host ports by.
func hostIP(t *testing.T) string {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("192.0.2.1/32")
	if err == nil {
		err = netlink.AddrReplace(lo, addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.AddrDel(lo, addr) })
	return "192.0.2.1"
}

func TestPlugins(t *testing.T) {
	for backend, version := range map[string]string{"nftables": "1.1.0", "iptables": "0.4.0"} {
		t.Run(backend+" "+version, func(t *testing.T) {
			nd := newRealNode(t)
			host := hostIP(t)
			nd.write(t, version, backend, false)
			testLife(t, nd, host)
		})
	}
}

func testLife(t *testing.T, nd *realNode, host string) {
	n := nd.start(t)
	// The first answer of three plugins may take longer than a caller waits (statusWait).
	eventually(t, "a Status without an error", func() bool { return n.Status(t.Context()) == nil })
	a := nd.pod(t, "poda")
	a.PortMappings = []PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 8080}}
	bw, err := ParseBandwidth(map[string]string{ingressAnnotation: "10M", egressAnnotation: "20M"})
	if err != nil {
		t.Fatal(err)
	}
	a.Bandwidth = bw
	r := setup(t, n, a)
	if len(r.IPs) != 2 || !r.IPs[0].Is4() || !r.IPs[1].Is6() {
		t.Fatalf("IPs = %v; want one of each family", r.IPs)
	}
	if got := nd.addresses(t); len(got) != 2 {
		t.Errorf("host-local holds %v; want 2 addresses", got)
	}
	serve(t, a, 80)
	for what, addr := range map[string]string{
		"pod, IPv4": net.JoinHostPort(r.IPs[0].String(), "80"),
		"pod, IPv6": net.JoinHostPort(r.IPs[1].String(), "80"),
		"host port": net.JoinHostPort(host, "8080"),
	} {
		// The bridge's own IPv6 address is tentative for a second (duplicate address detection).
		eventually(t, what+" answers at "+addr, func() bool {
			got, err := get(addr)
			return err == nil && got == "hello"
		})
	}
	if rate := tbfRates(t); len(rate) != 2 {
		t.Errorf("token bucket filters = %v bytes/s; want two", rate)
	}
	if err := n.Check(t.Context(), a); err != nil {
		t.Errorf("Check = %v; want nil", err)
	}
	breakPod(t, a)
	if err := n.Check(t.Context(), a); err == nil {
		t.Error("Check of a pod without its interface = nil; want an error")
	} else {
		wantErr(t, "Check", err, `"testnet"`, `plugin "bridge": CHECK`)
	}
	for range 2 {
		if err := nd.start(t).Teardown(t.Context(), a); err != nil {
			t.Errorf("Teardown = %v; want nil", err)
		}
	}
	if got := nd.addresses(t); len(got) != 0 {
		t.Errorf("host-local still holds %v", got)
	}
	if got, err := get(net.JoinHostPort(host, "8080")); err == nil {
		t.Errorf("the host port still answers %q", got)
	}
	if rate := tbfRates(t); len(rate) != 0 {
		t.Errorf("token bucket filters left: %v", rate)
	}
	if left := leftovers(t, nd.node); left != nil {
		t.Errorf("left: %v", left)
	}
}

func tbfRates(t *testing.T) (rates []uint64) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			continue // the link has just gone
		}
		for _, q := range qdiscs {
			switch q := q.(type) {
			case *netlink.Tbf:
				rates = append(rates, q.Rate)
			case *netlink.Htb:
				rates = append(rates, 0)
			}
		}
	}
	return rates
}

func breakPod(t *testing.T, a Attachment) {
	t.Helper()
	err := sys.WithNetns(a.Netns, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The configuration is gone or another's, and so is the namespace; the addresses must come back all the same.
func TestPluginsTeardownWithoutConfiguration(t *testing.T) {
	nd := newRealNode(t)
	nd.write(t, "1.0.0", "nftables", false)
	n := nd.start(t)
	a, b := nd.pod(t, "poda"), nd.pod(t, "podb")
	setup(t, n, a)
	setup(t, n, b)
	if err := os.RemoveAll(nd.conf); err != nil {
		t.Fatal(err)
	}
	if err := n.Teardown(t.Context(), a); err != nil {
		t.Errorf("Teardown without a configuration = %v; want nil", err)
	}
	if err := sys.UnpinNamespace(b.Netns); err != nil {
		t.Fatal(err)
	}
	if err := nd.start(t).Teardown(t.Context(), b); err != nil {
		t.Errorf("Teardown without a configuration and a namespace = %v; want nil", err)
	}
	if got := nd.addresses(t); len(got) != 0 {
		t.Errorf("host-local still holds %v", got)
	}
}

// The last plugin of the chain fails, after the first has allocated addresses and made interfaces.
func TestPluginsAddFails(t *testing.T) {
	nd := newRealNode(t)
	nd.write(t, "1.0.0", "nftables", false)
	file := filepath.Join(nd.conf, "10-net.conflist")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, strings.TrimSuffix(string(good), "]}")+`,{"type":"tuning","sysctl":{"net.ipv4.no_such":"1"}}]}`)
	n := nd.start(t)
	a := nd.pod(t, "poda")
	a.PortMappings = []PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 8080}}
	_, err = n.Setup(t.Context(), a)
	wantErr(t, "Setup", err, `cni network "testnet": pod poda eth0: plugin "tuning": ADD: `, "no_such")
	if strings.Contains(err.Error(), "DEL") {
		t.Errorf("Setup = %v; want a clean undo", err)
	}
	if got := nd.addresses(t); len(got) != 0 {
		t.Errorf("host-local still holds %v", got)
	}
	if left := leftovers(t, nd.node); left != nil {
		t.Errorf("left: %v", left)
	}
	write(t, file, string(good))
	eventually(t, "the new configuration", func() bool { _, _, p := n.Loaded(); return len(p) == 3 })
	setup(t, n, a)
	if err := n.Teardown(t.Context(), a); err != nil {
		t.Error(err)
	}
}

func TestPluginsNoAddressLeft(t *testing.T) {
	nd := newRealNode(t)
	nd.write(t, "1.0.0", "nftables", true)
	n := nd.start(t)
	a, b, c := nd.pod(t, "poda"), nd.pod(t, "podb"), nd.pod(t, "podc")
	setup(t, n, a)
	setup(t, n, b)
	_, err := n.Setup(t.Context(), c)
	wantErr(t, "Setup", err, `plugin "bridge": ADD: `, "no IP addresses available")
	if got := nd.addresses(t); len(got) != 4 {
		t.Errorf("host-local holds %v; want 4 addresses", got)
	}
	// A crash: records and plugin state are there, nobody knows pod a any more.
	n = nd.start(t)
	if err := n.GC(t.Context(), ids("podb")); err != nil {
		t.Fatal(err)
	}
	setup(t, n, c)
	if err := n.GC(t.Context(), ids()); err != nil {
		t.Fatal(err)
	}
	if got := nd.addresses(t); len(got) != 0 {
		t.Errorf("host-local still holds %v", got)
	}
}

func TestPluginsParallel(t *testing.T) {
	nd := newRealNode(t)
	nd.write(t, "1.1.0", "nftables", false)
	n := nd.start(t)
	var mu sync.Mutex
	seen := map[netip.Addr]bool{}
	var wg sync.WaitGroup
	for i := range 8 {
		a := nd.pod(t, fmt.Sprintf("pod%d", i))
		wg.Go(func() {
			r, err := n.Setup(t.Context(), a)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			for _, ip := range r.IPs {
				if seen[ip] {
					t.Errorf("%s was given twice", ip)
				}
				seen[ip] = true
			}
			mu.Unlock()
			if i%2 == 0 {
				if err := n.Teardown(t.Context(), a); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := n.GC(t.Context(), ids("pod1", "pod3")); err != nil {
		t.Fatal(err)
	}
	if got := nd.addresses(t); len(got) != 4 {
		t.Errorf("host-local holds %v; want those of pod1 and pod3", got)
	}
	if err := n.GC(t.Context(), ids()); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkPlugins(b *testing.B) {
	nd := newRealNode(b)
	nd.write(b, "1.0.0", "nftables", false)
	n := nd.start(b)
	a := nd.pod(b, "poda")
	for b.Loop() {
		setup(b, n, a)
		if err := n.Teardown(b.Context(), a); err != nil {
			b.Fatal(err)
		}
	}
}
