package cri

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// slowCall is how long a call that only reads may take before it is worth a line.
const slowCall = time.Second

// Observer is told of each call that has ended: its name, its code, and how long it took. A stream takes as long as its
// client likes.
type Observer func(op, code string, stream bool, took time.Duration)

func (o Observer) call(method string, stream bool, start time.Time, err error) {
	if o != nil {
		o(path.Base(method), status.Code(err).String(), stream, time.Since(start))
	}
}

// unaryInterceptor gives errors their codes, logs and counts each call once and keeps a panic from
// ending the daemon.
func unaryInterceptor(log *slog.Logger, seen Observer) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
		start := time.Now()
		defer func() {
			if p := recover(); p != nil {
				resp, err = nil, panicked(ctx, log, info.FullMethod, p)
			}
			err = statusOf(info.FullMethod, err)
			seen.call(info.FullMethod, false, start, err)
			logCall(ctx, log, info.FullMethod, time.Since(start), req, resp, err)
		}()
		return next(ctx, req)
	}
}

// streamInterceptor does the same for streams.
func streamInterceptor(log *slog.Logger, seen Observer) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
		start := time.Now()
		defer func() {
			if p := recover(); p != nil {
				err = panicked(stream.Context(), log, info.FullMethod, p)
			}
			err = statusOf(info.FullMethod, err)
			seen.call(info.FullMethod, true, start, err)
			logCall(stream.Context(), log, info.FullMethod, time.Since(start), nil, nil, err)
		}()
		return next(srv, stream)
	}
}

// panicked logs a panic with its stack and returns what the client is told.
func panicked(ctx context.Context, log *slog.Logger, method string, p any) error {
	op := path.Base(method)
	log.LogAttrs(ctx, slog.LevelError, "panic in a call",
		slog.String("op", op), slog.String("err", fmt.Sprint(p)), slog.String("stack", string(debug.Stack())))
	return status.Errorf(codes.Internal, "%s: internal error: %v", op, p)
}

// logCall writes one line for a call.
func logCall(ctx context.Context, log *slog.Logger, method string, took time.Duration, req, resp any, err error) {
	op := path.Base(method)
	level := callLevel(op, took, err)
	if !log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 6)
	attrs = append(attrs, slog.String("op", op))
	attrs = append(attrs, subject(req, resp)...)
	attrs = append(attrs, slog.Duration("took", took.Round(time.Microsecond)))
	if err != nil {
		s := status.Convert(err)
		attrs = append(attrs, slog.String("code", s.Code().String()), slog.String("err", s.Message()))
	}
	log.LogAttrs(ctx, level, "call", attrs...)
}

// callLevel is debug for what clients poll, info for what changes something, and warn for
// what went wrong. What a client merely asked for in vain is not worth a warning.
func callLevel(op string, took time.Duration, err error) slog.Level {
	switch status.Code(err) {
	case codes.OK:
	case codes.NotFound, codes.Unimplemented, codes.Canceled:
		return slog.LevelDebug
	default:
		return slog.LevelWarn
	}
	if took < slowCall && readsOnly(op) {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// readsOnly says whether a call changes nothing.
func readsOnly(op string) bool {
	switch op {
	case "Version", "Status", "RuntimeConfig", "ExecSync", "ImageFsInfo", "Timeline", "Metrics":
		return true
	}
	return strings.HasPrefix(op, "List") || strings.HasPrefix(op, "Stream") ||
		strings.HasSuffix(op, "Status") || strings.HasSuffix(op, "Stats")
}

// subject is what a call is about, from the request and, for what it made, the answer.
func subject(req, resp any) []slog.Attr {
	var attrs []slog.Attr
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, shorten(value, maxComplaint)))
		}
	}
	switch m := req.(type) {
	case *pb.RunPodSandboxRequest:
		meta := m.GetConfig().GetMetadata()
		add("name", meta.GetNamespace()+"/"+meta.GetName())
	case *pb.CreateContainerRequest:
		add("name", m.GetConfig().GetMetadata().GetName())
	}
	for _, m := range []any{req, resp} {
		if m, ok := m.(interface{ GetPodSandboxId() string }); ok {
			add("pod", m.GetPodSandboxId())
		}
		if m, ok := m.(interface{ GetContainerId() string }); ok {
			add("ctr", m.GetContainerId())
		}
	}
	if m, ok := req.(interface{ GetImage() *pb.ImageSpec }); ok {
		add("image", m.GetImage().GetImage())
	}
	return attrs
}
