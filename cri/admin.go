package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/sandbox"
)

// The administration service answers what the CRI has no words for: images as archives,
// from where an image would come, and where the time of an operation went. Its messages are google.protobuf.BytesValue,
// holding JSON or a part of an archive; there is no schema to generate.
const (
	adminName         = "crishim.admin.v1.Admin"
	adminTimeline     = "/" + adminName + "/Timeline"
	adminMetrics      = "/" + adminName + "/Metrics"
	adminImageWhy     = "/" + adminName + "/ImageWhy"
	adminImportImages = "/" + adminName + "/ImportImages"
	adminExportImages = "/" + adminName + "/ExportImages"
	archiveChunk      = 256 << 10 // bytes of an archive in one message
)

// adminServer is what grpc checks a registered service against.
type adminServer interface {
	timeline(ctx context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error)
	devicesInUse(ctx context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error)
	imageWhy(ctx context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error)
	metricsText(ctx context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error)
	imageAdmin() ImageAdmin
	importImages(stream grpc.ServerStream) error
	exportImages(stream grpc.ServerStream) error
}

// adminDesc is what a .proto file would have generated.
var adminDesc = grpc.ServiceDesc{
	ServiceName: adminName,
	HandlerType: (*adminServer)(nil),
	Methods: append([]grpc.MethodDesc{
		adminMethod(adminTimeline, adminServer.timeline),
		adminMethod(adminMetrics, adminServer.metricsText),
		adminMethod(adminImageWhy, adminServer.imageWhy),
		adminMethod(adminDevices, adminServer.devicesInUse),
	}, imageMethods...),
	Streams: []grpc.StreamDesc{{
		StreamName:    "ImportImages",
		ClientStreams: true,
		Handler:       func(srv any, stream grpc.ServerStream) error { return srv.(adminServer).importImages(stream) },
	}, {
		StreamName:    "ExportImages",
		ServerStreams: true,
		Handler:       func(srv any, stream grpc.ServerStream) error { return srv.(adminServer).exportImages(stream) },
	}},
}

// adminMethod is a call of one message for one message.
func adminMethod(name string, call func(adminServer, context.Context, *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: path.Base(name),
		Handler: func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.BytesValue)
			if err := dec(in); err != nil {
				return nil, err
			}
			handler := func(ctx context.Context, req any) (any, error) {
				return call(srv.(adminServer), ctx, req.(*wrapperspb.BytesValue))
			}
			if interceptor == nil {
				return handler(ctx, in)
			}
			return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: name}, handler)
		},
	}
}

func registerAdmin(s *grpc.Server, a *adminService) { s.RegisterService(&adminDesc, a) }

type adminService struct {
	runtime   Runtime
	archives  Archives
	explainer Explainer
	images    ImageAdmin
	devices   func() ([]DeviceUse, error)
	metrics   func(io.Writer) error
}

func (a *adminService) metricsText(context.Context, *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
	if a.metrics == nil {
		return nil, fmt.Errorf("metrics: %w", errors.ErrUnsupported)
	}
	var b bytes.Buffer
	if err := a.metrics(&b); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return &wrapperspb.BytesValue{Value: b.Bytes()}, nil
}

// importImages reads an archive from the client's stream and answers with the names in it.
func (a *adminService) importImages(stream grpc.ServerStream) error {
	if a.archives == nil {
		return fmt.Errorf("import images: %w", errors.ErrUnsupported)
	}
	o, err := importOptions(stream.Context())
	if err != nil {
		return err
	}
	names, err := a.archives.Import(stream.Context(), &chunkReader{recv: stream.RecvMsg}, o)
	if err != nil {
		return fmt.Errorf("import images: %w", err)
	}
	return sendJSON(stream, names)
}

// importOptionsKey is the metadata that has ImportOptions: the stream's messages are the archive alone.
const importOptionsKey = "cri-shim-import-bin"

func importOptions(ctx context.Context) (o image.ImportOptions, err error) {
	for _, text := range metadata.ValueFromIncomingContext(ctx, importOptionsKey) {
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			return o, fmt.Errorf("%w: import options: %w", sandbox.ErrInvalid, err)
		}
	}
	return o, nil
}

// exportRequest is the message of ExportImages; a list of images alone is one without options.
type exportRequest struct {
	Images  []string            `json:"images"`
	Options image.ExportOptions `json:"options"`
}

// exportImages answers an exportRequest with an archive.
func (a *adminService) exportImages(stream grpc.ServerStream) error {
	if a.archives == nil {
		return fmt.Errorf("export images: %w", errors.ErrUnsupported)
	}
	in := new(wrapperspb.BytesValue)
	if err := stream.RecvMsg(in); err != nil {
		return err
	}
	var req exportRequest
	if json.Unmarshal(in.GetValue(), &req.Images) != nil && json.Unmarshal(in.GetValue(), &req) != nil || len(req.Images) == 0 {
		return fmt.Errorf("%w: images: want a JSON list of at least one name", sandbox.ErrInvalid)
	}
	w := &chunkWriter{send: stream.SendMsg}
	if err := a.archives.Export(stream.Context(), w, req.Images, req.Options); err != nil {
		return fmt.Errorf("export images: %w", err)
	}
	return w.flush()
}

func sendJSON(stream grpc.ServerStream, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return stream.SendMsg(&wrapperspb.BytesValue{Value: text})
}

// chunkReader reads what comes in messages.
type chunkReader struct {
	recv func(any) error
	rest []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		m := new(wrapperspb.BytesValue)
		if err := r.recv(m); err != nil {
			return 0, err // io.EOF when the other side is done
		}
		r.rest = m.GetValue()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// chunkWriter sends what is written in messages of archiveChunk bytes.
type chunkWriter struct {
	send func(any) error
	buf  []byte
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if w.buf == nil {
			w.buf = make([]byte, 0, archiveChunk)
		}
		n := min(len(p), archiveChunk-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
		written += n
		if len(w.buf) == archiveChunk {
			if err := w.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

// flush sends what is left. The message is encoded before SendMsg returns, so that the
// buffer can be used again.
func (w *chunkWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.send(&wrapperspb.BytesValue{Value: w.buf})
	w.buf = w.buf[:0]
	return err
}
