package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// TestNativeSnapshotter: containers whose root is a copy live as others do, across a restart of the daemon too, and what they
// took is gone with them.
func TestNativeSnapshotter(t *testing.T) {
	t.Parallel()
	n := newNode(t, map[string]string{"snapshotter": quote("native"), "metrics_listen": quote(filepath.Join(t.TempDir(), "metrics.sock"))})
	name := n.pushImage(t, "e2e/native", ocispec.ImageConfig{Volumes: map[string]struct{}{"/data": {}}},
		registry.Files(map[string]string{"data/seed": "seed\n", "gone": "x", "kept": "k\n"}), registry.Files(map[string]string{".wh.gone": "", "more": "m\n"}))
	useImage := func(c *pb.ContainerConfig) { c.Image.Image = name }
	p := n.runPod(t)
	for range 2 { // the second sees nothing of the first
		got := p.output(t, "cat /kept /more /data/seed; ls /gone 2>/dev/null; ls / | grep -c mine; echo changed >/kept; touch /mine", useImage)
		if got != "k\nm\nseed\n0\n" {
			t.Errorf("a copy: %q; want the image", got)
		}
	}
	got := p.output(t, "cat /v/more; ls /v/gone 2>/dev/null; touch /v/x || echo denied", useImage,
		mount(&pb.Mount{ContainerPath: "/v", Image: &pb.ImageSpec{Image: name}, Readonly: true}))
	if got != "m\ndenied\n" {
		t.Errorf("an image as a volume: %q; want it, read-only", got)
	}
	resp, err := n.Status(ctx(t), &pb.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var how struct{ Name, Reason string }
	if err := json.Unmarshal([]byte(resp.Info["snapshotter"]), &how); err != nil || how.Name != "native" || how.Reason != "configured" {
		t.Errorf("Status: snapshotter %s, %v; want native, configured", resp.Info["snapshotter"], err)
	}
	if err := json.Unmarshal([]byte(resp.Info["layerFormat"]), &how); err != nil || how.Name != "directory" || how.Reason != "root file systems are copies" {
		t.Errorf("Status: layers %s, %v; want directories, because of the copies", resp.Info["layerFormat"], err)
	}
	if resp.RuntimeHandlers[0].Features.UserNamespaces {
		if got := n.runPod(t, ownUsers(pb.NamespaceMode_CONTAINER)).output(t, "stat -c %u:%g /kept; touch /x && stat -c %u /x", useImage); got != "0:0\n0\n" {
			t.Errorf("a copy in a user namespace: %q; want its root's files", got)
		}
	}
	c := p.create(t, sh("echo mine >/file; exec sleep 100000"), useImage).startIt(t)
	n.restart(t, syscall.SIGKILL)
	if got := c.exec(t, "cat /file /kept"); got != "mine\nk\n" {
		t.Errorf("after a restart: %q; want the files", got)
	}
	status, err := n.ContainerStatus(ctx(t), &pb.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil || !strings.Contains(status.Info["info"], `"snapshotter":"native"`) {
		t.Errorf("ContainerStatus: %v, %v; want native", status.GetInfo(), err)
	}
	text := n.shim(t, "metrics", "--endpoint", n.socket())
	for _, line := range []string{`cri_shim_containers{state="running"} 1`, `cri_shim_pods{state="ready"}`, `cri_shim_calls_total{op="Version",code="OK"}`} {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("metrics have no %s:\n%s", line, text)
		}
	}
	c.stopIt(t, 0)
	if _, err := n.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(n.path("root", "layers", c.id)); err == nil {
		t.Error("the copy is there after RemoveContainer")
	}
}

// TestLimitWithoutQuota: a limit that cannot be had is refused when the container is created, not ignored.
func TestLimitWithoutQuota(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	resp, err := n.Status(ctx(t), &pb.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(resp.Info["layers"], `"projectQuota":true`) {
		t.Skip("the temporary folder's file system has project quotas")
	}
	p := n.runPod(t, func(c *pb.PodSandboxConfig) {
		c.Annotations = map[string]string{"writable-layer.cri-shim.io/pod": "1GiB"}
	})
	_, err = n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig("main", sh("true")), SandboxConfig: p.config})
	if err == nil || !strings.Contains(err.Error(), "writable-layer.cri-shim.io/pod") || !strings.Contains(err.Error(), "no project quotas") {
		t.Errorf("CreateContainer = %v; want an error that names the annotation and what is missing", err)
	}
}
