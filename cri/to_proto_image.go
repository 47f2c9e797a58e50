package cri

import (
	"strconv"
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func imageToProto(i *Image) *pb.Image {
	out := &pb.Image{
		Id:          i.ID,
		RepoTags:    i.RepoTags,
		RepoDigests: i.RepoDigests,
		Size:        uint64(max(i.Size, 1)), // "Must be > 0"
		Spec:        &pb.ImageSpec{Image: i.ID, Annotations: i.Annotations},
		Pinned:      i.Pinned,
	}
	user, _, _ := strings.Cut(i.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &pb.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}
