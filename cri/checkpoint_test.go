package cri

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
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
