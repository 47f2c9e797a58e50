package cri

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/sandbox"
)

// UpdateRuntimeConfig hears of the node's pod networks, one for each IP family. The CNI configuration says which
// addresses pods get; this is recorded for who writes that.
func (s *runtimeService) UpdateRuntimeConfig(_ context.Context, req *pb.UpdateRuntimeConfigRequest) (*pb.UpdateRuntimeConfigResponse, error) {
	text := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if text == "" { // nothing to change
		return &pb.UpdateRuntimeConfigResponse{}, nil
	}
	var cidrs []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		c, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%w: runtime_config.network_config.pod_cidr: %w", sandbox.ErrInvalid, err)
		}
		cidrs = append(cidrs, c)
	}
	if err := s.runtime.SetPodCIDRs(cidrs); err != nil {
		return nil, fmt.Errorf("update runtime config: %w", err)
	}
	return &pb.UpdateRuntimeConfigResponse{}, nil
}
