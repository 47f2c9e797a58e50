package cri

import (
	"context"
	"io"
	"log/slog"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultMaxRequest is what the kubelet's client takes as an answer.
const defaultMaxRequest = 16 << 20

// Handler is a RuntimeClass handler; the built-in one has the name "".
type Handler struct {
	Name              string
	RecursiveReadOnly bool
	UserNamespaces    bool
}

// Features are those of the node (CRI RuntimeFeatures), whatever the handler.
type Features struct {
	SupplementalGroupsPolicy  bool
	UserNamespacesHostNetwork bool
	MountOptions              bool
}

// Options are what the services are made of. All but Archives, Devices, Explain, Streams, Info and those with a default
// are needed.
type Options struct {
	Runtime  Runtime
	Images   Images
	Archives Archives // nil: image import and export are unimplemented
	Explain  Explainer
	Streams  *StreamServer // nil: Exec, Attach and PortForward are unavailable
	Handlers []Handler
	Features Features
	// WritableLayers tells what the containers' writable layers take; nil: it is not told.
	WritableLayers func(context.Context) ([]FilesystemUsage, error)
	// ImageAdmin does what administrators ask of the image store; nil: those calls are unimplemented.
	ImageAdmin ImageAdmin
	// Devices tells what running containers have; nil: the call is unimplemented.
	Devices func() ([]DeviceUse, error)
	// Metrics writes those of the daemon; nil: the call is unimplemented.
	Metrics func(io.Writer) error
	// Observe, if set, is told of each call.
	Observe Observer
	// CgroupDriver is who makes the cgroups of pods: "cgroupfs", the default, or "systemd".
	CgroupDriver string
	// MaxRequest is the largest request taken, in bytes; 0 is 16 MiB.
	MaxRequest int
	Name       string // of the runtime, as told to clients
	Version    string // semantic version
	// Info is told to those who ask Status to be verbose: a name to a value for JSON.
	Info func() map[string]any
	// Ending, if set, is closed when the daemon is told to end: streams that would go on for ever end with it.
	Ending <-chan struct{}
	Log    *slog.Logger
}

// NewServer returns a gRPC server with the RuntimeService, the ImageService and the
// administration service on it.
func NewServer(o Options) *grpc.Server {
	if o.MaxRequest == 0 {
		o.MaxRequest = defaultMaxRequest
	}
	s := grpc.NewServer(
		grpc.ChainUnaryInterceptor(unaryInterceptor(o.Log, o.Observe)),
		grpc.ChainStreamInterceptor(streamInterceptor(o.Log, o.Observe)),
		grpc.MaxRecvMsgSize(o.MaxRequest),
		grpc.MaxSendMsgSize(math.MaxInt32),
		// A connection holds these for its life; clients on a node send small messages.
		grpc.ReadBufferSize(8<<10),
		grpc.WriteBufferSize(8<<10),
		grpc.SharedWriteBuffer(true),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	pb.RegisterRuntimeServiceServer(s, newRuntimeService(o))
	pb.RegisterImageServiceServer(s, &imageService{images: o.Images, writable: o.WritableLayers, handlers: handlerSet(o.Handlers)})
	registerAdmin(s, &adminService{runtime: o.Runtime, archives: o.Archives, explainer: o.Explain, images: o.ImageAdmin, devices: o.Devices, metrics: o.Metrics})
	return s
}

// runtimeService implements the RuntimeService. What it does not define is answered
// with codes.Unimplemented and the method's name.
type runtimeService struct {
	pb.UnimplementedRuntimeServiceServer
	runtime  Runtime
	options  Options
	handlers map[string]bool
	now      func() time.Time
}

func newRuntimeService(o Options) *runtimeService {
	return &runtimeService{runtime: o.Runtime, options: o, handlers: handlerSet(o.Handlers), now: time.Now}
}

// imageService implements the ImageService.
type imageService struct {
	pb.UnimplementedImageServiceServer
	images   Images
	writable func(context.Context) ([]FilesystemUsage, error)
	handlers map[string]bool
}

func handlerSet(handlers []Handler) map[string]bool {
	known := map[string]bool{"": true}
	for _, h := range handlers {
		known[h.Name] = true
	}
	return known
}

// Stop stops a server: no new calls, and the running ones end by themselves for as long
// as ctx lives, then they are cancelled.
func Stop(ctx context.Context, s *grpc.Server) {
	done := make(chan struct{})
	go func() {
		s.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.Stop()
		<-done
	}
}
