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
