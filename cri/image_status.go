package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageStatus answers without an image where there is none.
func (s *imageService) ImageStatus(ctx context.Context, req *pb.ImageStatusRequest) (*pb.ImageStatusResponse, error) {
	spec, err := s.imageFromProto(req.GetImage())
	if err != nil {
		return nil, err
	}
	img, err := s.images.Get(ctx, spec.Image)
	if err != nil || img == nil {
		return &pb.ImageStatusResponse{}, err
	}
	resp := &pb.ImageStatusResponse{Image: imageToProto(img)}
	if !req.GetVerbose() {
		return resp, nil
	}
	values, err := s.images.Verbose(ctx, img.ID)
	if err != nil {
		return nil, err
	}
	resp.Info, err = objectInfo(values)
	return resp, err
}
