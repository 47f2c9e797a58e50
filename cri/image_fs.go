package cri

import (
	"context"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageFsInfo leaves container_filesystems empty, which says that the writable layers of
// containers lie on the filesystem of the images.
func (s *imageService) ImageFsInfo(ctx context.Context, _ *pb.ImageFsInfoRequest) (*pb.ImageFsInfoResponse, error) {
	usage, err := s.images.Usage(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.ImageFsInfoResponse{}
	now := time.Now().UnixNano()
	for _, u := range usage {
		resp.ImageFilesystems = append(resp.ImageFilesystems, &pb.FilesystemUsage{
			Timestamp:  now,
			FsId:       &pb.FilesystemIdentifier{Mountpoint: u.Mountpoint},
			UsedBytes:  &pb.UInt64Value{Value: u.UsedBytes},
			InodesUsed: &pb.UInt64Value{Value: u.Inodes},
		})
	}
	return resp, nil
}
