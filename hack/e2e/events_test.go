package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stalling is a connection whose client stops reading from the wire.
type stalling struct {
	net.Conn
	gate *sync.RWMutex
}

func (c stalling) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.gate.RLock()
	defer c.gate.RUnlock()
	return n, err
}

// TestSlowEventClient: a client that reads nothing more from its connection keeps nobody waiting, and is told how many
// events it has missed.
func TestSlowEventClient(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil) // all events are the test's
	var gate sync.RWMutex
	conn, err := grpc.NewClient("passthrough:///slow", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "unix", n.socket())
			return stalling{c, &gate}, err
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	context, cancel := context.WithTimeout(t.Context(), 2*callTimeout)
	defer cancel()
	subscribe := func(c pb.RuntimeServiceClient) grpc.ServerStreamingClient[pb.ContainerEventResponse] {
		s, err := c.GetContainerEvents(context, &pb.GetEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Header(); err != nil { // from here on nothing is missed
			t.Fatal(err)
		}
		return s
	}
	slow, quick := subscribe(pb.NewRuntimeServiceClient(conn)), subscribe(n.RuntimeServiceClient)
	counts := make(chan int, 1<<14)
	go func() {
		defer close(counts)
		for {
			if _, err := quick.Recv(); err != nil {
				return
			}
			counts <- 1
		}
	}()

	// Annotations make each event large, so that a few fill what the kernel and gRPC hold.
	p := n.runPod(t, hostNetwork, func(c *pb.PodSandboxConfig) { c.Annotations = map[string]string{"big": strings.Repeat("x", 64<<10)} })
	gate.Lock()
	const rounds = 560 // of two events: more than the queue of 1024
	var longest time.Duration
	for i := range rounds {
		config := p.containerConfig(fmt.Sprintf("c%d", i), sh("true"))
		begin := time.Now()
		resp, err := n.CreateContainer(context, &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.RemoveContainer(context, &pb.RemoveContainerRequest{ContainerId: resp.ContainerId}); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(begin))
	}
	t.Logf("the longest round took %s", longest)
	total := 0
	for total < 2*rounds+2 { // and the pod's own two
		select {
		case _, open := <-counts:
			if !open {
				t.Fatalf("the client that reads was cut off after %d events", total)
			}
			total++
		case <-context.Done():
			t.Fatalf("the client that reads got %d events; want %d", total, 2*rounds+2)
		}
	}
	gate.Unlock()
	got := 0
	for {
		_, err = slow.Recv()
		if err != nil {
			break
		}
		got++
	}
	want := fmt.Sprintf("events missed: %d after", total-got)
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), want) {
		t.Errorf("after %d events: %v; want ResourceExhausted with %q", got, err, want)
	}
	// It may come again.
	again := subscribe(pb.NewRuntimeServiceClient(conn))
	c := p.create(t, sh("true"))
	if e, err := again.Recv(); err != nil || e.ContainerId != c.id {
		t.Errorf("a new subscription got %v, %v; want the creation of %s", e.GetContainerId(), err, c.id)
	}
}
