package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *runtimeService) StopPodSandbox(ctx context.Context, req *pb.StopPodSandboxRequest) (*pb.StopPodSandboxResponse, error) {
	if err := needID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.runtime.StopPod(ctx, req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &pb.StopPodSandboxResponse{}, nil
}
