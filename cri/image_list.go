package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *imageService) ListImages(ctx context.Context, req *pb.ListImagesRequest) (*pb.ListImagesResponse, error) {
	resp := &pb.ListImagesResponse{}
	if ref := req.GetFilter().GetImage().GetImage(); ref != "" {
		img, err := s.images.Get(ctx, ref)
		if err != nil || img == nil {
			return resp, err
		}
		resp.Images = append(resp.Images, imageToProto(img))
		return resp, nil
	}
	images, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		resp.Images = append(resp.Images, imageToProto(img))
	}
	return resp, nil
}
