package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// inspected is the part of what crictl inspect, inspectp and inspecti print that scripts for other runtimes read.
type inspected struct {
	Info struct {
		PID         int
		SandboxID   string
		SnapshotKey string
		Layer       string
		Rootfs      string
		CgroupPath  string
		RuntimeSpec *specs.Spec
		Config      struct {
			Metadata struct{ Name string }
		}
		ChainID   string
		ImageSpec struct {
			Architecture string
			Config       struct{ Env []string }
		}
		Supervisor struct {
			PID   int
			State string
		}
	}
}

func (n *node) inspect(t *testing.T, args ...string) (in inspected) {
	t.Helper()
	text := n.crictl(t, args...)
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		t.Fatalf("crictl %s: %v\n%s", strings.Join(args, " "), err, text)
	}
	return in
}

// TestInspect: what crictl inspect shows is where scripts look for it, and true.
func TestInspect(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	c := p.create(t, []string{"/bin/sleep", "1000023"})
	if in := n.inspect(t, "inspect", c.id).Info; in.PID != 0 || in.RuntimeSpec != nil || in.SandboxID != p.id || in.Config.Metadata.Name == "" {
		t.Errorf("inspect of a created container = %+v; want its pod and configuration, no process", in)
	}
	c.startIt(t)
	in := n.inspect(t, "inspect", c.id).Info
	if got := processesOf("/bin/sleep\x001000023"); len(got) != 1 || fmt.Sprint(in.PID) != fmt.Sprint(got[0]) {
		t.Errorf(".info.pid = %d; want that of the process, %v", in.PID, got)
	}
	if in.RuntimeSpec == nil || strings.Join(in.RuntimeSpec.Process.Args, " ") != "/bin/sleep 1000023" {
		t.Errorf(".info.runtimeSpec = %+v; want the specification of /bin/sleep 1000023", in.RuntimeSpec)
	} else if at := in.RuntimeSpec.Linux.CgroupsPath; at != in.CgroupPath || !strings.HasSuffix(at, "/"+c.id) {
		t.Errorf(".info.runtimeSpec.linux.cgroupsPath = %q, .info.cgroupPath = %q; want the container's", at, in.CgroupPath)
	}
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", in.PID)); err != nil || !strings.Contains(string(text), in.CgroupPath+"\n") {
		t.Errorf("/proc/PID/cgroup = %s, %v; want %s", text, err, in.CgroupPath)
	}
	c.exec(t, "echo x > /mark")
	for _, file := range []string{in.Layer + "/upper/mark", in.Rootfs + "/mark"} {
		if text, err := os.ReadFile(file); err != nil || string(text) != "x\n" {
			t.Errorf("%s = %q, %v; want what the container wrote", file, text, err)
		}
	}
	if in.SandboxID != p.id || in.SnapshotKey != c.id {
		t.Errorf(".info.sandboxID, .info.snapshotKey = %s, %s; want %s, %s", in.SandboxID, in.SnapshotKey, p.id, c.id)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", in.Supervisor.PID)); err != nil || in.Supervisor.PID == 0 || in.Supervisor.State != "connected" {
		t.Errorf(".info.supervisor = %+v, %v; want a process that is connected", in.Supervisor, err)
	}

	inPod := n.inspect(t, "inspectp", p.id).Info
	if inPod.PID != in.PID || inPod.Config.Metadata.Name != p.config.Metadata.Name || inPod.CgroupPath != p.config.Linux.CgroupParent {
		t.Errorf("inspectp = %+v; want the process %d and the group %s", inPod, in.PID, p.config.Linux.CgroupParent)
	}
	own, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", in.PID))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, ns := range inPod.RuntimeSpec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			pinned, err := os.Stat(ns.Path)
			found = err == nil && os.SameFile(own, pinned)
		}
	}
	if !found {
		t.Errorf(".info.runtimeSpec.linux.namespaces = %+v; want the network of the pod", inPod.RuntimeSpec.Linux.Namespaces)
	}

	c.stopIt(t, 0)
	if in := n.inspect(t, "inspect", c.id).Info; in.PID != 0 || in.SandboxID != p.id {
		t.Errorf("inspect of an ended container = %+v; want no process", in)
	}
	if image := n.inspect(t, "inspecti", busybox()).Info; !strings.HasPrefix(image.ChainID, "sha256:") ||
		image.ImageSpec.Architecture == "" || len(image.ImageSpec.Config.Env) == 0 {
		t.Errorf("inspecti = %+v; want the chain ID and the image's configuration", image)
	}
}

// TestInfo: crictl info says what the daemon is made of, and what is wrong with the node.
func TestInfo(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.runPod(t)
	p.sleeping(t)
	bad := n.path("net.d", "05-bad.conflist")
	if err := os.WriteFile(bad, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	var in struct {
		Config  map[string]any
		Network struct {
			File, Name string
			Config     struct{ CNIVersion string }
			BinDirs    []string
		}
		Supervisors map[string]struct {
			PID, Pods int
			State     string
		}
		RuntimeHandlers []struct{ Features map[string]any }
		Features        map[string]bool
		CgroupDriver    string
		Golang, Kernel  string
		Version         string
		Problems        map[string][]string
	}
	eventually(t, "the broken network configuration in crictl info", func() bool {
		text := n.crictl(t, "info")
		if err := json.Unmarshal([]byte(text), &in); err != nil {
			t.Fatalf("crictl info: %v\n%s", err, text)
		}
		return strings.Contains(strings.Join(in.Problems["network"], "\n"), bad)
	})
	if in.Config["root"] != n.path("root") || in.CgroupDriver != "cgroupfs" || in.Golang == "" || in.Kernel == "" || in.Version == "" {
		t.Errorf("crictl info = %+v; want the configuration, the driver and versions", in)
	}
	if in.Network.Name != n.name || in.Network.Config.CNIVersion != "1.1.0" || len(in.Network.BinDirs) == 0 {
		t.Errorf("crictl info: network = %+v; want %s as it was read", in.Network, n.name)
	}
	pods := 0
	for _, s := range in.Supervisors {
		pods += s.Pods
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", s.PID)); err != nil || s.State != "connected" {
			t.Errorf("crictl info: supervisor %+v, %v; want a process that is connected", s, err)
		}
	}
	if pods != 1 {
		t.Errorf("crictl info: supervisors %+v; want one pod in them", in.Supervisors)
	}
	if len(in.RuntimeHandlers) == 0 || !in.Features["supplemental_groups_policy"] {
		t.Errorf("crictl info: handlers %v, features %v; want the built-in one and supplemental_groups_policy", in.RuntimeHandlers, in.Features)
	}
}
