package cri

import (
	"context"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) ListPodSandbox(_ context.Context, req *pb.ListPodSandboxRequest) (*pb.ListPodSandboxResponse, error) {
	resp := &pb.ListPodSandboxResponse{}
	for _, p := range s.selectPods(req.GetFilter()) {
		resp.Items = append(resp.Items, podToProto(p))
	}
	return resp, nil
}

func (s *runtimeService) StreamPodSandboxes(req *pb.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[pb.StreamPodSandboxesResponse]) error {
	p := pager[*pb.PodSandbox]{send: func(page []*pb.PodSandbox) error {
		return stream.Send(&pb.StreamPodSandboxesResponse{PodSandboxes: page})
	}}
	for _, pod := range s.selectPods(req.GetFilter()) {
		if err := p.add(podToProto(pod)); err != nil {
			return err
		}
	}
	return p.flush()
}

// selectPods lists the pods that a filter wants; nil wants all.
func (s *runtimeService) selectPods(filter *pb.PodSandboxFilter) []*sandbox.Pod {
	pods := s.runtime.Pods()
	if id := filter.GetId(); id != "" {
		id = s.fullPodID(id)
		pods = only(pods, func(p *sandbox.Pod) bool { return p.ID == id })
	}
	return only(pods, func(p *sandbox.Pod) bool {
		want := filter.GetState()
		return (want == nil || podStateToProto(p.State()) == want.GetState()) &&
			selects(filter.GetLabelSelector(), p.Config.Labels)
	})
}

// fullPodID completes a truncated ID, as people type them; one that is not the beginning of
// exactly one ID is returned as it is, and matches nothing.
func (s *runtimeService) fullPodID(id string) string {
	if p, err := s.runtime.Pod(id); err == nil {
		return p.ID
	}
	return id
}

// only keeps what ok says; the slice is the caller's own.
func only[T any](in []T, ok func(T) bool) []T {
	out := in[:0:0]
	for _, v := range in {
		if ok(v) {
			out = append(out, v)
		}
	}
	return out
}

// selects says whether labels have all that a selector demands.
func selects(selector, labels map[string]string) bool {
	for k, want := range selector {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	return true
}
