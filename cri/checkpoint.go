package cri

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) CheckpointContainer(ctx context.Context, req *pb.CheckpointContainerRequest) (*pb.CheckpointContainerResponse, error) {
	if err := needID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	var f fields
	f.absolute("location", req.GetLocation())
	if req.GetTimeout() < 0 {
		f.add("timeout", "%d is negative", req.GetTimeout())
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	timeout := time.Duration(min(req.GetTimeout(), int64(24*time.Hour/time.Second))) * time.Second
	if err := s.runtime.CheckpointContainer(ctx, req.GetContainerId(), req.GetLocation(), timeout); err != nil {
		return nil, err
	}
	return &pb.CheckpointContainerResponse{}, nil
}

func (s *runtimeService) CheckpointPod(ctx context.Context, req *pb.CheckpointPodRequest) (*pb.CheckpointPodResponse, error) {
	if err := needID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	var f fields
	f.absolute("output_path", req.GetOutputPath())
	for _, key := range slices.Sorted(maps.Keys(req.GetOptions())) {
		f.add("options["+key+"]", "there is no such option")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if _, bounded := ctx.Deadline(); !bounded {
		return nil, fmt.Errorf("%w: the call has no deadline", sandbox.ErrInvalid) // CRI CheckpointPod: "must set"
	}
	if err := s.runtime.CheckpointPod(ctx, req.GetPodSandboxId(), req.GetOutputPath(), req.GetContainerIds()); err != nil {
		return nil, err
	}
	return &pb.CheckpointPodResponse{}, nil
}

func (s *runtimeService) RestorePod(ctx context.Context, req *pb.RestorePodRequest) (*pb.RestorePodResponse, error) {
	var f fields
	f.absolute("checkpoint_path", req.GetCheckpointPath())
	for _, key := range slices.Sorted(maps.Keys(req.GetOptions())) {
		f.add("options["+key+"]", "there is no such option")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if _, bounded := ctx.Deadline(); !bounded {
		return nil, fmt.Errorf("%w: the call has no deadline", sandbox.ErrInvalid) // CRI RestorePod: "must set"
	}
	pod, err := podFromProto(req.GetConfig(), req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	if err := s.checkHandler(pod); err != nil {
		return nil, err
	}
	containers, err := restoredFromProto(pod, req.GetContainerConfigs())
	if err != nil {
		return nil, err
	}
	id, restored, err := s.runtime.RestorePod(ctx, req.GetCheckpointPath(), pod, containers)
	if err != nil {
		return nil, err
	}
	resp := &pb.RestorePodResponse{PodSandboxId: id}
	for _, c := range restored {
		resp.RestoredContainers = append(resp.RestoredContainers, &pb.RestoredContainer{Name: c.Name, ContainerId: c.ID})
	}
	return resp, nil
}

// restoredFromProto converts the configurations of the containers of a pod that is not there yet.
func restoredFromProto(pod *workload.Pod, in []*pb.ContainerConfig) ([]*workload.Container, error) {
	var f fields
	if len(in) == 0 {
		f.add("container_configs", "empty")
	}
	var out []*workload.Container
	names := map[string]bool{}
	for i, config := range in {
		at := index("container_configs", i)
		c, err := containerFromProto(config)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		if names[c.Metadata.Name] {
			f.add(at+".metadata.name", "%q is there twice", c.Metadata.Name)
		}
		names[c.Metadata.Name] = true
		const security = ".linux.security_context"
		if c.Security.Privileged && !pod.Security.Privileged {
			f.add(at+security+".privileged", "the pod sandbox is not made for privileged containers")
		}
		if c.Security.Namespaces.Target != "" {
			f.add(at+security+".namespace_options.target_id", "a container of a pod that is not there yet has no target")
		}
		out = append(out, c)
	}
	return out, f.err()
}
