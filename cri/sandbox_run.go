package cri

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) RunPodSandbox(ctx context.Context, req *pb.RunPodSandboxRequest) (*pb.RunPodSandboxResponse, error) {
	pod, err := podFromProto(req.GetConfig(), req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	if err := s.checkHandler(pod); err != nil {
		return nil, err
	}
	id, err := s.runtime.RunPod(ctx, pod)
	if err != nil {
		return nil, err
	}
	return &pb.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// checkHandler refuses an unknown handler, and a user namespace that the handler would
// not give the pod: running without it would be less isolation than was asked for.
func (s *runtimeService) checkHandler(p *workload.Pod) error {
	if !s.handlers[p.Handler] {
		return fmt.Errorf("%w: runtime_handler: %q is not configured; there is %s", sandbox.ErrInvalid, p.Handler, s.handlerNames())
	}
	if u := p.Security.Namespaces.User; u == nil || u.Mode != workload.ModePod {
		return nil
	}
	for _, h := range s.options.Handlers {
		if h.Name == p.Handler && h.UserNamespaces {
			return nil
		}
	}
	return fmt.Errorf("%w: config.linux.security_context.namespace_options.userns_options: the runtime handler %q has no user namespaces",
		sandbox.ErrInvalid, p.Handler)
}

// handlerNames are the handlers that a client may name.
func (s *runtimeService) handlerNames() string {
	names := make([]string, 0, len(s.handlers))
	for _, name := range slices.Sorted(maps.Keys(s.handlers)) {
		names = append(names, strconv.Quote(name))
	}
	return strings.Join(names, ", ")
}
