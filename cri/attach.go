package cri

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) Attach(_ context.Context, req *pb.AttachRequest) (*pb.AttachResponse, error) {
	var f fields
	f.remote(req.GetContainerId(), req)
	if err := f.err(); err != nil {
		return nil, err
	}
	id, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	streams := s.options.Streams
	url, err := streams.offer(offer{op: "attach", about: slog.String("ctr", id), serve: func(w http.ResponseWriter, r *http.Request) error {
		return streams.serveRemote(w, r, &remoteCommand{
			options: remoteOptions(req), attach: true,
			run: func(ctx context.Context, client sandbox.Streams) error {
				return streams.runtime.Attach(ctx, id, client)
			},
		})
	}})
	return &pb.AttachResponse{Url: url}, err
}
