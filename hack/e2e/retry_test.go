package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// slowNetwork makes a node where CNI ADD of pods named slow... waits for as long as a file is there.
func slowNetwork(t *testing.T) (n *node, file string) {
	t.Helper()
	n = newNode(t, nil)
	file = n.path("wait")
	bridge := testtools.CNIPlugins(t) + "/bridge"
	script := fmt.Sprintf("#!/bin/sh\ncase $CNI_COMMAND:$CNI_ARGS in ADD:*K8S_POD_NAME=slow*)\n  while [ -e %s ]; do sleep 0.02; done\nesac\nexec %s\n", file, bridge)
	if err := os.Mkdir(n.path("bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.path("bin", "slow"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := n.path("net.d", "10-e2e.conflist")
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte(strings.Replace(string(text), `"bridge",`, `"slow",`, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	n.config["cni_bin_dirs"] = "[" + quote(n.path("bin")) + ", " + quote(testtools.CNIPlugins(t)) + "]"
	n.restart(t, stopSignal)
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return n, file
}

// TestRetryJoins: the kubelet gives up on a slow RunPodSandbox and asks again; it gets the pod that was begun. The
// others do not wait meanwhile.
func TestRetryJoins(t *testing.T) {
	t.Parallel()
	n, file := slowNetwork(t)
	config := n.podConfig(func(c *pb.PodSandboxConfig) { c.Metadata.Name = "slow" })
	ask := func(patience time.Duration) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		resp, err := n.RunPodSandbox(ctx, &pb.RunPodSandboxRequest{Config: config})
		return resp.GetPodSandboxId(), err
	}
	for range 3 {
		if _, err := ask(300 * time.Millisecond); status.Code(err) != codes.DeadlineExceeded {
			t.Fatalf("RunPodSandbox() with a slow network = %v; want DeadlineExceeded", err)
		}
	}
	begin := time.Now()
	if got := n.runPod(t).output(t, "echo works"); got != "works\n" {
		t.Errorf("another pod says %q; want works", got)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("another pod took %s beside a slow one", took)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	id, err := ask(callTimeout)
	if err != nil {
		t.Fatal(err)
	}
	n.remember(id, config)
	list, err := n.ListPodSandbox(ctx(t), &pb.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		if p.Metadata.Name == "slow" && p.Id != id {
			t.Errorf("a retry made a second pod: %v beside %s", p, id)
		}
	}
	if addresses := entries(n.path("ipam", n.name)); strings.Count(strings.Join(addresses, " "), "10.77.") > 3 { // 2 pods, last_reserved_ip
		t.Errorf("addresses %v are taken; want those of two pods", addresses)
	}
}

// TestKillWhileWaiting: a daemon that dies in the middle of a CNI ADD leaves nothing that its successor does not
// put right.
func TestKillWhileWaiting(t *testing.T) {
	t.Parallel()
	n, file := slowNetwork(t)
	config := n.podConfig(func(c *pb.PodSandboxConfig) { c.Metadata.Name = "slow" })
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := n.RunPodSandbox(short, &pb.RunPodSandboxRequest{Config: config}); status.Code(err) != codes.DeadlineExceeded {
		t.Fatalf("RunPodSandbox() with a slow network = %v; want DeadlineExceeded", err)
	}
	n.restart(t, 9)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	list, err := n.ListPodSandbox(ctx(t), &pb.ListPodSandboxRequest{})
	if err != nil || len(list.Items) > 0 {
		t.Errorf("after a restart: %v, %v; want no pod that nobody was told of", list.GetItems(), err)
	}
	resp, err := n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	n.remember(resp.PodSandboxId, config)
}

// TestSameCallAtOnce: calls for the same pod at the same time make one.
func TestSameCallAtOnce(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	config := n.podConfig()
	type answer struct {
		id  string
		err error
	}
	answers := make(chan answer)
	for range 8 {
		go func() {
			resp, err := n.RunPodSandbox(t.Context(), &pb.RunPodSandboxRequest{Config: config})
			answers <- answer{resp.GetPodSandboxId(), err}
		}()
	}
	ids := map[string]bool{}
	for range 8 {
		a := <-answers
		if a.err != nil {
			t.Error(a.err)
			continue
		}
		ids[a.id] = true
	}
	for id := range ids {
		n.remember(id, config)
		if err := n.removePod(ctx(t), id); err != nil {
			t.Error(err)
		}
	}
	if len(ids) != 1 {
		t.Errorf("eight calls at once made %d pods; want one", len(ids))
	}
}

// TestPullAtOnce: pulls of one image at the same time download it once.
func TestPullAtOnce(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := smallImage(t, images.Server, "e2e/at-once", "1")
	errs := make(chan error)
	for range 8 {
		go func() {
			_, err := n.PullImage(t.Context(), &pb.PullImageRequest{Image: &pb.ImageSpec{Image: images.Host() + "/e2e/at-once:1"}})
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	downloads := 0
	for _, r := range images.Requests() {
		if r.Method == "GET" && strings.HasSuffix(r.Path, p.Layers[0].Digest.String()) {
			downloads++
		}
	}
	if downloads != 1 {
		t.Errorf("the layer was downloaded %d times; want once", downloads)
	}
}

// TestRetryJoinsContainer: the same for a container with a volume whose storage is slow, when it is made and when it is
// started.
func TestRetryJoinsContainer(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	volume := slowVolume(t)
	config := p.containerConfig("slow", sh("ls /slow && echo works"), mount(&pb.Mount{HostPath: volume.dir, ContainerPath: "/slow"}))
	var id string
	create := func(ctx context.Context) error {
		resp, err := n.CreateContainer(ctx, &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if err == nil {
			id = resp.ContainerId
		}
		return err
	}
	start := func(ctx context.Context) error {
		_, err := n.StartContainer(ctx, &pb.StartContainerRequest{ContainerId: id})
		return err
	}
	for _, call := range []struct {
		name string
		do   func(context.Context) error
	}{{"CreateContainer", create}, {"StartContainer", start}} {
		volume.hold()
		for range 3 {
			short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			err := call.do(short)
			cancel()
			if status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%s() with a slow volume = %v; want DeadlineExceeded", call.name, err)
			}
		}
		// Nobody else waits.
		if got := p.output(t, "echo works"); got != "works\n" {
			t.Errorf("another container says %q; want works", got)
		}
		joined := make(chan error, 1)
		go func() { joined <- call.do(ctx(t)) }()
		time.Sleep(50 * time.Millisecond) // so that it joins; should it come late, it gets the result
		volume.release()
		if err := <-joined; err != nil {
			t.Fatalf("%s() again = %v; want the result of the call that was begun", call.name, err)
		}
	}
	c := &container{pod: p, id: id, logPath: p.config.LogDirectory + "/slow.log"}
	c.wait(t)
	if got := c.log(t, "stdout"); got != "works\n" {
		t.Errorf("the container says %q; want works", got)
	}
	list, err := n.ListContainers(ctx(t), &pb.ListContainersRequest{Filter: &pb.ContainerFilter{PodSandboxId: p.id}})
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range list.Containers {
		if other.Metadata.Name == "slow" && other.Id != id {
			t.Errorf("a retry made a second container: %v beside %s", other, id)
		}
	}
}

// TestGivenUpCalls: calls that end before their work does leave no descriptor, no process and nothing half done.
func TestGivenUpCalls(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	warm := n.runPod(t).sleeping(t)
	open := func() int { return len(entries(fmt.Sprintf("/proc/%d/fd", n.daemon.Process.Pid))) }
	before := open()
	for patience := time.Microsecond; patience < 200*time.Millisecond; patience *= 2 {
		config := n.podConfig()
		n.remember("given up "+config.Metadata.Name+strings.Repeat(" ", 64), config)
		brief := func(call func(context.Context) error) error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err := call(ctx)
			if code := status.Code(err); code != codes.OK && code != codes.DeadlineExceeded && code != codes.Canceled {
				t.Errorf("after %s: %v; want DeadlineExceeded", patience, err)
			}
			return err
		}
		var sandbox, id string
		run := func(ctx context.Context) error {
			resp, err := n.RunPodSandbox(ctx, &pb.RunPodSandboxRequest{Config: config})
			sandbox = resp.GetPodSandboxId()
			return err
		}
		create := func(ctx context.Context) error {
			resp, err := n.CreateContainer(ctx, &pb.CreateContainerRequest{
				PodSandboxId: sandbox, Config: (&pod{node: n, config: config}).containerConfig("c", []string{"/bin/sleep", "1000029"}), SandboxConfig: config})
			id = resp.GetContainerId()
			return err
		}
		for _, call := range []func(context.Context) error{
			run, create,
			func(ctx context.Context) error {
				_, err := n.StartContainer(ctx, &pb.StartContainerRequest{ContainerId: id})
				if err != nil && strings.Contains(err.Error(), "the container is running") {
					return nil // the call before came through as its client gave up
				}
				return err
			},
			func(ctx context.Context) error {
				_, err := n.ExecSync(ctx, &pb.ExecSyncRequest{ContainerId: id, Cmd: sh("exit 0")})
				return err
			},
			func(ctx context.Context) error {
				_, err := n.ContainerStats(ctx, &pb.ContainerStatsRequest{ContainerId: id})
				return err
			},
			func(ctx context.Context) error {
				_, err := n.StopContainer(ctx, &pb.StopContainerRequest{ContainerId: id})
				return err
			},
			func(ctx context.Context) error {
				_, err := n.StopPodSandbox(ctx, &pb.StopPodSandboxRequest{PodSandboxId: sandbox})
				return err
			},
			func(ctx context.Context) error {
				_, err := n.RemovePodSandbox(ctx, &pb.RemovePodSandboxRequest{PodSandboxId: sandbox})
				return err
			},
		} {
			if err := brief(call); err == nil {
				continue
			}
			if err := call(ctx(t)); err != nil {
				t.Fatalf("again, after %s were too short: %v", patience, err)
			}
		}
	}
	list, err := n.ListPodSandbox(ctx(t), &pb.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("ListPodSandbox() = %v, %v; want the one pod that stays", list, err)
	}
	if got := warm.exec(t, "echo works"); got != "works\n" {
		t.Errorf("the container that stays says %q; want works", got)
	}
	eventually(t, fmt.Sprintf("no more than %d descriptors in the daemon", before), func() bool { return open() <= before })
}
