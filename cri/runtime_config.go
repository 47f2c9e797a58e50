package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RuntimeConfig tells the kubelet how to name cgroups: by their paths, or as systemd's slices.
func (s *runtimeService) RuntimeConfig(context.Context, *pb.RuntimeConfigRequest) (*pb.RuntimeConfigResponse, error) {
	driver := pb.CgroupDriver_CGROUPFS
	if s.options.CgroupDriver == "systemd" {
		driver = pb.CgroupDriver_SYSTEMD
	}
	return &pb.RuntimeConfigResponse{Linux: &pb.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}
