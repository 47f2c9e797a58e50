package main

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/checkpoint"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func restoredSpec() *specs.Spec {
	return &specs.Spec{
		Root: &specs.Root{},
		Process: &specs.Process{
			Args: []string{"sh"}, Cwd: "/", Env: []string{"A=b", "HOSTNAME=old", "HOME=/root"},
			User: specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3, 4}}, Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}},
		},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/data/", Source: "/a", Type: "bind", Options: []string{"rbind", "rslave"}}},
		Linux: &specs.Linux{
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: "/old"}},
			MaskedPaths: []string{"/proc/kcore", "/proc/keys"}, Seccomp: &specs.LinuxSeccomp{},
			Devices: []specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 1, Minor: 2}},
		},
	}
}

func TestFits(t *testing.T) {
	same := restoredSpec() // what may differ does
	same.Mounts[1].Source, same.Mounts[1].Destination = "/other", "/data"
	same.Linux.Namespaces[1].Path = "/new"
	same.Linux.MaskedPaths = []string{"/proc/keys", "/proc/kcore"}
	same.Linux.Devices = nil
	same.Linux.Resources = &specs.LinuxResources{}
	if err := fits(restoredSpec(), same); err != nil {
		t.Error(err)
	}
	for says, change := range map[string]func(*specs.Spec){
		"config.tty":                       func(s *specs.Spec) { s.Process.Terminal = true },
		"no_new_privs":                     func(s *specs.Spec) { s.Process.NoNewPrivileges = true },
		"capabilities":                     func(s *specs.Spec) { s.Process.Capabilities = nil },
		"seccomp":                          func(s *specs.Spec) { s.Linux.Seccomp = nil },
		"readonly_rootfs":                  func(s *specs.Spec) { s.Root.Readonly = true },
		"masked_paths":                     func(s *specs.Spec) { s.Linux.MaskedPaths = nil },
		"readonly_paths":                   func(s *specs.Spec) { s.Linux.ReadonlyPaths = []string{"/proc/sys"} },
		"network namespace is the node's":  func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:1] },
		"mount namespace is the node's":    func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] },
		"network namespace is the contain": func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "" },
		"/data is missing":                 func(s *specs.Spec) { s.Mounts = s.Mounts[:1] },
		"/new was not there":               func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/new", Type: "bind"}) },
		"/data: ro: true":                  func(s *specs.Spec) { s.Mounts[1].Options = append(s.Mounts[1].Options, "ro") },
		"/data: rslave: false":             func(s *specs.Spec) { s.Mounts[1].Options = []string{"rbind"} },
		"bidirectional":                    func(s *specs.Spec) { s.Mounts[1].Options = []string{"rbind", "rshared"} },
		"/dev/x":                           func(s *specs.Spec) { s.Linux.Devices[0].Minor = 3 },
		"hooks":                            func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} },
	} {
		now := restoredSpec()
		change(now)
		if err := fits(restoredSpec(), now); !errors.Is(err, sandbox.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want ErrInvalid that says so", says, err)
		}
	}
}

func TestExpectedProcess(t *testing.T) {
	old := restoredSpec().Process
	now := func(change func(*specs.Process)) *specs.Process {
		p := restoredSpec().Process
		p.Env = []string{"A=b", "HOSTNAME=new", "HOME=/"}
		change(p)
		return p
	}
	if err := expectedProcess(old, now(func(p *specs.Process) { p.Cwd = "/." }), nil); err != nil {
		t.Error(err)
	}
	if err := expectedProcess(old, now(func(*specs.Process) {}), []workload.EnvVar{{Key: "HOME"}}); err == nil {
		t.Error("another HOME, which the client has set: no error")
	}
	for says, change := range map[string]func(*specs.Process){
		"config.command":     func(p *specs.Process) { p.Args = []string{"other"} },
		"config.working_dir": func(p *specs.Process) { p.Cwd = "/tmp" },
		"config.envs: A":     func(p *specs.Process) { p.Env = nil },
		"config.envs: B":     func(p *specs.Process) { p.Env = append(p.Env, "B=c") },
	} {
		if err := expectedProcess(old, now(change), nil); !errors.Is(err, sandbox.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want ErrInvalid that says so", says, err)
		}
	}
	if err := sameUser(old, restoredSpec().Process); err != nil {
		t.Error(err)
	}
	other := restoredSpec().Process
	other.User = specs.User{UID: 9, AdditionalGids: []uint32{4}}
	if err := sameUser(old, other); err == nil || !strings.Contains(err.Error(), "run_as_user") || !strings.Contains(err.Error(), "supplemental_groups") {
		t.Errorf("another user: %v", err)
	}
}

func TestSameAddresses(t *testing.T) {
	network := func(ips ...string) map[string]checkpoint.Network {
		var i checkpoint.Interface
		for _, ip := range ips {
			i.Subnets = append(i.Subnets, checkpoint.Subnet{IPNet: ip})
		}
		return map[string]checkpoint.Network{"pod": {Interfaces: map[string]checkpoint.Interface{"eth0": i}}}
	}
	p := &sandbox.Pod{IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
	for _, tc := range []struct {
		network map[string]checkpoint.Network
		want    bool
	}{
		{network("10.0.0.1/32"), true}, {network("10.0.0.1/24", "fd00::1/64"), true}, {network("10.0.0.2/32"), false},
		{network("10.0.0.1/32", "10.0.0.2/32"), false}, {network(), false}, {nil, false}, {network("x"), false},
	} {
		if got := sameAddresses(p, tc.network); got != tc.want {
			t.Errorf("sameAddresses(%v) = %v; want %v", tc.network, got, tc.want)
		}
	}
}

func TestWithin(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{filepath.Join(dir, "x"): true, dir: false, dir + "x": false, "/x": false} {
		if got := within(path, link); got != want {
			t.Errorf("within(%q, %q) = %v; want %v", path, link, got, want)
		}
	}
}
