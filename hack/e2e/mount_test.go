package e2e

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/cri-shim/cri-shim/hack/registry"
)

func mount(mounts ...*pb.Mount) edit {
	return func(c *pb.ContainerConfig) { c.Mounts = append(c.Mounts, mounts...) }
}

// volume is a folder of the node with a file in it.
func (n *node) volume(t *testing.T) string {
	t.Helper()
	dir := n.path("volumes", strings.ReplaceAll(t.Name(), "/", "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestMounts(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	dir := n.volume(t)
	if got := p.output(t, "cat /v/file; echo new > /v/new", mount(&pb.Mount{HostPath: dir, ContainerPath: "/v"})); got != "content\n" {
		t.Errorf("/v/file = %q; want content", got)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(text) != "new\n" {
		t.Errorf("what the container wrote = %q, %v; want new", text, err)
	}
	if got := p.output(t, "echo x > /v/no || echo denied", mount(&pb.Mount{HostPath: dir, ContainerPath: "/v", Readonly: true})); got != "denied\n" {
		t.Errorf("writing to a read-only mount: %q; want it denied", got)
	}
	if got := p.output(t, "cat /a/deep/file", mount(&pb.Mount{HostPath: filepath.Join(dir, "file"), ContainerPath: "/a/deep/file"})); got != "content\n" {
		t.Errorf("a mounted file = %q; want content", got)
	}
	outer := n.path("volumes", "outer")
	if err := os.MkdirAll(filepath.Join(outer, "inner"), 0o755); err != nil {
		t.Fatal(err)
	}
	got := p.output(t, "cat /outer/inner/file; ls /outer", mount(
		&pb.Mount{HostPath: dir, ContainerPath: "/outer/inner"}, &pb.Mount{HostPath: outer, ContainerPath: "/outer"}))
	if got != "content\ninner\n" {
		t.Errorf("mounts within one another: %q; want the inner one inside, whatever the order", got)
	}
	if got := p.output(t, "cp /bin/true /v/true; /v/true 2>/dev/null || echo denied", mount(&pb.Mount{HostPath: dir, ContainerPath: "/v", MountOptions: []string{"noexec"}})); got != "denied\n" {
		t.Errorf("executing from a noexec mount: %q; want it denied", got)
	}
}

func TestMountPropagation(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	dir := n.volume(t)
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("", dir, "", syscall.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := n.runPod(t, privilegedPod)
	propagated := func(m pb.MountPropagation) edit {
		return mount(&pb.Mount{HostPath: dir, ContainerPath: "/v", Propagation: m})
	}
	slave := p.sleeping(t, propagated(pb.MountPropagation_PROPAGATION_HOST_TO_CONTAINER))
	private := p.sleeping(t, propagated(pb.MountPropagation_PROPAGATION_PRIVATE))
	shared := p.sleeping(t, propagated(pb.MountPropagation_PROPAGATION_BIDIRECTIONAL), privileged)
	shared.exec(t, "mkdir /v/sub && mount -t tmpfs mine /v/sub && touch /v/sub/here")
	defer syscall.Unmount(filepath.Join(dir, "sub"), syscall.MNT_DETACH)
	if _, err := os.Stat(filepath.Join(dir, "sub", "here")); err != nil {
		t.Errorf("a mount of the bidirectional container is not on the node: %v", err)
	}
	for name, tc := range map[string]struct {
		c    *container
		want string
	}{"host to container": {slave, "here\n"}, "private": {private, ""}} {
		if got := tc.c.exec(t, "ls /v/sub"); got != tc.want {
			t.Errorf("%s: a later mount has %q; want %q", name, got, tc.want)
		}
	}
	config := p.containerConfig("sneaky", sh("true"), propagated(pb.MountPropagation_PROPAGATION_BIDIRECTIONAL))
	config.Mounts[0].HostPath = n.path("volumes") // not a shared mount
	if err := p.createAndStart(t, config); err == nil || !strings.Contains(err.Error(), n.path("volumes")) {
		t.Errorf("bidirectional propagation of what is not shared: %v; want an error that names it", err)
	}
}

func TestRecursiveReadonly(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	dir := n.volume(t)
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("mine", sub, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(sub, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := n.runPod(t)
	const script = "touch /v/x 2>/dev/null && echo top; touch /v/sub/x 2>/dev/null && echo sub; true"
	if got := p.output(t, script, mount(&pb.Mount{HostPath: dir, ContainerPath: "/v", Readonly: true})); got != "sub\n" {
		t.Errorf("readonly: %q could be written; want sub", got)
	}
	if got := p.output(t, script, mount(&pb.Mount{HostPath: dir, ContainerPath: "/v", Readonly: true, RecursiveReadOnly: true})); got != "" {
		t.Errorf("recursive_read_only: %q could be written; want nothing", got)
	}
}

// TestHostileMountTarget: a link in the image does not lead a mount out of the container.
func TestHostileMountTarget(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	outside := n.volume(t)
	link := registry.Entries([]tar.Header{{Name: "escape", Typeflag: tar.TypeSymlink, Linkname: "../../../../../.." + outside, Mode: 0o777}}, nil)
	name := n.pushImage(t, "e2e/hostile", ocispec.ImageConfig{}, link)
	p := n.runPod(t)
	got := p.output(t, "cat /escape/new/file 2>/dev/null; echo done", func(c *pb.ContainerConfig) { c.Image.Image = name },
		mount(&pb.Mount{HostPath: outside, ContainerPath: "/escape/new"}))
	if got != "content\ndone\n" {
		t.Errorf("a mount through a link: %q; want it inside the container", got)
	}
	if left := entries(outside); len(left) != 1 {
		t.Errorf("%s has %v; want the file alone", outside, left)
	}
}

func TestImageVolume(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	name := n.pushImage(t, "e2e/volume", ocispec.ImageConfig{Volumes: map[string]struct{}{"/data": {}}},
		registry.Files(map[string]string{"data/seed": "seed\n"}))
	p := n.runPod(t)
	useImage := func(c *pb.ContainerConfig) { c.Image.Image = name }
	for range 2 { // each container has its own
		got := p.output(t, "cat /data/seed; ls /data | wc -l; touch /data/mine; grep -c ' /data ' /proc/mounts", useImage)
		if got != "seed\n1\n1\n" {
			t.Errorf("a volume of the image: %q; want the image's seed alone, on a mount of its own", got)
		}
	}
	dir := n.volume(t)
	if got := p.output(t, "cat /data/file", useImage, mount(&pb.Mount{HostPath: dir, ContainerPath: "/data"})); got != "content\n" {
		t.Errorf("a mount at a volume of the image: /data/file = %q; want content", got)
	}
}

// TestImageMount: an image as a volume (CRI Mount.image).
func TestImageMount(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := smallImage(t, images.Server, "e2e/imagemount", "1")
	name := images.Host() + "/e2e/imagemount:1"
	if _, err := n.pull(t, name, nil); err != nil {
		t.Fatal(err)
	}
	got := n.runPod(t).output(t, "cat /v/etc/name; echo; cat /s/name; echo; touch /v/x || echo denied", mount(
		&pb.Mount{ContainerPath: "/v", Image: &pb.ImageSpec{Image: p.ID.String()}, Readonly: true},
		&pb.Mount{ContainerPath: "/s", Image: &pb.ImageSpec{Image: p.ID.String()}, Readonly: true, ImageSubPath: "etc"},
	))
	if want := "TestImageMount1\nTestImageMount1\ndenied\n"; got != want {
		t.Errorf("an image as a volume: %q; want %q", got, want)
	}
}

// TestImageMountErrors: the kubelet counts a failed image volume by the first word of CreateContainer's error.
func TestImageMountErrors(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	pushed := smallImage(t, images.Server, "e2e/imagemounterrors", "1")
	name := images.Host() + "/e2e/imagemounterrors:1"
	if _, err := n.pull(t, name, nil); err != nil {
		t.Fatal(err)
	}
	p := n.runPod(t)
	for what, m := range map[string]*pb.Mount{
		"registry.test/never:pulled":  {Image: &pb.ImageSpec{Image: "registry.test/never:pulled"}},
		"image_sub_path \"no/such\"":  {Image: &pb.ImageSpec{Image: name}, ImageSubPath: "no/such"},
		"image_sub_path \"etc/name\"": {Image: &pb.ImageSpec{Image: name}, ImageSubPath: "etc/name"}, // a file
	} {
		m.ContainerPath, m.Readonly = "/v", true
		config := p.containerConfig("c", sh("true"), mount(m))
		_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if text := status.Convert(err).Message(); !strings.HasPrefix(text, crierrors.ErrImageVolumeMountFailed.Error()+": ") || !strings.Contains(text, what) {
			t.Errorf("CreateContainer() = %v; want ImageVolumeMountFailed first, and %s", err, what)
		}
	}
	// It is held from then on: the kubelet may collect images between the creation and the start.
	c := p.create(t, sh("cat /v/etc/name"), mount(&pb.Mount{ContainerPath: "/v", Image: &pb.ImageSpec{Image: pushed.ID.String()}, Readonly: true}))
	if _, err := n.RemoveImage(ctx(t), &pb.RemoveImageRequest{Image: &pb.ImageSpec{Image: name}}); err != nil {
		t.Fatal(err)
	}
	c.startIt(t).wait(t)
	if got := c.log(t, "stdout"); !strings.HasPrefix(got, "TestImageMountErrors") {
		t.Errorf("a volume whose image was removed before the start has %q; want the image's file", got)
	}
}
