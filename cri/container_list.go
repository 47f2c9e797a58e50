package cri

import (
	"context"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) ListContainers(_ context.Context, req *pb.ListContainersRequest) (*pb.ListContainersResponse, error) {
	resp := &pb.ListContainersResponse{}
	for _, c := range s.selectContainers(req.GetFilter()) {
		resp.Containers = append(resp.Containers, containerToProto(c))
	}
	return resp, nil
}

func (s *runtimeService) StreamContainers(req *pb.StreamContainersRequest, stream grpc.ServerStreamingServer[pb.StreamContainersResponse]) error {
	p := pager[*pb.Container]{send: func(page []*pb.Container) error {
		return stream.Send(&pb.StreamContainersResponse{Containers: page})
	}}
	for _, c := range s.selectContainers(req.GetFilter()) {
		if err := p.add(containerToProto(c)); err != nil {
			return err
		}
	}
	return p.flush()
}

// selectContainers lists the containers that a filter wants; nil wants all.
func (s *runtimeService) selectContainers(filter *pb.ContainerFilter) []*sandbox.Container {
	containers := s.runtime.Containers()
	if id := filter.GetId(); id != "" {
		id = s.fullContainerID(id)
		containers = only(containers, func(c *sandbox.Container) bool { return c.ID == id })
	}
	if id := filter.GetPodSandboxId(); id != "" {
		id = s.fullPodID(id)
		containers = only(containers, func(c *sandbox.Container) bool { return c.PodID == id })
	}
	return only(containers, func(c *sandbox.Container) bool {
		want := filter.GetState()
		return (want == nil || containerStateToProto(c.State()) == want.GetState()) &&
			selects(filter.GetLabelSelector(), c.Config.Labels)
	})
}

// fullContainerID completes a truncated ID.
func (s *runtimeService) fullContainerID(id string) string {
	if c, err := s.runtime.Container(id); err == nil {
		return c.ID
	}
	return id
}
