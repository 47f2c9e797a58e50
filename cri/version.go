package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	kubeletAPIVersion = "0.1.0" // the kubelet's own; it has never had another
	runtimeAPIVersion = "v1"
)

func (s *runtimeService) Version(context.Context, *pb.VersionRequest) (*pb.VersionResponse, error) {
	return &pb.VersionResponse{
		Version:           kubeletAPIVersion,
		RuntimeName:       s.options.Name,
		RuntimeVersion:    s.options.Version,
		RuntimeApiVersion: runtimeAPIVersion,
	}, nil
}
