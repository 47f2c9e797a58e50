package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) ListPodSandbox(_ context.Context, req *pb.ListPodSandboxRequest) (*pb.ListPodSandboxResponse, error) {
	filter := req.GetFilter()
	pods := s.runtime.Pods()
	if id := filter.GetId(); id != "" {
		id = s.fullPodID(id)
		pods = only(pods, func(p *sandbox.Pod) bool { return p.ID == id })
	}
	resp := &pb.ListPodSandboxResponse{Items: make([]*pb.PodSandbox, 0, len(pods))}
	for _, p := range pods {
		if want := filter.GetState(); want != nil && podStateToProto(p.State()) != want.GetState() {
			continue
		}
		if selects(filter.GetLabelSelector(), p.Config.Labels) {
			resp.Items = append(resp.Items, podToProto(p))
		}
	}
	return resp, nil
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
