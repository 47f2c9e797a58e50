package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// limitsOf prints the limits that a container sees, as "file value" lines.
func limitsOf(t *testing.T, c *container) map[string]string {
	t.Helper()
	files := "cpu/cpu.shares cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpuset/cpuset.cpus memory/memory.limit_in_bytes"
	if unified() {
		files = "cpu.weight cpu.max cpuset.cpus memory.max memory.swap.max memory.high memory.oom.group"
	}
	out := map[string]string{}
	for _, f := range strings.Fields(files) {
		out[f] = strings.TrimSpace(c.exec(t, "cat /sys/fs/cgroup/"+f))
	}
	return out
}

func wantLimits(t *testing.T, when string, got, want map[string]string) {
	t.Helper()
	for f, v := range want {
		if got[f] != v {
			t.Errorf("%s: %s = %q; want %q", when, f, got[f], v)
		}
	}
}

// TestCrictlUpdate changes limits of a container that runs, of one that does not yet, and over a restart of the daemon.
func TestCrictlUpdate(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	testUpdate(t, n, n.runPod(t, hostNetwork))
}

func testUpdate(t *testing.T, n *node, p *pod) {
	limits := func(c *pb.ContainerConfig) {
		c.Linux.Resources = &pb.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000}
	}
	c := p.sleeping(t, limits)
	n.crictl(t, "update", "--cpu-period", "50000", "--cpu-quota", "12345", "--cpu-share", "1024", "--cpuset-cpus", "0",
		"--memory", fmt.Sprint(96<<20), c.id)
	want := map[string]string{
		"cpu/cpu.shares": "1024", "cpu/cpu.cfs_quota_us": "12345", "cpu/cpu.cfs_period_us": "50000",
		"cpuset/cpuset.cpus": "0", "memory/memory.limit_in_bytes": fmt.Sprint(96 << 20),
	}
	if unified() {
		want = map[string]string{"cpu.weight": "100", "cpu.max": "12345 50000", "cpuset.cpus": "0", "memory.max": fmt.Sprint(96 << 20), "memory.swap.max": "0"}
		_, err := c.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: &pb.LinuxContainerResources{
			Unified: map[string]string{"memory.high": fmt.Sprint(48 << 20), "memory.oom.group": "1"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		want["memory.high"], want["memory.oom.group"] = fmt.Sprint(48<<20), "1"
	}
	wantLimits(t, "crictl update", limitsOf(t, c), want)
	reported := func(when string) {
		t.Helper()
		r := c.status(t).GetResources().GetLinux()
		if r.GetCpuShares() != 1024 || r.GetCpuQuota() != 12345 || r.GetCpuPeriod() != 50000 || r.GetCpusetCpus() != "0" || r.GetMemoryLimitInBytes() != 96<<20 {
			t.Errorf("%s: ContainerStatus().Resources = %v; want what was set", when, r)
		}
	}
	reported("after the update")

	// What is in use cannot be taken away: the kernel's own refusal on v1, a comparison on v2, where it would kill.
	_, err := c.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &pb.LinuxContainerResources{MemoryLimitInBytes: 4096},
	})
	if err == nil || !strings.Contains(err.Error(), "memory") || status.Code(err) == codes.Internal {
		t.Errorf("a memory limit of 4096 bytes: %v; want a refusal that names memory", err)
	}
	if s := c.status(t); s.State != pb.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after a refused limit: %v; want it to run", s)
	}
	reported("after a refusal")
	wantLimits(t, "after a refusal", limitsOf(t, c), want)
	_, err = c.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &pb.LinuxContainerResources{CpusetCpus: "4000"},
	})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "cpuset.cpus") {
		t.Errorf("CPU 4000: %v; want InvalidArgument that names cpuset.cpus", err)
	}

	created := p.create(t, sh("exec sleep 100000"), limits)
	n.crictl(t, "update", "--memory", fmt.Sprint(80<<20), created.id)
	n.restart(t, syscall.SIGKILL)
	reported("after a restart")
	created.startIt(t)
	memory := map[string]string{"memory/memory.limit_in_bytes": fmt.Sprint(80 << 20), "cpu/cpu.shares": "512"}
	if unified() {
		memory = map[string]string{"memory.max": fmt.Sprint(80 << 20), "cpu.max": "50000 100000"}
	}
	wantLimits(t, "updated before the start", limitsOf(t, created), memory)

	created.stopIt(t, 0)
	_, err = c.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{
		ContainerId: created.id, Linux: &pb.LinuxContainerResources{CpuShares: 2},
	})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("update of a container that has ended: %v; want FailedPrecondition", err)
	}
}

