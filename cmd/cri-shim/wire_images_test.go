package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/sandbox"
)

// TestImageRemovedUnderContainer: a container that was created can be started after a client has removed its
// image and the daemon was restarted; with the container the image goes.
func TestImageRemovedUnderContainer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners")
	}
	r, err := registry.New(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	host, err := r.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := ocispec.ImageConfig{Env: []string{"A=b"}, Cmd: []string{"/run"}, StopSignal: "SIGINT"}
	_, err = r.AddImage("app", "v1", registry.Image{Layers: []registry.Layer{registry.Files(map[string]string{"run": "x"})}, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	// A daemon starts, its manager holds the images of recorded containers, and it ends.
	daemon := func(containers []*sandbox.Container, do func(*podImages, criImages)) {
		t.Helper()
		store, err := image.Open(t.Context(), image.Config{Root: root, RegistryConfigDir: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		images := newPodImages(store, slog.New(slog.DiscardHandler))
		for _, c := range containers {
			if err := images.Hold(c.ImageID, c.ID); err != nil {
				t.Errorf("Hold after a restart = %v; want nil", err)
			}
		}
		do(images, criImages{store})
	}
	c := &sandbox.Container{ID: "c1"}
	name := host + "/app:v1"
	daemon(nil, func(images *podImages, client criImages) {
		if c.ImageID, err = client.Pull(t.Context(), name, cri.Credentials{}); err != nil {
			t.Fatal(err)
		}
		if err := images.Hold(c.ImageID, c.ID); err != nil {
			t.Fatal(err)
		}
		if err := client.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if img, err := client.Get(t.Context(), name); img != nil || err != nil {
			t.Errorf("Get(%s) after its removal = %v, %v; want nothing", name, img, err)
		}
	})
	daemon([]*sandbox.Container{c}, func(images *podImages, _ criImages) {
		got, err := images.config(c.ImageID)
		if d := cmp.Diff(config, got); err != nil || d != "" {
			t.Errorf("config of a held image = %v (-want +got):\n%s", err, d)
		}
		if img, err := images.Resolve(c.ImageID); err != nil || img.ID != c.ImageID || img.StopSignal != "SIGINT" {
			t.Errorf("Resolve of a held image = %+v, %v; want %s", img, err, c.ImageID)
		}
		dir := filepath.Join(t.TempDir(), "c1")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := images.Rootfs(t.Context(), c, dir, "")
		if err != nil {
			t.Errorf("Rootfs of a held image = %v; want a mount", err)
		} else {
			f.Close()
		}
		images.Release(c.ID)
		if img, err := images.Resolve(c.ImageID); !errors.Is(err, image.ErrNotFound) {
			t.Errorf("Resolve after the release = %+v, %v; want not found", img, err)
		}
	})
}
