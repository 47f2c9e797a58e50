package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *runtimeService) PodSandboxStatus(_ context.Context, req *pb.PodSandboxStatusRequest) (*pb.PodSandboxStatusResponse, error) {
	if err := needID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	// Taken first: what is told is at least as new as the time that is told with it.
	now := s.now()
	pod, err := s.runtime.Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &pb.PodSandboxStatusResponse{Status: podStatusToProto(pod), Timestamp: now.UnixNano()}
	for _, c := range s.runtime.Containers() {
		if c.PodID == pod.ID {
			resp.ContainersStatuses = append(resp.ContainersStatuses, containerStatusToProto(c))
		}
	}
	if !req.GetVerbose() {
		return resp, nil
	}
	values, err := s.runtime.PodVerbose(pod.ID)
	if err != nil {
		return nil, err
	}
	resp.Info, err = objectInfo(values)
	return resp, err
}
