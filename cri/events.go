package cri

import (
	"fmt"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/sandbox"
)

// GetContainerEvents sends what happens from now on. A client that reads too slowly for what happens gets what it has
// not missed, then codes.ResourceExhausted with the number of events that it has: it must list and subscribe again.
func (s *runtimeService) GetContainerEvents(_ *pb.GetEventsRequest, stream grpc.ServerStreamingServer[pb.ContainerEventResponse]) error {
	sub := s.runtime.Subscribe()
	defer sub.Close()
	// Headers tell the client that nothing is missed from here on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	// A send to a client that does not read ends with the stream, which ends with this function.
	done := make(chan error, 1)
	go func() { done <- sendEvents(sub, stream) }()
	select {
	case err := <-done:
		return err
	case <-s.options.Ending:
		return fmt.Errorf("%w: the daemon is ending", sandbox.ErrUnavailable)
	}
}

func sendEvents(sub *sandbox.Subscription, stream grpc.ServerStreamingServer[pb.ContainerEventResponse]) error {
	for {
		e, err := sub.Next(stream.Context())
		if err != nil {
			return err
		}
		if err := stream.Send(eventToProto(e)); err != nil {
			return err
		}
	}
}

var eventKinds = map[sandbox.EventKind]pb.ContainerEventType{
	sandbox.EventCreated: pb.ContainerEventType_CONTAINER_CREATED_EVENT,
	sandbox.EventStarted: pb.ContainerEventType_CONTAINER_STARTED_EVENT,
	sandbox.EventStopped: pb.ContainerEventType_CONTAINER_STOPPED_EVENT,
	sandbox.EventDeleted: pb.ContainerEventType_CONTAINER_DELETED_EVENT,
}

func eventToProto(e *sandbox.Event) *pb.ContainerEventResponse {
	out := &pb.ContainerEventResponse{
		ContainerId: e.ID, ContainerEventType: eventKinds[e.Kind], CreatedAt: e.At.UnixNano(),
		PodSandboxStatus: podStatusToProto(e.Pod),
	}
	for _, c := range e.Containers {
		out.ContainersStatuses = append(out.ContainersStatuses, containerStatusToProto(c))
	}
	return out
}
