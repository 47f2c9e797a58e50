package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *runtimeService) Status(ctx context.Context, req *pb.StatusRequest) (*pb.StatusResponse, error) {
	resp := &pb.StatusResponse{
		Status:          &pb.RuntimeStatus{},
		RuntimeHandlers: handlersToProto(s.options.Handlers),
		Features: &pb.RuntimeFeatures{
			SupplementalGroupsPolicy:  s.options.Features.SupplementalGroupsPolicy,
			UserNamespacesHostNetwork: s.options.Features.UserNamespacesHostNetwork,
			MountOptions:              s.options.Features.MountOptions,
		},
	}
	for _, c := range s.runtime.Conditions(ctx) {
		resp.Status.Conditions = append(resp.Status.Conditions, &pb.RuntimeCondition{
			Type: c.Type, Status: c.Ready, Reason: c.Reason, Message: c.Message,
		})
	}
	if !req.GetVerbose() {
		return resp, nil
	}
	values := map[string]any{"golang": runtime.Version(), "version": s.options.Version}
	if s.options.Info != nil {
		for k, v := range s.options.Info() {
			values[k] = v
		}
	}
	var err error
	resp.Info, err = infoToProto(values)
	return resp, err
}

func handlersToProto(handlers []Handler) []*pb.RuntimeHandler {
	var out []*pb.RuntimeHandler
	for _, h := range handlers {
		out = append(out, &pb.RuntimeHandler{
			Name: h.Name,
			Features: &pb.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: h.RecursiveReadOnly,
				UserNamespaces:          h.UserNamespaces,
			},
		})
	}
	return out
}

// objectInfo is what a verbose answer says of one object: one value, named as with other runtimes, so that what
// reads ".info.pid" from crictl finds it.
func objectInfo(values map[string]any) (map[string]string, error) {
	return infoToProto(map[string]any{"info": values})
}

// infoToProto encodes what a verbose answer says more: "value should be in json format".
func infoToProto(values map[string]any) (map[string]string, error) {
	info := make(map[string]string, len(values))
	for k, v := range values {
		text, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", k, err)
		}
		info[k] = string(text)
	}
	return info, nil
}
