package sysctl

import (
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/internal/sys"
)

func TestCheck(t *testing.T) {
	all := Private{Net: true, IPC: true, UTS: true}
	for _, tc := range []struct {
		name, sysctl string
		private      Private
		want         string // part of the error; "" is none
	}{
		{"net", "net.ipv4.ip_forward", all, ""},
		{"net with slashes", "net/ipv4/conf/eth0.1/forwarding", all, ""},
		{"ipc", "kernel.shmmax", all, ""},
		{"mqueue", "fs.mqueue.msg_max", all, ""},
		{"domain", "kernel.domainname", all, ""},
		{"host net", "net.ipv4.ip_forward", Private{IPC: true, UTS: true}, "network namespace, which is the node's"},
		{"host ipc", "kernel.sem", Private{Net: true, UTS: true}, "IPC namespace"},
		{"host uts", "kernel.domainname", Private{Net: true, IPC: true}, "UTS namespace"},
		{"node", "vm.swappiness", all, "would change the node"},
		{"prefix", "kernel.shmmaxx", all, "would change the node"},
		{"escape", "net.ipv4.../../../x", all, "not the name"},
		{"space", "net.ipv4. x", all, "not the name"},
		{"hostname", "kernel.hostname", all, "a field of its own"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := Check(tc.sysctl, "1\t2", tc.private)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("Check(%s) = %v; want %q", tc.sysctl, err, tc.want)
			}
		})
	}
	for _, value := range []string{"1\n2", "1\x00"} {
		if err := Check("kernel.sem", value, all); err == nil || !strings.Contains(err.Error(), "control characters") {
			t.Errorf("Check with the value %q = %v; want it refused", value, err)
		}
	}
}

// FuzzCheck: what is allowed is below net, or one of the names that belong to another namespace, however it is spelled.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{"net.ipv4.ip_forward", "net/../kernel/core_pattern", "kernel/shmmax", "net.../x", "fs.mqueue.msg_max", "kernel.domainname"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if Check(name, "1", Private{Net: true, IPC: true, UTS: true}) != nil {
			return
		}
		p, err := sys.SysctlPath(name)
		if err != nil {
			t.Fatalf("%q is allowed, and has no path: %v", name, err)
		}
		if !strings.HasPrefix(p, "net/") && !strings.HasPrefix(p, "fs/mqueue/") && !ipc[p] && p != "kernel/domainname" {
			t.Errorf("%q is allowed, and is %s", name, p)
		}
		for part := range strings.SplitSeq(p, "/") {
			if part == "" || part == "." || part == ".." {
				t.Errorf("%q is allowed, and is %s", name, p)
			}
		}
	})
}
