package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/image"
)

// TestPlatforms: images for other machines beside this one's, as administrators and programs that call ctr have them come and
// go; and that the kubelet sees this machine's alone.
func TestPlatforms(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	at := "--endpoint=unix://" + n.socket()
	own, other := "linux/"+runtime.GOARCH, "linux/riscv64"
	repo := "platforms/app"
	ids := map[string]string{}
	var layers []string
	var entries []ocispec.Descriptor
	for _, p := range []string{other, own} {
		pushed, err := images.AddImage(repo, "", registry.Image{
			Platform: ocispec.Platform{OS: "linux", Architecture: strings.TrimPrefix(p, "linux/")},
			Layers:   []registry.Layer{registry.Files(map[string]string{"etc/platform": p})},
		})
		if err != nil {
			t.Fatal(err)
		}
		ids[p] = pushed.ID.String()
		layers = append(layers, pushed.DiffIDs[0].Encoded())
		entries = append(entries, pushed.Manifest)
	}
	if _, err := images.AddIndex(repo, "v1", false, entries...); err != nil {
		t.Fatal(err)
	}
	name := images.Host() + "/" + repo + ":v1"
	inspect := func() (all []string) {
		t.Helper()
		var got []image.Summary
		if err := json.Unmarshal([]byte(n.shim(t, "image", "inspect", at, name)), &got); err != nil {
			t.Fatal(err)
		}
		for _, i := range got {
			if i.ID != ids[i.Platform] {
				t.Errorf("image inspect: %s for %s; want %s", i.ID, i.Platform, ids[i.Platform])
			}
			all = append(all, i.Platform)
		}
		return all
	}

	if out := n.shim(t, "image", "pull", at, "-q", "--platform", other, name); out != ids[other]+" "+other+"\n" {
		t.Errorf("image pull --platform = %q; want that image", out)
	}
	p := n.runPod(t)
	config := p.containerConfig("c", sh("true"))
	config.Image.Image = name
	_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if text := status.Convert(err).Message(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(text, "is here for "+other+", and this machine is "+own) {
		t.Errorf("CreateContainer() of another machine's image = %v; want FailedPrecondition with both platforms", err)
	}
	config = p.containerConfig("v", sh("true"), mount(&pb.Mount{ContainerPath: "/v", Readonly: true, Image: &pb.ImageSpec{Image: name}}))
	_, err = n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "is here for "+other) {
		t.Errorf("CreateContainer() with such a volume = %v; want FailedPrecondition", err)
	}

	if out := n.shim(t, "image", "pull", at, "-q", "--all-platforms", name); out != ids[own]+" "+own+"\n"+ids[other]+" "+other+"\n" {
		t.Errorf("image pull --all-platforms = %q; want both, this machine's first", out)
	}
	got := p.output(t, "cat /v/etc/platform", mount(&pb.Mount{ContainerPath: "/v", Readonly: true, Image: &pb.ImageSpec{Image: name}}))
	if got != own+"\n" {
		t.Errorf("the image as a volume is for %q; want %s", got, own)
	}
	list, err := n.ListImages(ctx(t), &pb.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := slices.DeleteFunc(list.Images, func(i *pb.Image) bool { return !slices.Contains(i.RepoTags, name) })
	if len(seen) != 1 || seen[0].Id != ids[own] {
		t.Errorf("ListImages() has %v under the name; want this machine's image alone", seen)
	}
	if out := n.crictl(t, "inspecti", name); !strings.Contains(out, `"`+other+`"`) {
		t.Errorf("crictl inspecti = %s; want the other platform among its info", out)
	}
	out := n.shim(t, "image", "ls", at)
	for platform, id := range ids {
		if !slices.ContainsFunc(strings.Split(out, "\n"), func(l string) bool {
			return strings.HasPrefix(l, name+" ") && strings.Contains(l, " "+platform+" ") && strings.Contains(l, id[len("sha256:"):][:12])
		}) {
			t.Errorf("image ls = %s; want a line for %s", out, platform)
		}
	}

	archive := filepath.Join(t.TempDir(), "a.tar")
	n.shim(t, "image", "export", at, "--all-platforms", "-o", archive, name)
	if _, err := n.RemoveImage(ctx(t), &pb.RemoveImageRequest{Image: &pb.ImageSpec{Image: ids[own]}}); err != nil {
		t.Fatal(err)
	}
	if out := n.shim(t, "image", "ls", at); strings.Contains(out, name) {
		t.Errorf("image ls after RemoveImage = %s; want nothing of the name", out)
	}
	n.shim(t, "image", "import", at, archive)
	if got := inspect(); !slices.Equal(got, []string{own}) {
		t.Errorf("after import: %v; want this machine's platform", got)
	}
	if out := n.shim(t, "image", "import", at, "--all-platforms", archive); out != name+"\n" {
		t.Errorf("image import --all-platforms = %q; want the name, once", out)
	}
	if got := inspect(); !slices.Equal(got, []string{own, other}) {
		t.Errorf("after import --all-platforms: %v; want both", got)
	}
	n.shim(t, "image", "export", at, "--platform", other, "-o", archive, name)
	n.shim(t, "image", "rm", at, name)

	b, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"images", "import", "--all-platforms", "--digests", "-"},
		{"images", "pull", "--all-platforms", name},
	} {
		if out, err := n.ctr(t, bytes.Clone(b), append([]string{"--namespace=k8s.io"}, args...)...); err != nil || !strings.Contains(out, name) {
			t.Fatalf("ctr %v = %s, %v", args, out, err)
		}
	}
	if got := inspect(); !slices.Equal(got, []string{own, other}) {
		t.Errorf("after ctr images pull --all-platforms: %v; want both", got)
	}
	if out, err := n.ctr(t, nil, "-n=k8s.io", "images", "ls", "name=="+name); err != nil || !strings.Contains(out, own) || !strings.Contains(out, other) {
		t.Errorf("ctr images ls = %s, %v; want both platforms", out, err)
	}
	n.shim(t, "image", "rm", at, name)
	_, serr := n.StopPodSandbox(ctx(t), &pb.StopPodSandboxRequest{PodSandboxId: p.id})
	_, rerr := n.RemovePodSandbox(ctx(t), &pb.RemovePodSandboxRequest{PodSandboxId: p.id})
	if err := errors.Join(serr, rerr); err != nil { // its container had the image as a volume
		t.Fatal(err)
	}
	for _, id := range layers {
		if _, err := os.Lstat(n.path("root", "images", "layers", "sha256", id)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("layer %s: %v; want it gone", id, err)
		}
	}
}
