package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/cri-shim/cri-shim/sandbox"
)

func (s *runtimeService) PortForward(_ context.Context, req *pb.PortForwardRequest) (*pb.PortForwardResponse, error) {
	var f fields
	f.need("pod_sandbox_id", req.GetPodSandboxId())
	for i, port := range req.GetPort() {
		if port < 1 || port > 65535 {
			f.add(fmt.Sprintf("port[%d]", i), "%d is not between 1 and 65535", port)
		}
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	p, err := s.runtime.Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("port forward: %w", err)
	}
	if p.State() != sandbox.PodReady {
		return nil, fmt.Errorf("port forward: pod sandbox %s: %w: it is %s", p.ID, sandbox.ErrState, p.State())
	}
	streams := s.options.Streams
	url, err := streams.offer(offer{op: "portforward", about: slog.String("pod", p.ID), serve: func(w http.ResponseWriter, r *http.Request) error {
		return streams.servePortForward(w, r, p.ID, req.GetPort())
	}})
	return &pb.PortForwardResponse{Url: url}, err
}

func (s *StreamServer) servePortForward(w http.ResponseWriter, r *http.Request, pod string, ports []int32) error {
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		return s.serveTunnel(w, r, func(w http.ResponseWriter, r *http.Request) error {
			return s.servePortForward(w, r, pod, ports)
		})
	}
	forward := &podForward{client: r.Context(), runtime: s.runtime, log: s.log}
	portforward.ServePortForward(w, r, forward, pod, "", &portforward.V4Options{Ports: ports}, s.idle, createTime, portforward.SupportedProtocols)
	return nil
}

// podForward forwards the connections of one client, each for itself.
type podForward struct {
	client  context.Context // ends with the client's connection; that of a forwarded one does not
	runtime Processes
	log     *slog.Logger
}

// forwardLinger is how long a client may still send after the pod's side of a connection has ended.
const forwardLinger = 10 * time.Second

// acknowledge sends the reply to the opening of a SPDY stream if that has not been done: the library does it side by side with
// PortForward, and a client would take an error that comes before it for one of the connection.
func acknowledge(stream io.ReadWriteCloser) error {
	s, ok := stream.(interface {
		SendReply(header http.Header, fin bool) error
		Refuse() error
	})
	if !ok {
		return nil
	}
	err := s.SendReply(http.Header{}, false)
	if err != nil {
		return errors.Join(err, s.Refuse()) // else closing it would wait for the reply
	}
	return nil
}

// PortForward implements portforward.PortForwarder for one connection.
func (f *podForward) PortForward(_ context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	if err := acknowledge(stream); err != nil {
		return err
	}
	conn, err := f.runtime.DialPod(f.client, pod, uint16(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	answered, sent := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(struct{ io.Writer }{stream}, conn)
		stream.Close() // the half that we write
		answered <- err
	}()
	go func() {
		_, err := io.Copy(conn, struct{ io.Reader }{stream})
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			half.CloseWrite() // the server may answer still
		}
		sent <- err
	}()
	select {
	case err = <-answered:
	case <-f.client.Done():
		return f.client.Err()
	}
	if err != nil {
		// Not the client's to know: clients of Kubernetes end all their connections for an error in one.
		f.log.Debug("forwarded connection broke", "pod", pod, "port", port, "err", err)
		return nil
	}
	select {
	case <-sent:
	case <-time.After(forwardLinger):
	case <-f.client.Done():
	}
	return nil
}
