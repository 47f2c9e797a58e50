package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *runtimeService) RemovePodSandbox(ctx context.Context, req *pb.RemovePodSandboxRequest) (*pb.RemovePodSandboxResponse, error) {
	if err := needID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.runtime.RemovePod(ctx, req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &pb.RemovePodSandboxResponse{}, nil
}
