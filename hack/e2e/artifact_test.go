package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

const thing = "application/vnd.example.thing"

// pushArtifact pushes what `oras push` does: a file with the default media type, one below a folder, a folder, and an
// archive of a kind that nobody here knows.
func pushArtifact(t *testing.T, repo string) (name string, p registry.Pushed) {
	t.Helper()
	dir := registry.Files(map[string]string{"site/index.html": "<p>"})
	dir.Compression = registry.Gzip
	p, err := images.AddArtifact(repo, "v1", thing,
		registry.Blob{Title: "artifact.txt", Body: "hello\n", MediaType: ocispec.MediaTypeImageLayer},
		registry.Blob{Title: "sub/dir/2", Body: "two\n", MediaType: "text/plain"},
		registry.Blob{Title: "site", Body: string(dir.Blob()), MediaType: ocispec.MediaTypeImageLayerGzip, Annotations: map[string]string{"io.deis.oras.content.unpack": "true"}},
		registry.Blob{Body: "chart", MediaType: "application/vnd.cncf.helm.chart.content.v1.tar+gzip"})
	if err != nil {
		t.Fatal(err)
	}
	return images.Host() + "/" + repo + ":v1", p
}

// TestArtifactVolume: an artifact as a volume of a pod, by its name and by its ID, whole and in part, with users of its own,
// and as long as the container is there.
func TestArtifactVolume(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	name, pushed := pushArtifact(t, "artifact/volume")
	at := "--endpoint=unix://" + n.socket()
	if id, err := n.pull(t, name, nil); err != nil || id != pushed.ID.String() {
		t.Fatalf("PullImage() = %s, %v; want %s", id, err, pushed.ID)
	}
	if out := n.shim(t, "image", "pull", at, "--quiet", name); strings.TrimSpace(out) != pushed.ID.String() {
		t.Errorf("image pull = %s; want %s", out, pushed.ID)
	}
	volume := func(m *pb.Mount) *pb.Mount {
		m.Readonly = true
		return m
	}
	whole := volume(&pb.Mount{ContainerPath: "/v", Image: &pb.ImageSpec{Image: name}})
	part := volume(&pb.Mount{ContainerPath: "/s", Image: &pb.ImageSpec{Image: pushed.ID.String()}, ImageSubPath: "sub/dir"})
	const look = `cd /v; find . -type f | while read f; do echo "$f $(cat $f)"; done | sort; cat /s/2; touch /v/x 2>/dev/null || echo denied; stat -c %u:%a /v/artifact.txt /v/sub`
	lines := []string{"./" + pushed.Layers[3].Digest.Encoded() + " chart", "./artifact.txt hello", "./site/index.html <p>", "./sub/dir/2 two"}
	slices.Sort(lines)
	want := strings.Join(lines, "\n") + "\ntwo\ndenied\n0:644\n0:755\n"
	if got := n.runPod(t).output(t, look, mount(whole, part)); got != want {
		t.Errorf("an artifact as a volume:\n%s\nwant\n%s", got, want)
	}

	whole.Image.Image = pushed.ID.String() // as the kubelet has it: the answer to its pull
	c := n.runPod(t).create(t, sh("cat /v/artifact.txt; sleep 1000"), mount(whole))
	if _, err := n.RemoveImage(ctx(t), &pb.RemoveImageRequest{Image: &pb.ImageSpec{Image: name}}); err != nil {
		t.Fatal(err)
	}
	n.restart(t, syscall.SIGKILL)
	c.startIt(t)
	eventually(t, "the volume's file in the log", func() bool { return c.log(t, "stdout") == "hello\n" })
	c.stopIt(t, 0)
	if _, err := n.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the blobs to be gone", func() bool {
		left, err := filepath.Glob(n.path("root", "images", "layers", "sha256", "*", "file"))
		return err == nil && len(left) == 0
	})
}

