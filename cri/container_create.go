package cri

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) CreateContainer(ctx context.Context, req *pb.CreateContainerRequest) (*pb.CreateContainerResponse, error) {
	if err := needID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	cfg, err := containerFromProto(req.GetConfig())
	if err != nil {
		return nil, err
	}
	pod, err := s.runtime.Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := s.checkInPod(pod, cfg); err != nil {
		return nil, err
	}
	id, err := s.runtime.CreateContainer(ctx, pod.ID, cfg)
	if err != nil {
		return nil, volumeError(err)
	}
	return &pb.CreateContainerResponse{ContainerId: id}, nil
}

// volumeError has an image volume's failure begin with the word that the kubelet counts those by.
func volumeError(err error) error {
	if !errors.Is(err, sandbox.ErrImageVolume) {
		return err
	}
	return status.Errorf(codeOf(err), "%s: %v", crierrors.ErrImageVolumeMountFailed, err)
}

// checkInPod checks what a container may ask for in this pod.
func (s *runtimeService) checkInPod(pod *sandbox.Pod, cfg *workload.Container) error {
	var f fields
	const at = "config.linux.security_context"
	// "If a privileged container is to be executed within it, this MUST be true."
	if cfg.Security.Privileged && !pod.Config.Security.Privileged {
		f.add(at+".privileged", "the pod sandbox %s was not made for privileged containers", pod.ID)
	}
	if target := cfg.Security.Namespaces.Target; target != "" {
		c, err := s.runtime.Container(target)
		switch {
		case err != nil:
			return fmt.Errorf("%s.namespace_options.target_id: %w", at, err)
		case c.PodID != pod.ID:
			f.add(at+".namespace_options.target_id", "container %s belongs to the pod sandbox %s", c.ID, c.PodID)
		}
		cfg.Security.Namespaces.Target = c.ID
	}
	return f.err()
}
