package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

func (n *node) pull(t *testing.T, image string, auth *pb.AuthConfig) (string, error) {
	t.Helper()
	resp, err := n.PullImage(ctx(t), &pb.PullImageRequest{Image: &pb.ImageSpec{Image: image}, Auth: auth})
	return resp.GetImageRef(), err
}

// image is the status of an image, nil where it is not there.
func (n *node) image(t *testing.T, name string) *pb.Image {
	t.Helper()
	resp, err := n.ImageStatus(ctx(t), &pb.ImageStatusRequest{Image: &pb.ImageSpec{Image: name}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Image
}

func (n *node) removeImage(t *testing.T, name string) {
	t.Helper()
	if _, err := n.RemoveImage(ctx(t), &pb.RemoveImageRequest{Image: &pb.ImageSpec{Image: name}}); err != nil {
		t.Fatal(err)
	}
}

// smallImage is an image with one file that no other test has.
func smallImage(t *testing.T, s *registry.Server, repo, tag string) registry.Pushed {
	t.Helper()
	p, err := s.AddImage(repo, tag, registry.Image{
		Layers: []registry.Layer{registry.Files(map[string]string{"etc/name": t.Name() + tag})},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serve starts a registry for one test.
func serve(t *testing.T, o registry.Options) *registry.Server {
	t.Helper()
	s, err := registry.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := s.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPullByTagAndDigest(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := smallImage(t, images.Server, "e2e/pull", "1")
	repo := images.Host() + "/e2e/pull"
	digest := p.Manifest.Digest.String()
	for _, name := range []string{repo + ":1", repo + "@" + digest, repo + ":1@" + digest} {
		t.Run(strings.TrimPrefix(name, repo), func(t *testing.T) {
			id, err := n.pull(t, name, nil)
			if err != nil || id != p.ID.String() {
				t.Fatalf("PullImage(%s) = %q, %v; want %s", name, id, err, p.ID)
			}
			for _, by := range []string{name, id, strings.TrimPrefix(id, "sha256:")} {
				if img := n.image(t, by); img.GetId() != id {
					t.Errorf("ImageStatus(%s) = %v; want %s", by, img, id)
				}
			}
		})
	}
	img := n.image(t, repo+":1")
	if !slices.Contains(img.RepoTags, repo+":1") || !slices.Contains(img.RepoDigests, repo+"@"+digest) || img.Size == 0 {
		t.Errorf("image = %v; want %s:1, @%s and a size", img, repo, digest)
	}
	list, err := n.ListImages(ctx(t), &pb.ListImagesRequest{Filter: &pb.ImageFilter{Image: &pb.ImageSpec{Image: repo + ":1"}}})
	if err != nil || len(list.Images) != 1 || list.Images[0].Id != p.ID.String() {
		t.Errorf("ListImages(%s) = %v, %v; want one, %s", repo, list, err, p.ID)
	}
	n.removeImage(t, p.ID.String())
	n.removeImage(t, p.ID.String()) // what is gone is removed
	if img := n.image(t, repo+":1"); img != nil {
		t.Errorf("after RemoveImage: %v; want none", img)
	}
}

func TestPullUnknown(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	name := images.Host() + "/e2e/nothing:1"
	if _, err := n.pull(t, name, nil); err == nil || !strings.Contains(err.Error(), "e2e/nothing:1") {
		t.Errorf("PullImage(%s) = %v; want an error that names it", name, err)
	}
}

func TestPullMirror(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := smallImage(t, images.Server, "e2e/mirrored", "1")
	dir := n.path("certs.d", "registry.test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("server = \"https://registry.test\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", images.Host())
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
	id, err := n.pull(t, "registry.test/e2e/mirrored:1", nil)
	if err != nil || id != p.ID.String() {
		t.Fatalf("PullImage through a mirror = %q, %v; want %s", id, err, p.ID)
	}
	if img := n.image(t, "registry.test/e2e/mirrored:1"); img.GetId() != id {
		t.Errorf("ImageStatus = %v; want %s under the name asked for", img, id)
	}
}

func TestPullAuth(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	for _, kind := range []registry.AuthKind{registry.BasicAuth, registry.BearerAuth} {
		t.Run(string(kind), func(t *testing.T) {
			s := serve(t, registry.Options{Auth: kind, Username: "jane", Password: "open sesame"})
			p := smallImage(t, s, "private", "1")
			name := s.Host() + "/private:1"
			id, err := n.pull(t, name, &pb.AuthConfig{Username: "jane", Password: "open sesame"})
			if err != nil || id != p.ID.String() {
				t.Fatalf("PullImage(%s) = %q, %v; want %s", name, id, err, p.ID)
			}
			n.removeImage(t, name)
			_, err = n.pull(t, name, &pb.AuthConfig{Username: "jane", Password: "guessed"})
			if err == nil || strings.Contains(err.Error(), "guessed") {
				t.Errorf("with a wrong password: %v; want an error without it", err)
			}
			if _, err := n.pull(t, name, nil); err == nil {
				t.Error("without a password: no error")
			}
		})
	}
}

func TestPullIndex(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	own := smallImage(t, images.Server, "e2e/index", "")
	foreign, err := images.AddImage("e2e/index", "", registry.Image{
		Layers:   []registry.Layer{registry.Files(map[string]string{"foreign": "x"})},
		Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	digest, err := images.AddIndex("e2e/index", "1", false, foreign.Manifest, own.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{":1", "@" + digest.String()} {
		if id, err := n.pull(t, images.Host()+"/e2e/index"+ref, nil); err != nil || id != own.ID.String() {
			t.Errorf("PullImage(%s) = %q, %v; want this platform's, %s", ref, id, err, own.ID)
		}
	}
}

func TestPullThroughFaults(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	for _, tc := range []struct {
		name  string
		fault registry.Fault
		wants string // an error, where the pull cannot succeed
	}{
		{"cut", registry.Fault{CutAfter: 100}, ""},
		{"busy", registry.Fault{Status: http.StatusServiceUnavailable}, ""},
		{"corrupt", registry.Fault{FlipAt: 50}, "digest"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t, registry.Options{})
			p := smallImage(t, s, "faulty", "1")
			var faults atomic.Int32
			s.SetFault(func(r *http.Request) *registry.Fault {
				if strings.HasSuffix(r.URL.Path, p.Layers[0].Digest.String()) && (tc.wants != "" || faults.Add(1) == 1) {
					return &tc.fault
				}
				return nil
			})
			name := s.Host() + "/faulty:1"
			_, err := n.pull(t, name, nil)
			if tc.wants == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.wants) {
				t.Fatalf("PullImage = %v; want an error with %q", err, tc.wants)
			}
			if img := n.image(t, name); img != nil {
				t.Errorf("a pull that failed left %v", img)
			}
			s.SetFault(nil)
			if _, err := n.pull(t, name, nil); err != nil {
				t.Errorf("the next pull: %v", err)
			}
		})
	}
}

func TestImageFsInfo(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	resp, err := n.ImageFsInfo(ctx(t), &pb.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.ImageFilesystems) == 0 {
		t.Fatal("ImageFsInfo() has no filesystem")
	}
	fs := resp.ImageFilesystems[0]
	if fs.UsedBytes.GetValue() < 1<<20 || fs.InodesUsed.GetValue() < 3 || !strings.HasPrefix(fs.FsId.Mountpoint, n.path("root")) {
		t.Errorf("ImageFsInfo() = %v; want at least a busybox, its layer and two of its record, below %s", fs, n.path("root"))
	}
}

// TestContainerFsInfo: what containers have written is told, on the file system that it is on.
func TestContainerFsInfo(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	written := func() uint64 {
		t.Helper()
		resp, err := n.ImageFsInfo(ctx(t), &pb.ImageFsInfoRequest{})
		if err != nil || len(resp.ContainerFilesystems) != 1 {
			t.Fatalf("ImageFsInfo() = %v, %v; want one file system of containers", resp, err)
		}
		fs := resp.ContainerFilesystems[0]
		if fs.FsId.Mountpoint != resp.ImageFilesystems[0].FsId.Mountpoint {
			t.Fatalf("ImageFsInfo() has %s for containers and %s for images, which share a file system",
				fs.FsId.Mountpoint, resp.ImageFilesystems[0].FsId.Mountpoint)
		}
		return fs.UsedBytes.GetValue()
	}
	before := written()
	c := n.runPod(t).sleeping(t)
	c.exec(t, "dd if=/dev/zero of=/big bs=1024 count=3000 2>/dev/null; sync")
	for deadline := time.Now().Add(30 * time.Second); written() < before+3000<<10; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes of containers, %d before one wrote 3000 KiB", written(), before)
		}
	}
}

// TestRemoveUsedImage: a container goes on with what its image held.
func TestRemoveUsedImage(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	if _, err := images.AddBusybox("e2e/used", "1"); err != nil {
		t.Fatal(err)
	}
	l, err := registry.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	own := registry.Files(map[string]string{"etc/own": "own\n"})
	if _, err := images.AddImage("e2e/used", "1", registry.Image{Layers: []registry.Layer{l, own}, Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}}}); err != nil {
		t.Fatal(err)
	}
	name := images.Host() + "/e2e/used:1"
	if _, err := n.pull(t, name, nil); err != nil {
		t.Fatal(err)
	}
	c := n.runPod(t).sleeping(t, func(c *pb.ContainerConfig) { c.Image.Image = name })
	n.removeImage(t, name)
	if got := c.exec(t, "cat /etc/own"); got != "own\n" {
		t.Errorf("after the image was removed: /etc/own = %q; want own", got)
	}
}

// cli runs a command of the program against the node.
func (n *node) cli(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(ctx(t), n.program, args...)
	cmd.Env = append(os.Environ(), "CRI_SHIM_ENDPOINT=unix://"+n.socket())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("cri-shim %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String()
}

func TestImageCommands(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := smallImage(t, images.Server, "e2e/commands", "1")
	name := images.Host() + "/e2e/commands:1"
	if got := strings.TrimSpace(n.cli(t, "image", "pull", name)); got != p.ID.String() {
		t.Errorf("image pull = %q; want %s", got, p.ID)
	}
	if got := n.cli(t, "image", "ls"); !strings.Contains(got, name) {
		t.Errorf("image ls = %q; want %s", got, name)
	}
	n.cli(t, "image", "rm", name)
	if img := n.image(t, name); img != nil {
		t.Errorf("after image rm: %v; want none", img)
	}
}

func TestImageImportExport(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := smallImage(t, images.Server, "e2e/archive", "1")
	name := images.Host() + "/e2e/archive:1"
	if _, err := n.pull(t, name, nil); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	n.cli(t, "image", "export", "--output", archive, name)
	n.removeImage(t, name)
	if got := n.cli(t, "image", "import", archive); !strings.Contains(got, name) {
		t.Errorf("image import = %q; want %s", got, name)
	}
	if img := n.image(t, name); img.GetId() != p.ID.String() {
		t.Errorf("after export, rm and import: %v; want %s", img, p.ID)
	}
}