// TestUpdateEachLimit: every limit of the CRI, one after another on what runs; what a change does not name stays.
func TestUpdateEachLimit(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	c := n.runPod(t).sleeping(t, func(c *pb.ContainerConfig) {
		c.Linux.Resources = &pb.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20, CpuShares: 512}
	})
	cpus := strings.TrimSpace(c.exec(t, "cat /sys/fs/cgroup/cpuset*/cpuset.cpus.effective /sys/fs/cgroup/cpuset*/cpuset.effective_cpus /sys/fs/cgroup/cpuset.cpus.effective 2>/dev/null | head -1"))
	last, _, _ := strings.Cut(cpus, ",")
	if _, high, ok := strings.Cut(last, "-"); ok {
		last = high
	}
	for _, tc := range []struct {
		name   string
		change *pb.LinuxContainerResources
		v1, v2 string // file, "=" and what it holds then; "" is that the hierarchy has no such limit
	}{
		{"cpu_shares", &pb.LinuxContainerResources{CpuShares: 1024}, "cpu/cpu.shares=1024", "cpu.weight=100"},
		{"cpu_period and cpu_quota", &pb.LinuxContainerResources{CpuPeriod: 50000, CpuQuota: 20000}, "cpu/cpu.cfs_quota_us=20000", "cpu.max=20000 50000"},
		{"cpu_quota alone", &pb.LinuxContainerResources{CpuQuota: 30000}, "cpu/cpu.cfs_period_us=50000", "cpu.max=30000 50000"},
		{"no cpu_quota", &pb.LinuxContainerResources{CpuQuota: -1}, "cpu/cpu.cfs_quota_us=-1", "cpu.max=max 50000"},
		{"cpuset_cpus", &pb.LinuxContainerResources{CpusetCpus: last}, "cpuset/cpuset.cpus=" + last, "cpuset.cpus=" + last},
		{"cpuset_mems", &pb.LinuxContainerResources{CpusetMems: "0"}, "cpuset/cpuset.mems=0", "cpuset.mems=0"},
		{"memory down", &pb.LinuxContainerResources{MemoryLimitInBytes: 48 << 20}, fmt.Sprint("memory/memory.limit_in_bytes=", 48<<20), fmt.Sprint("memory.max=", 48<<20)},
		{"memory up", &pb.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}, fmt.Sprint("memory/memory.limit_in_bytes=", 96<<20), fmt.Sprint("memory.max=", 96<<20)},
		{"swap", &pb.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 128 << 20},
			fmt.Sprint("memory/memory.memsw.limit_in_bytes=", 128<<20), fmt.Sprint("memory.swap.max=", 32<<20)},
		{"hugepages", &pb.LinuxContainerResources{HugepageLimits: []*pb.HugepageLimit{{PageSize: "2MB", Limit: 8 << 20}}},
			fmt.Sprint("hugetlb/hugetlb.2MB.limit_in_bytes=", 8<<20), fmt.Sprint("hugetlb.2MB.max=", 8<<20)},
		{"unified", &pb.LinuxContainerResources{Unified: map[string]string{"memory.high": fmt.Sprint(80 << 20)}}, "", fmt.Sprint("memory.high=", 80<<20)},
	} {
		at := tc.v1
		if unified() {
			at = tc.v2
		}
		file, want, _ := strings.Cut(at, "=")
		_, err := c.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: tc.change})
		if file == "" || strings.TrimSpace(c.exec(t, "test -e /sys/fs/cgroup/"+file+" && echo there; true")) == "" {
			// What the node cannot limit is refused, but for swap: where nobody counts it there is none to be limited.
			if err == nil && tc.name != "swap" {
				t.Errorf("%s: no error; want one, as there is no %q", tc.name, file)
			}
			t.Logf("%s: the node has no such limit: %v", tc.name, err)
			continue
		}
		if got := strings.TrimSpace(c.exec(t, "cat /sys/fs/cgroup/"+file)); err != nil || got != want {
			t.Errorf("%s: %v, %s = %q; want %q", tc.name, err, file, got, want)
		}
	}
	r := c.status(t).GetResources().GetLinux()
	if r.GetCpuShares() != 1024 || r.GetCpuPeriod() != 50000 || r.GetCpuQuota() != -1 || r.GetMemoryLimitInBytes() != 96<<20 || r.GetCpusetCpus() != last || r.GetCpusetMems() != "0" {
		t.Errorf("ContainerStatus().Resources = %v; want all of what was set", r)
	}
}

func TestUpdatePodSandbox(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork, func(c *pb.PodSandboxConfig) { c.Linux.CgroupParent = "" })
	_, err := n.UpdatePodSandboxResources(ctx(t), &pb.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.id, Resources: &pb.LinuxContainerResources{MemoryLimitInBytes: 200 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := "/sys/fs/cgroup/memory/cri-shim/" + p.id + "/memory.limit_in_bytes"
	if unified() {
		file = "/sys/fs/cgroup/cri-shim/" + p.id + "/memory.max"
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != fmt.Sprintln(200<<20) {
		t.Errorf("%s = %q, %v; want 200 MiB", file, got, err)
	}
	if _, err := n.RemovePodSandbox(ctx(t), &pb.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("stat %s of a removed pod = %v; want not exist", file, err)
	}
}

func TestUpdateRuntimeConfig(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	_, err := n.UpdateRuntimeConfig(ctx(t), &pb.UpdateRuntimeConfigRequest{
		RuntimeConfig: &pb.RuntimeConfig{NetworkConfig: &pb.NetworkConfig{PodCidr: "10.200.0.0/24"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.restart(t, syscall.SIGTERM)
	resp, err := n.RuntimeServiceClient.Status(ctx(t), &pb.StatusRequest{Verbose: true})
	if err != nil || !strings.Contains(resp.Info["podCIDR"], "10.200.0.0/24") {
		t.Errorf("verbose Status() = %v, %v; want the pod CIDR", resp.GetInfo()["podCIDR"], err)
	}
}

// A kubelet with the other cgroup driver is told so, instead of getting its pods' limits in the wrong place.
func TestSliceWithoutSystemd(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	config := n.podConfig(hostNetwork, func(c *pb.PodSandboxConfig) { c.Linux.CgroupParent = "kubepods-besteffort-pod1.slice" })
	_, err := n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{Config: config})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "cgroupDriver") {
		t.Errorf("RunPodSandbox in a slice = %v; want InvalidArgument that names the kubelet's cgroupDriver", err)
	}
}
