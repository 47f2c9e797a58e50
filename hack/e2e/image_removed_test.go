package e2e

import (
	"strings"
	"syscall"
	"testing"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestImageRemovedBeforeStart: a created container starts, and takes execs, after a client has removed its image
// and the daemon was restarted.
func TestImageRemovedBeforeStart(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.runPod(t)
	// A value of the environment is bytes, not text; an exec has it from what was stored.
	created := p.create(t, sh("sleep 1000"), func(c *pb.ContainerConfig) {
		c.Envs = append(c.Envs, &pb.KeyValue{Key: "BYTES", Value: []byte("caf\xe9")})
	})
	image := &pb.ImageSpec{Image: busybox()}
	if _, err := n.RemoveImage(ctx(t), &pb.RemoveImageRequest{Image: image}); err != nil {
		t.Fatal(err)
	}
	n.restart(t, syscall.SIGTERM)
	if got, err := n.ImageStatus(ctx(t), &pb.ImageStatusRequest{Image: image}); err != nil || got.Image != nil {
		t.Errorf("ImageStatus of the removed image = %v, %v; want none", got, err)
	}
	created.startIt(t)
	n.restart(t, syscall.SIGKILL)
	if got := created.exec(t, "echo $BYTES"); strings.TrimSpace(got) != "caf\xe9" {
		t.Errorf("exec after another restart: BYTES is %q; want %q", got, "caf\xe9")
	}
	created.stopIt(t, 0)
}
