package main

import (
	"os/exec"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestNetDevices: an interface is in the container, up and with its addresses, before its hooks run and its settings are
// written, whoever the network namespace belongs to; and where it was if the container does not come to be.
func TestNetDevices(t *testing.T) {
	b := ours(t, "ip addr show dev net1; cat /proc/sys/net/ipv4/conf/net1/arp_ignore; cat /tmp/hook")
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (iproute2)")
	}
	b.applet("ip")
	b.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"moved0": {Name: "net1"}}
	b.spec.Linux.Sysctl = map[string]string{"net.ipv4.conf.net1.arp_ignore": "1"}
	b.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c",
		"exec nsenter -n -t $(grep -o '\"pid\":[0-9]*' | cut -d: -f2) ip -o link show net1 >" + b.bundle + "/rootfs/tmp/hook"}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}}}}
	network := func(path string) {
		for i := range b.spec.Linux.Namespaces {
			if b.spec.Linux.Namespaces[i].Type == specs.NetworkNamespace {
				b.spec.Linux.Namespaces[i].Path = path
			}
		}
	}
	mapped := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	for name, set := range map[string]func(){
		"new namespace": func() {},
		"user namespace": func() {
			b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = mapped, mapped
		},
		"joined namespace": func() {
			ip(t, "netns", "add", "netdevices")
			t.Cleanup(func() { ip(t, "netns", "del", "netdevices") })
			network("/run/netns/netdevices")
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec, linux := *b.spec, *b.spec.Linux
			defer func() { *b.spec, *b.spec.Linux = spec, linux }()
			linux.Namespaces = append([]specs.LinuxNamespace(nil), linux.Namespaces...)
			ip(t, "link", "add", "moved0", "type", "veth", "peer", "name", "stays0")
			t.Cleanup(func() { exec.Command("ip", "link", "del", "stays0").Run() })
			ip(t, "addr", "add", "10.55.0.1/24", "dev", "moved0")
			b2 := *b
			set()
			b2.t = t
			b2.write()
			got := b2.ok("run", "c")
			for _, want := range []string{"UP", "inet 10.55.0.1/24", "\n1\n", "net1@"} {
				if !strings.Contains(got, want) {
					t.Errorf("the container has %q; want %q in it", got, want)
				}
			}
		})
	}
	ip(t, "link", "add", "moved0", "type", "veth", "peer", "name", "stays0")
	defer ip(t, "link", "del", "stays0")
	ip(t, "addr", "add", "10.55.0.1/24", "dev", "moved0")
	b.spec.Hooks.CreateRuntime[0].Args[2] = "exit 3"
	b.write()
	b.fails("exit status 3", "run", "c")
	if got := ip(t, "addr", "show", "dev", "moved0"); !strings.Contains(got, "inet 10.55.0.1/24") || strings.Contains(got, "UP") {
		t.Errorf("after a hook that failed it is %s; want it with its address, and down", got)
	}
	b.gone("c")
	b.spec.Linux.NetDevices["missing0"] = specs.LinuxNetDevice{}
	b.write()
	b.fails("linux.netDevices[missing0]: there is no such interface", "run", "c")
}