// TestArtifactImage: what CRI clients and administrators see of an artifact, and that it is no image of a container.
func TestArtifactImage(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	name, pushed := pushArtifact(t, "artifact/image")
	if _, err := n.pull(t, name, nil); err != nil {
		t.Fatal(err)
	}
	img := n.image(t, name)
	if img.GetId() != pushed.ID.String() || len(img.GetRepoTags()) != 1 || len(img.GetRepoDigests()) != 1 || img.GetSize() == 0 ||
		img.GetSpec().GetAnnotations()["cri-shim.io/artifact-type"] != thing {
		t.Errorf("ImageStatus() = %v; want the artifact", img)
	}
	var info struct {
		Info struct {
			Artifact struct {
				Type  string
				Files []struct{ Name string }
			}
		}
	}
	if err := json.Unmarshal([]byte(n.crictl(t, "inspecti", name)), &info); err != nil || info.Info.Artifact.Type != thing || len(info.Info.Artifact.Files) != 3 {
		t.Errorf("crictl inspecti = %+v, %v; want the artifact's type and files", info, err)
	}
	if out := n.crictl(t, "images"); !strings.Contains(out, "artifact/image") {
		t.Errorf("crictl images = %s; want the artifact in it", out)
	}
	p := n.runPod(t)
	config := p.containerConfig("c", sh("true"))
	for _, ref := range []string{name, pushed.ID.String()} {
		config.Image.Image = ref
		_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if text := status.Convert(err).Message(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(text, "an artifact is no image of a container") || !strings.Contains(text, thing) {
			t.Errorf("CreateContainer() of an artifact = %v; want FailedPrecondition that says so", err)
		}
	}

	at := "--endpoint=unix://" + n.socket()
	archive := filepath.Join(t.TempDir(), "a.tar")
	n.shim(t, "image", "export", at, "-o", archive, name, busybox())
	n.shim(t, "image", "rm", at, name)
	if n.image(t, name) != nil {
		t.Error("the artifact is there after image rm")
	}
	if out := n.shim(t, "image", "import", at, archive); !strings.Contains(out, name+"\n") || !strings.Contains(out, busybox()+"\n") {
		t.Errorf("image import = %s; want both names", out)
	}
	if img := n.image(t, name); img.GetId() != pushed.ID.String() {
		t.Errorf("after import ImageStatus() = %v; want %s", img, pushed.ID)
	}
	file, err := filepath.Glob(n.path("root", "images", "images", "sha256", pushed.ID.Encoded(), "files", "artifact.txt"))
	if err != nil || len(file) != 1 {
		t.Fatalf("the artifact's file: %v, %v", file, err)
	}
	if err := os.WriteFile(file[0], []byte("jello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := n.shim(t, "image", "verify", at, "--repair"); !strings.Contains(out, name) || !strings.Contains(out, "  repaired\n") {
		t.Errorf("image verify --repair = %s; want the artifact repaired", out)
	}
	if out := n.shim(t, "image", "why", at, name); !strings.Contains(out, pushed.ID.String()+" of ") {
		t.Errorf("image why = %s; want the artifact's digest", out)
	}
	n.shim(t, "image", "pin", at, name)
	n.shim(t, "image", "gc", at, "--unused")
	if img := n.image(t, name); !img.GetPinned() {
		t.Errorf("after image pin and image gc --unused: %v; want it there, pinned", img)
	}
	if out := n.shim(t, "image", "du", at); !strings.Contains(out, name) {
		t.Errorf("image du = %s; want the artifact in it", out)
	}
}

// TestArtifactVolumeUsers: a pod with users of its own sees the files as its root's.
func TestArtifactVolumeUsers(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	name, _ := pushArtifact(t, "artifact/users")
	if _, err := n.pull(t, name, nil); err != nil {
		t.Fatal(err)
	}
	n.userNamespaces(t)
	p := n.runPod(t, ownUsers(pb.NamespaceMode_CONTAINER))
	if got := p.output(t, "cat /v/artifact.txt; stat -c %u /v/artifact.txt", mount(&pb.Mount{ContainerPath: "/v", Readonly: true, Image: &pb.ImageSpec{Image: name}})); got != "hello\n0\n" {
		t.Errorf("an artifact as a volume in a user namespace: %q", got)
	}
}
