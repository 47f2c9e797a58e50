// Command bench measures container runtimes over their CRI sockets, several in one run: their rounds alternate, so
// that what else the machine does touches all alike.
//
//	bench [-n 30] [-pods 50] [-image IMAGE] NAME=SOCKET...
//
// It prints medians, and the 90th percentile in brackets. Without -image it makes one, of the machine's static
// busybox, in a registry of its own on 127.0.0.1. Everything it makes on a node is removed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/hack/bench/command"
	"github.com/cri-shim/cri-shim/hack/registry"
)

func main() { command.Main(run) }

// options are what the command line says.
type options struct {
	rounds, pods int
	image        string
	networks     []string
	idleNetwork  string
	parent       string // of the pods' cgroups
	targets      []*target
}

// target is one runtime.
type target struct {
	name, socket string
	conn         *grpc.ClientConn
	runtime      pb.RuntimeServiceClient
	image        string // as this runtime knows it
	results      results
}

func run(ctx context.Context) error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	if o.image == "" {
		server, err := serveImage()
		if err != nil {
			return err
		}
		defer server.Close()
		o.image = server.Host() + "/bench/busybox:1"
	}
	for _, t := range o.targets {
		if err := t.connect(ctx, o.image); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		defer t.conn.Close()
	}
	if err := measureTimes(ctx, o); err != nil {
		return err
	}
	if err := measureMemory(ctx, o); err != nil {
		return err
	}
	return print(os.Stdout, o)
}

func parse(args []string) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "n", 30, "rounds to measure")
	flags.IntVar(&o.pods, "pods", 50, "idle pods to measure the memory of; 0 for none")
	flags.StringVar(&o.image, "image", "", "image with /bin/sleep and /bin/true (default: one made on the spot)")
	networks := flags.String("network", "host,cni", "networks of the pods: host, cni or both")
	flags.StringVar(&o.idleNetwork, "idle-network", "host", "network of the idle pods: host or cni")
	flags.StringVar(&o.parent, "cgroup-parent", "", "cgroup of the pods (default: the runtime's)")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	for _, network := range append(strings.Split(*networks, ","), o.idleNetwork) {
		if network != "host" && network != "cni" {
			return nil, fmt.Errorf("-network, -idle-network: %q is neither host nor cni", network)
		}
	}
	o.networks = strings.Split(*networks, ",")
	if o.rounds < 1 || o.pods < 0 {
		return nil, errors.New("-n must be at least 1, -pods at least 0")
	}
	for _, arg := range flags.Args() {
		name, socket, ok := strings.Cut(arg, "=")
		if !ok || name == "" || socket == "" {
			return nil, fmt.Errorf("%q: want NAME=SOCKET", arg)
		}
		o.targets = append(o.targets, &target{name: name, socket: strings.TrimPrefix(socket, "unix://"), results: results{}})
	}
	if len(o.targets) == 0 {
		return nil, errors.New("name at least one runtime, as NAME=SOCKET")
	}
	return o, nil
}

func serveImage() (*registry.Server, error) {
	s, err := registry.New(registry.Options{})
	if err != nil {
		return nil, err
	}
	_, err = s.AddBusybox("bench/busybox", "1")
	if err == nil {
		_, err = s.Listen("127.0.0.1:0")
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// connect connects to a runtime and sees to it that it has the image.
func (t *target) connect(ctx context.Context, image string) error {
	var err error
	t.conn, err = grpc.NewClient("unix:"+t.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	t.runtime = pb.NewRuntimeServiceClient(t.conn)
	images := pb.NewImageServiceClient(t.conn)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	resp, err := images.PullImage(ctx, &pb.PullImageRequest{Image: &pb.ImageSpec{Image: image}})
	if err != nil {
		return err
	}
	t.image = resp.ImageRef
	return nil
}
