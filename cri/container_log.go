package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *runtimeService) ReopenContainerLog(ctx context.Context, req *pb.ReopenContainerLogRequest) (*pb.ReopenContainerLogResponse, error) {
	if err := needID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.runtime.ReopenLog(ctx, req.GetContainerId()); err != nil {
		return nil, err
	}
	return &pb.ReopenContainerLogResponse{}, nil
}
