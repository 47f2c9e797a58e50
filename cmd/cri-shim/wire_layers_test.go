package main

import (
	"errors"
	"log/slog"
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
	type node struct {
		size   config.Size
		inodes int64
	}
	podInodes, webInodes := layerInodesAnnotation+"pod", layerInodesAnnotation+"container.web"
	for _, tt := range []struct {
		name     string
		node     node
		quota    bool
		pod, ctr map[string]string
		want     image.Limit
		err      string
	}{
		{name: "no limit", quota: true},
		{name: "the node's", node: node{config.GiB, 1000}, quota: true, want: image.Limit{Bytes: 1 << 30, Inodes: 1000}},
		{name: "the pod's", node: node{size: config.GiB}, quota: true, pod: map[string]string{layerSizeAnnotation + "pod": "64MiB"}, want: image.Limit{Bytes: 64 << 20}},
		{name: "one of the pod's", quota: true, pod: map[string]string{layerSizeAnnotation + "pod": "64MiB", layerSizeAnnotation + "container.web": "1MiB"}, want: image.Limit{Bytes: 1 << 20}},
		{name: "another container's", quota: true, pod: map[string]string{layerSizeAnnotation + "container.db": "1MiB", layerInodesAnnotation + "container.db": "100"}},
		{name: "containerd's", quota: true, pod: map[string]string{layerSizeAnnotation + "pod": "64MiB"}, ctr: map[string]string{containerdSizeAnnotation: "4096"}, want: image.Limit{Bytes: 4096}},
		{name: "more than the node's", node: node{size: config.MiB}, quota: true, pod: map[string]string{layerSizeAnnotation + "pod": "2MiB"}, err: `writable-layer.cri-shim.io/pod`},
		{name: "nothing", quota: true, pod: map[string]string{layerSizeAnnotation + "pod": "0"}, err: "leaves no room"},
		{name: "no size", quota: true, ctr: map[string]string{containerdSizeAnnotation: "big"}, err: `"big" is no size`},
		{name: "without quotas", pod: map[string]string{layerSizeAnnotation + "pod": "1MiB"}, err: "it is tmpfs"},

		{name: "the pod's inodes", node: node{config.GiB, 1000}, quota: true, pod: map[string]string{podInodes: "1000"}, want: image.Limit{Bytes: 1 << 30, Inodes: 1000}},
		{name: "inodes of one", quota: true, pod: map[string]string{podInodes: "1000", webInodes: "64"}, want: image.Limit{Inodes: 64}},
		{name: "more inodes than the node's", node: node{inodes: 1000}, quota: true, pod: map[string]string{webInodes: "1001"}, err: `more than the node's writable_layer_inodes, 1000`},
		{name: "too few inodes", quota: true, pod: map[string]string{podInodes: "63"}, err: "at least 64"},
		{name: "negative inodes", quota: true, pod: map[string]string{podInodes: "-1"}, err: "at least 64"},
		{name: "no inodes", quota: true, pod: map[string]string{podInodes: "1k"}, err: `"1k" is no number`},
		{name: "inodes on another's", quota: true, ctr: map[string]string{podInodes: "100"}},
		{name: "inodes without quotas", pod: map[string]string{podInodes: "100"}, err: "it is tmpfs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &podLayers{size: tt.node.size, inodes: tt.node.inodes, why: none}
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
				t.Errorf("limitOf = %+v, %v; want %+v", got, err, tt.want)
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

// TestLayerLimitsNeedQuotas: a node without quotas does not start as if it had limits.
func TestLayerLimitsNeedQuotas(t *testing.T) {
	root := t.TempDir()
	if q, err := image.OpenQuota(filepath.Join(root, "layers")); err == nil {
		q.Close()
		t.Skip("the file system of $TMPDIR has project quotas")
	}
	for key, set := range map[string]func(*config.Config){
		"":                      func(*config.Config) {},
		"writable_layer_size":   func(c *config.Config) { c.WritableLayerSize = config.GiB },
		"writable_layer_inodes": func(c *config.Config) { c.WritableLayerInodes = 1000 },
	} {
		cfg := config.Default()
		cfg.Root = root
		set(&cfg)
		l, err := newPodLayers(&cfg, false, slog.New(slog.DiscardHandler))
		if key == "" {
			if err != nil || l.info()["projectQuota"] != false {
				t.Errorf("newPodLayers without limits = %+v, %v; want it without quotas", l, err)
			}
			continue
		}
		if err == nil || !strings.HasPrefix(err.Error(), key+": no project quotas") {
			t.Errorf("newPodLayers with %s = %v; want an error that names it and the reason", key, err)
		}
	}
}
