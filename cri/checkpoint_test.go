package cri

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCheckpoint(t *testing.T) {
	r := &fakeRuntime{}
	c := runtimeClient(t, r)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	one := func(id, location string, timeout int64) error {
		_, err := c.CheckpointContainer(ctx, &pb.CheckpointContainerRequest{ContainerId: id, Location: location, Timeout: timeout})
		return err
	}
	pod := func(ctx context.Context, id, dir string, options map[string]string) error {
		_, err := c.CheckpointPod(ctx, &pb.CheckpointPodRequest{PodSandboxId: id, OutputPath: dir, ContainerIds: []string{"c1", "c2"}, Options: options})
		return err
	}
	wantCode(t, "no id", one("", "/a", 0), codes.InvalidArgument, "container_id")
	wantCode(t, "relative", one("c1", "a", 0), codes.InvalidArgument, "location")
	wantCode(t, "negative", one("c1", "/a", -1), codes.InvalidArgument, "timeout")
	wantCode(t, "no pod", pod(ctx, "", "/a", nil), codes.InvalidArgument, "pod_sandbox_id")
	wantCode(t, "no folder", pod(ctx, "p1", "", nil), codes.InvalidArgument, "output_path")
	wantCode(t, "an option", pod(ctx, "p1", "/a", map[string]string{"x": "y"}), codes.InvalidArgument, "options[x]")
	wantCode(t, "no deadline", pod(context.Background(), "p1", "/a", nil), codes.InvalidArgument, "deadline")
	if err := one("c1", "/a.tar", 7); err != nil {
		t.Error(err)
	}
	if err := pod(ctx, "p1", "/dir", nil); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"c1 /a.tar 7s", "p1 /dir [c1 c2]"}, r.checkpointed); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
}

func TestRestorePod(t *testing.T) {
	r := &fakeRuntime{}
	c := runtimeClient(t, r)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	config := func(names ...string) (all []*pb.ContainerConfig) {
		for _, name := range names {
			all = append(all, &pb.ContainerConfig{Metadata: &pb.ContainerMetadata{Name: name}, Image: &pb.ImageSpec{Image: "a/b:c"}})
		}
		return all
	}
	good := func() *pb.RestorePodRequest {
		return &pb.RestorePodRequest{
			CheckpointPath: "/dir", ContainerConfigs: config("one", "two"),
			Config: &pb.PodSandboxConfig{Metadata: &pb.PodSandboxMetadata{Name: "pod", Uid: "u", Namespace: "ns"}},
		}
	}
	for says, change := range map[string]func(*pb.RestorePodRequest){
		"checkpoint_path":                    func(r *pb.RestorePodRequest) { r.CheckpointPath = "dir" },
		"options[x]":                         func(r *pb.RestorePodRequest) { r.Options = map[string]string{"x": "y"} },
		"config: missing":                    func(r *pb.RestorePodRequest) { r.Config = nil },
		"runtime_handler":                    func(r *pb.RestorePodRequest) { r.RuntimeHandler = "nobody" },
		"container_configs: empty":           func(r *pb.RestorePodRequest) { r.ContainerConfigs = nil },
		"container_configs[1].metadata.name": func(r *pb.RestorePodRequest) { r.ContainerConfigs = config("one", "one") },
		"container_configs[0]":               func(r *pb.RestorePodRequest) { r.ContainerConfigs[0].Metadata = nil },
		"container_configs[0].linux.security_context.privileged": func(r *pb.RestorePodRequest) {
			r.ContainerConfigs[0].Linux = &pb.LinuxContainerConfig{SecurityContext: &pb.LinuxContainerSecurityContext{Privileged: true}}
		},
		"namespace_options.target_id": func(r *pb.RestorePodRequest) {
			r.ContainerConfigs[0].Linux = &pb.LinuxContainerConfig{SecurityContext: &pb.LinuxContainerSecurityContext{
				NamespaceOptions: &pb.NamespaceOption{Pid: pb.NamespaceMode_TARGET, TargetId: "c1"}}}
		},
	} {
		req := good()
		change(req)
		_, err := c.RestorePod(ctx, req)
		wantCode(t, says, err, codes.InvalidArgument, says)
	}
	_, err := c.RestorePod(context.Background(), good())
	wantCode(t, "no deadline", err, codes.InvalidArgument, "deadline")
	if len(r.checkpointed) > 0 {
		t.Errorf("asked for: %v; want nothing", r.checkpointed)
	}
	resp, err := c.RestorePod(ctx, good())
	if err != nil {
		t.Fatal(err)
	}
	want := &pb.RestorePodResponse{PodSandboxId: "p1", RestoredContainers: []*pb.RestoredContainer{
		{Name: "one", ContainerId: "c0"}, {Name: "two", ContainerId: "c1"}}}
	if diff := cmp.Diff(want, resp, protocmp.Transform()); diff != "" {
		t.Errorf("RestorePod (-want +got):\n%s", diff)
	}
}
