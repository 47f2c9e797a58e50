package cri

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) CheckpointContainer(ctx context.Context, req *pb.CheckpointContainerRequest) (*pb.CheckpointContainerResponse, error) {
	if err := needID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	var f fields
	f.absolute("location", req.GetLocation())
	if req.GetTimeout() < 0 {
		f.add("timeout", "%d is negative", req.GetTimeout())
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	timeout := time.Duration(min(req.GetTimeout(), int64(24*time.Hour/time.Second))) * time.Second
	if err := s.runtime.CheckpointContainer(ctx, req.GetContainerId(), req.GetLocation(), timeout); err != nil {
		return nil, err
	}
	return &pb.CheckpointContainerResponse{}, nil
}

func (s *runtimeService) CheckpointPod(ctx context.Context, req *pb.CheckpointPodRequest) (*pb.CheckpointPodResponse, error) {
	if err := needID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	var f fields
	f.absolute("output_path", req.GetOutputPath())
	for _, key := range slices.Sorted(maps.Keys(req.GetOptions())) {
		f.add("options["+key+"]", "there is no such option")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if _, bounded := ctx.Deadline(); !bounded {
		return nil, fmt.Errorf("%w: the call has no deadline", sandbox.ErrInvalid) // CRI CheckpointPod: "must set"
	}
	if err := s.runtime.CheckpointPod(ctx, req.GetPodSandboxId(), req.GetOutputPath(), req.GetContainerIds()); err != nil {
		return nil, err
	}
	return &pb.CheckpointPodResponse{}, nil
}
