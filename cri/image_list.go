package cri

import (
	"context"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *imageService) ListImages(ctx context.Context, req *pb.ListImagesRequest) (*pb.ListImagesResponse, error) {
	images, err := s.selectImages(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	resp := &pb.ListImagesResponse{}
	for _, img := range images {
		resp.Images = append(resp.Images, imageToProto(img))
	}
	return resp, nil
}

func (s *imageService) StreamImages(req *pb.StreamImagesRequest, stream grpc.ServerStreamingServer[pb.StreamImagesResponse]) error {
	images, err := s.selectImages(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	p := pager[*pb.Image]{send: func(page []*pb.Image) error {
		return stream.Send(&pb.StreamImagesResponse{Images: page})
	}}
	for _, img := range images {
		if err := p.add(imageToProto(img)); err != nil {
			return err
		}
	}
	return p.flush()
}

// selectImages lists the images that a filter wants; nil wants all.
func (s *imageService) selectImages(ctx context.Context, filter *pb.ImageFilter) ([]*Image, error) {
	ref := filter.GetImage().GetImage()
	if ref == "" {
		return s.images.List(ctx)
	}
	img, err := s.images.Get(ctx, ref)
	if err != nil || img == nil {
		return nil, err
	}
	return []*Image{img}, nil
}
