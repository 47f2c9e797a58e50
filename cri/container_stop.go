package cri

import (
	"context"
	"fmt"
	"math"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) StopContainer(ctx context.Context, req *pb.StopContainerRequest) (*pb.StopContainerResponse, error) {
	if err := needID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	timeout, err := seconds(req.GetTimeout())
	if err != nil {
		return nil, err
	}
	if err := s.runtime.StopContainer(ctx, req.GetContainerId(), timeout); err != nil {
		return nil, err
	}
	return &pb.StopContainerResponse{}, nil
}

// seconds converts a request's timeout.
func seconds(n int64) (time.Duration, error) {
	if n < 0 {
		return 0, fmt.Errorf("%w: timeout: %d is negative", sandbox.ErrInvalid, n)
	}
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second, nil
}
