package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *runtimeService) RemoveContainer(ctx context.Context, req *pb.RemoveContainerRequest) (*pb.RemoveContainerResponse, error) {
	if err := needID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.runtime.RemoveContainer(ctx, req.GetContainerId()); err != nil {
		return nil, err
	}
	return &pb.RemoveContainerResponse{}, nil
}
