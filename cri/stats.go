package cri

import (
	"context"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) ContainerStats(ctx context.Context, req *pb.ContainerStatsRequest) (*pb.ContainerStatsResponse, error) {
	if err := needID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.runtime.MeasureContainer(ctx, req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &pb.ContainerStatsResponse{Stats: containerStatsToProto(c)}, nil
}

func (s *runtimeService) ListContainerStats(ctx context.Context, req *pb.ListContainerStatsRequest) (*pb.ListContainerStatsResponse, error) {
	resp := &pb.ListContainerStatsResponse{}
	err := s.measureContainers(ctx, req.GetFilter(), func(c *pb.ContainerStats) error {
		resp.Stats = append(resp.Stats, c)
		return nil
	})
	return resp, err
}

func (s *runtimeService) StreamContainerStats(req *pb.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[pb.StreamContainerStatsResponse]) error {
	p := pager[*pb.ContainerStats]{send: func(page []*pb.ContainerStats) error {
		return stream.Send(&pb.StreamContainerStatsResponse{ContainerStats: page})
	}}
	if err := s.measureContainers(stream.Context(), req.GetFilter(), p.add); err != nil {
		return err
	}
	return p.flush()
}

func (s *runtimeService) measureContainers(ctx context.Context, filter *pb.ContainerStatsFilter, each func(*pb.ContainerStats) error) error {
	all := s.selectContainers(&pb.ContainerFilter{
		Id: filter.GetId(), PodSandboxId: filter.GetPodSandboxId(), LabelSelector: filter.GetLabelSelector(),
	})
	return s.runtime.MeasureContainers(ctx, all, func(c *sandbox.ContainerStats) error { return each(containerStatsToProto(c)) })
}

func (s *runtimeService) PodSandboxStats(ctx context.Context, req *pb.PodSandboxStatsRequest) (*pb.PodSandboxStatsResponse, error) {
	if err := needID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	p, err := s.runtime.MeasurePod(ctx, req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &pb.PodSandboxStatsResponse{Stats: podStatsToProto(p)}, nil
}

func (s *runtimeService) ListPodSandboxStats(ctx context.Context, req *pb.ListPodSandboxStatsRequest) (*pb.ListPodSandboxStatsResponse, error) {
	resp := &pb.ListPodSandboxStatsResponse{}
	err := s.measurePods(ctx, req.GetFilter(), func(p *pb.PodSandboxStats) error {
		resp.Stats = append(resp.Stats, p)
		return nil
	})
	return resp, err
}

func (s *runtimeService) StreamPodSandboxStats(req *pb.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[pb.StreamPodSandboxStatsResponse]) error {
	p := pager[*pb.PodSandboxStats]{send: func(page []*pb.PodSandboxStats) error {
		return stream.Send(&pb.StreamPodSandboxStatsResponse{PodSandboxStats: page})
	}}
	if err := s.measurePods(stream.Context(), req.GetFilter(), p.add); err != nil {
		return err
	}
	return p.flush()
}

// measurePods measures the ready pods that a filter wants: the others use nothing.
func (s *runtimeService) measurePods(ctx context.Context, filter *pb.PodSandboxStatsFilter, each func(*pb.PodSandboxStats) error) error {
	all := s.selectPods(&pb.PodSandboxFilter{
		Id: filter.GetId(), LabelSelector: filter.GetLabelSelector(),
		State: &pb.PodSandboxStateValue{State: pb.PodSandboxState_SANDBOX_READY},
	})
	return s.runtime.MeasurePods(ctx, all, false, func(p *sandbox.PodStats) error {
		if p.Err != nil {
			return nil // an entry without numbers would be taken for a pod that uses nothing
		}
		return each(podStatsToProto(p))
	})
}
