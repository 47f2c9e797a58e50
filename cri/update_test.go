package cri

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func TestUpdateContainerResources(t *testing.T) {
	r := &fakeRuntime{containers: []*sandbox.Container{{
		ID: "c1", Config: workload.Container{Resources: &workload.Resources{CPUShares: 2}},
	}}}
	c, ctx := runtimeClient(t, r), t.Context()
	update := func(id string, l *pb.LinuxContainerResources) error {
		_, err := c.UpdateContainerResources(ctx, &pb.UpdateContainerResourcesRequest{ContainerId: id, Linux: l})
		return err
	}
	wantCode(t, "no id", update("", &pb.LinuxContainerResources{}), codes.InvalidArgument, "container_id")
	wantCode(t, "no limits", update("c1", nil), codes.InvalidArgument, "linux")
	wantCode(t, "bad period", update("c1", &pb.LinuxContainerResources{CpuPeriod: 1}), codes.InvalidArgument, "linux.cpu_period")
	wantCode(t, "bad cpus", update("c1", &pb.LinuxContainerResources{CpusetCpus: "x"}), codes.InvalidArgument, "linux.cpuset_cpus")
	wantCode(t, "unknown", update("none", &pb.LinuxContainerResources{}), codes.NotFound, "none")
	want := &pb.LinuxContainerResources{CpuQuota: 5000, CpuPeriod: 10000, MemoryLimitInBytes: 7, Unified: map[string]string{"a.b": "c"}}
	if err := update("c1", want); err != nil {
		t.Fatal(err)
	}
	st, err := c.ContainerStatus(ctx, &pb.ContainerStatusRequest{ContainerId: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, st.Status.Resources.GetLinux(), protocmp.Transform()); diff != "" {
		t.Errorf("ContainerStatus.resources (-want +got):\n%s", diff)
	}
}

func TestUpdatePodSandboxResources(t *testing.T) {
	r := &fakeRuntime{pods: []*sandbox.Pod{{ID: "p1"}}}
	c, ctx := runtimeClient(t, r), t.Context()
	update := func(req *pb.UpdatePodSandboxResourcesRequest) error {
		_, err := c.UpdatePodSandboxResources(ctx, req)
		return err
	}
	bad := &pb.LinuxContainerResources{CpuShares: -1}
	wantCode(t, "no id", update(&pb.UpdatePodSandboxResourcesRequest{}), codes.InvalidArgument, "pod_sandbox_id")
	wantCode(t, "bad", update(&pb.UpdatePodSandboxResourcesRequest{PodSandboxId: "p1", Resources: bad}), codes.InvalidArgument, "resources.cpu_shares")
	wantCode(t, "bad", update(&pb.UpdatePodSandboxResourcesRequest{PodSandboxId: "p1", Overhead: bad}), codes.InvalidArgument, "overhead.cpu_shares")
	if err := update(&pb.UpdatePodSandboxResourcesRequest{PodSandboxId: "p1", Resources: &pb.LinuxContainerResources{CpuShares: 3}}); err != nil {
		t.Fatal(err)
	}
	if p := r.pods[0]; p.Overhead != nil || p.Resources == nil || p.Resources.CPUShares != 3 {
		t.Errorf("overhead %v, resources %v; want none and 3 shares", p.Overhead, p.Resources)
	}
}

func TestUpdateRuntimeConfig(t *testing.T) {
	r := &fakeRuntime{}
	c, ctx := runtimeClient(t, r), t.Context()
	update := func(cidr string) error {
		_, err := c.UpdateRuntimeConfig(ctx, &pb.UpdateRuntimeConfigRequest{
			RuntimeConfig: &pb.RuntimeConfig{NetworkConfig: &pb.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	wantCode(t, "bad", update("10.0.0.0/24,x"), codes.InvalidArgument, "pod_cidr")
	if err := update(""); err != nil || r.cidrs != nil {
		t.Errorf("no CIDR: %v, %v; want nothing done", r.cidrs, err)
	}
	if err := update("10.0.0.0/24, fd00::/64"); err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")}
	if len(r.cidrs) != 2 || r.cidrs[0] != want[0] || r.cidrs[1] != want[1] {
		t.Errorf("SetPodCIDRs(%v); want %v", r.cidrs, want)
	}
}
