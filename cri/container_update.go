package cri

import (
	"context"
	"fmt"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) UpdateContainerResources(ctx context.Context, req *pb.UpdateContainerResourcesRequest) (*pb.UpdateContainerResourcesResponse, error) {
	if err := needID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	change, err := changeFromProto("linux", req.GetLinux())
	if err != nil {
		return nil, err
	}
	if change == nil {
		return nil, fmt.Errorf("%w: linux: missing", sandbox.ErrInvalid)
	}
	if err := s.runtime.UpdateContainer(ctx, req.GetContainerId(), change); err != nil {
		return nil, err
	}
	return &pb.UpdateContainerResourcesResponse{}, nil
}

// changeFromProto converts limits of which those that are zero are to stay as they are. A limit of both memory and swap
// is compared with the memory limit once it is known which one stands.
func changeFromProto(at string, r *pb.LinuxContainerResources) (*workload.Resources, error) {
	var f fields
	out := f.resources(at, r)
	return out, f.err()
}
