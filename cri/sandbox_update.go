package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdatePodSandboxResources hears of a resize of the whole pod, whose group the kubelet has resized by then.
func (s *runtimeService) UpdatePodSandboxResources(ctx context.Context, req *pb.UpdatePodSandboxResourcesRequest) (*pb.UpdatePodSandboxResourcesResponse, error) {
	if err := needID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	overhead, err := changeFromProto("overhead", req.GetOverhead())
	if err != nil {
		return nil, err
	}
	resources, err := changeFromProto("resources", req.GetResources())
	if err != nil {
		return nil, err
	}
	if err := s.runtime.UpdatePod(ctx, req.GetPodSandboxId(), overhead, resources); err != nil {
		return nil, err
	}
	return &pb.UpdatePodSandboxResourcesResponse{}, nil
}
