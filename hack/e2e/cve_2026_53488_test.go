package e2e

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCVE_2026_53488: what an image calls its labels are not the container's labels or annotations, which plugins act upon.
func TestCVE_2026_53488(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	name := n.pushImage(t, "e2e/labels", ocispec.ImageConfig{Labels: map[string]string{
		"containerd.io/restart.logpath": "binary:///bin/sh?-c=evil", "io.kubernetes.container.name": "other",
	}})
	own := map[string]string{"mine": "1"}
	c := n.runPod(t).sleeping(t, func(c *pb.ContainerConfig) { c.Image.Image, c.Labels, c.Annotations = name, own, own })
	s := c.status(t)
	if diff := cmp.Diff(own, s.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(own, s.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
}
