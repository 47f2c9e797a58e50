package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *imageService) RemoveImage(ctx context.Context, req *pb.RemoveImageRequest) (*pb.RemoveImageResponse, error) {
	spec, err := s.imageFromProto(req.GetImage())
	if err != nil {
		return nil, err
	}
	if err := s.images.Remove(ctx, spec.Image); err != nil {
		return nil, err
	}
	return &pb.RemoveImageResponse{}, nil
}
