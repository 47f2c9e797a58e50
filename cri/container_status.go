package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *runtimeService) ContainerStatus(_ context.Context, req *pb.ContainerStatusRequest) (*pb.ContainerStatusResponse, error) {
	if err := needID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.runtime.Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &pb.ContainerStatusResponse{Status: containerStatusToProto(c)}
	if !req.GetVerbose() {
		return resp, nil
	}
	values, err := s.runtime.ContainerVerbose(c.ID)
	if err != nil {
		return nil, err
	}
	resp.Info, err = objectInfo(values)
	return resp, err
}
