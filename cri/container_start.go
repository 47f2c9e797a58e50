package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *runtimeService) StartContainer(ctx context.Context, req *pb.StartContainerRequest) (*pb.StartContainerResponse, error) {
	if err := needID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.runtime.StartContainer(ctx, req.GetContainerId()); err != nil {
		return nil, volumeError(err)
	}
	return &pb.StartContainerResponse{}, nil
}
