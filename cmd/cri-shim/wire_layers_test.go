package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// TestLayerLimit: the container's annotation counts before the pod's, and nobody gets more than the node gives.
func TestLayerLimit(t *testing.T) {
	none := &sys.NoProjectQuotaError{Path: "/var", Reason: "it is tmpfs"}
	for _, tt := range []struct {
		name     string
		node     config.Size
		quota    bool
		pod, ctr map[string]string
		want     config.Size
		err      string
	}{
		{name: "no limit", quota: true},
		{name: "the node's", node: config.GiB, quota: true, want: config.GiB},
		{name: "the pod's", node: config.GiB, quota: true, pod: map[string]string{layerSizeAnnotation + "pod": "64MiB"}, want: 64 * config.MiB},
		{name: "one of the pod's", quota: true, pod: map[string]string{layerSizeAnnotation + "pod": "64MiB", layerSizeAnnotation + "container.web": "1MiB"}, want: config.MiB},
		{name: "another container's", quota: true, pod: map[string]string{layerSizeAnnotation + "container.db": "1MiB"}},
		{name: "containerd's", quota: true, pod: map[string]string{layerSizeAnnotation + "pod": "64MiB"}, ctr: map[string]string{containerdSizeAnnotation: "4096"}, want: 4096},
		{name: "more than the node's", node: config.MiB, quota: true, pod: map[string]string{layerSizeAnnotation + "pod": "2MiB"}, err: `writable-layer.cri-shim.io/pod`},
		{name: "nothing", quota: true, pod: map[string]string{layerSizeAnnotation + "pod": "0"}, err: "leaves no room"},
		{name: "no size", quota: true, ctr: map[string]string{containerdSizeAnnotation: "big"}, err: `"big" is no size`},
		{name: "without quotas", pod: map[string]string{layerSizeAnnotation + "pod": "1MiB"}, err: "it is tmpfs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &podLayers{limit: tt.node, why: none}
			if tt.quota {
				l.quota, l.why = &image.Quota{}, nil
			}
			p := &sandbox.Pod{Config: workload.Pod{Annotations: tt.pod}}
			c := &sandbox.Container{Config: workload.Container{Annotations: tt.ctr, Metadata: workload.ContainerMetadata{Name: "web"}}}
			got, err := l.limitOf(p, c)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || tt.quota != errors.Is(err, sandbox.ErrInvalid) || !tt.quota != errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("limitOf = %v; want an error with %q, unsupported only without quotas", err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("limitOf = %d, %v; want %d", got, err, tt.want)
			}
		})
	}
}

// TestCheckpointOfACopy: an archive without what the container changed would restore another container.
func TestCheckpointOfACopy(t *testing.T) {
	layer := t.TempDir()
	if err := os.Mkdir(filepath.Join(layer, "root"), 0o755); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "c.tar")
	err := podCheckpoints{}.Save(t.Context(), &sandbox.Pod{}, &sandbox.Container{}, layer, t.TempDir(), archive)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "is a copy") {
		t.Errorf("Save = %v; want it refused since the root is a copy", err)
	}
}
