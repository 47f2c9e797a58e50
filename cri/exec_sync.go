package cri

import (
	"context"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxExecOutput is how many bytes of output an answer carries: the kubelet's client takes
// messages of 16 MiB, of which the rest is room for the encoding.
const maxExecOutput = 16<<20 - 1<<10

func (s *runtimeService) ExecSync(ctx context.Context, req *pb.ExecSyncRequest) (*pb.ExecSyncResponse, error) {
	var f fields
	f.need("container_id", req.GetContainerId())
	f.scan("request", req)
	if len(req.GetCmd()) == 0 {
		f.add("cmd", "empty")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	timeout, err := seconds(req.GetTimeout())
	if err != nil {
		return nil, err
	}
	r, err := s.runtime.ExecSync(ctx, req.GetContainerId(), req.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	stdout, stderr := capOutput(r.Stdout, r.Stderr)
	return &pb.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(r.ExitCode)}, nil
}

// capOutput cuts what is too much for one answer. Each stream may have half, and what the
// other leaves.
func capOutput(stdout, stderr []byte) ([]byte, []byte) {
	const half = maxExecOutput / 2
	if len(stdout)+len(stderr) <= maxExecOutput {
		return stdout, stderr
	}
	outMax := max(half, maxExecOutput-len(stderr))
	errMax := max(half, maxExecOutput-len(stdout))
	return stdout[:min(len(stdout), outMax)], stderr[:min(len(stderr), errMax)]
}
