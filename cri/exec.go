package cri

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) Exec(_ context.Context, req *pb.ExecRequest) (*pb.ExecResponse, error) {
	var f fields
	f.scan("request", req)
	f.remote(req.GetContainerId(), req)
	if len(req.GetCmd()) == 0 {
		f.add("cmd", "empty")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	id, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	streams, cmd := s.options.Streams, req.GetCmd()
	url, err := streams.offer(offer{op: "exec", about: slog.String("ctr", id), serve: func(w http.ResponseWriter, r *http.Request) error {
		return streams.serveRemote(w, r, &remoteCommand{
			options: remoteOptions(req),
			run: func(ctx context.Context, client sandbox.Streams) error {
				code, err := streams.runtime.Exec(ctx, id, cmd, client)
				if err == nil && code != 0 {
					return exitError(code)
				}
				return err
			},
		})
	}})
	return &pb.ExecResponse{Url: url}, err
}

// remoteRequest is what ExecRequest and AttachRequest have in common.
type remoteRequest interface {
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}

func remoteOptions(r remoteRequest) remotecommand.Options {
	return remotecommand.Options{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
}

// remote checks what the CRI demands of the streams (ExecRequest, AttachRequest).
func (f *fields) remote(container string, r remoteRequest) {
	f.need("container_id", container)
	if r.GetTty() && r.GetStderr() {
		f.add("stderr", "must be false with tty: a terminal has one output")
	}
	if !r.GetStdin() && !r.GetStdout() && !r.GetStderr() {
		f.add("stdin", "at least one of stdin, stdout and stderr must be true")
	}
}

// running resolves the ID of a container that runs.
func (s *runtimeService) running(id string) (string, error) {
	c, err := s.runtime.Container(id)
	if err != nil {
		return "", err
	}
	if c.State() != sandbox.ContainerRunning {
		return "", fmt.Errorf("container %s: %w: the container is %s", c.ID, sandbox.ErrState, c.State())
	}
	return c.ID, nil
}
