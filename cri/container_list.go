package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) ListContainers(_ context.Context, req *pb.ListContainersRequest) (*pb.ListContainersResponse, error) {
	filter := req.GetFilter()
	containers := s.runtime.Containers()
	if id := filter.GetId(); id != "" {
		id = s.fullContainerID(id)
		containers = only(containers, func(c *sandbox.Container) bool { return c.ID == id })
	}
	if id := filter.GetPodSandboxId(); id != "" {
		id = s.fullPodID(id)
		containers = only(containers, func(c *sandbox.Container) bool { return c.PodID == id })
	}
	resp := &pb.ListContainersResponse{Containers: make([]*pb.Container, 0, len(containers))}
	for _, c := range containers {
		if want := filter.GetState(); want != nil && containerStateToProto(c.State()) != want.GetState() {
			continue
		}
		if selects(filter.GetLabelSelector(), c.Config.Labels) {
			resp.Containers = append(resp.Containers, containerToProto(c))
		}
	}
	return resp, nil
}

// fullContainerID completes a truncated ID.
func (s *runtimeService) fullContainerID(id string) string {
	if c, err := s.runtime.Container(id); err == nil {
		return c.ID
	}
	return id
}
