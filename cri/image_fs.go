package cri

import (
	"context"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageFsInfo tells of the images and of the writable layers of containers. The kubelet takes different mount points for
// different file systems, and equal ones for one.
func (s *imageService) ImageFsInfo(ctx context.Context, _ *pb.ImageFsInfoRequest) (*pb.ImageFsInfoResponse, error) {
	usage, err := s.images.Usage(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.ImageFsInfoResponse{ImageFilesystems: filesystemsToProto(usage)}
	if s.writable == nil {
		return resp, nil
	}
	usage, err = s.writable(ctx)
	if err != nil {
		return nil, err
	}
	resp.ContainerFilesystems = filesystemsToProto(usage)
	return resp, nil
}

func filesystemsToProto(usage []FilesystemUsage) []*pb.FilesystemUsage {
	var all []*pb.FilesystemUsage
	now := time.Now().UnixNano()
	for _, u := range usage {
		all = append(all, &pb.FilesystemUsage{
			Timestamp:  now,
			FsId:       &pb.FilesystemIdentifier{Mountpoint: u.Mountpoint},
			UsedBytes:  &pb.UInt64Value{Value: u.UsedBytes},
			InodesUsed: &pb.UInt64Value{Value: u.Inodes},
		})
	}
	return all
}
