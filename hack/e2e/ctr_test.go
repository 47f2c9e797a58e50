package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// ctr runs the program under the name of containerd's client.
func (n *node) ctr(t *testing.T, stdin []byte, args ...string) (string, error) {
	t.Helper()
	return n.calledAs(t, "ctr", stdin, args...)
}

func (n *node) calledAs(t *testing.T, name string, stdin []byte, args ...string) (string, error) {
	t.Helper()
	link := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(n.program, link); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx(t), link, args...)
	cmd.Env = append(os.Environ(), "CRI_SHIM_ENDPOINT=unix://"+n.socket())
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestCtr runs what kind, minikube and image builders run, with their very arguments.
func TestCtr(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	reg := images.Host()
	smallImage(t, images.Server, "ctr/app", "v1")
	must := func(stdin []byte, args ...string) string {
		t.Helper()
		out, err := n.ctr(t, stdin, args...)
		if err != nil {
			t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	tag := reg + "/ctr/app:v1"
	must(nil, "--namespace=k8s.io", "content", "fetch", "--platform=linux/"+runtime.GOARCH, tag)
	id := n.image(t, tag).Id
	archive := filepath.Join(t.TempDir(), "app.tar")
	must(nil, "-n=k8s.io", "images", "export", archive, tag)
	must(nil, "--namespace=k8s.io", "images", "rm", tag)
	if n.image(t, tag) != nil {
		t.Fatal("the image is there after ctr images rm")
	}
	b, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}

	// kind load: it asks for the snapshotter, imports, and names what came without a name.
	out, err := n.calledAs(t, "containerd", nil, "config", "dump")
	if err != nil || !strings.Contains(out, "snapshotter = 'overlayfs'") {
		t.Errorf("containerd config dump = %q, %v; want the snapshotter", out, err)
	}
	out = must(b, "--namespace=k8s.io", "images", "import", "--all-platforms", "--digests", "--snapshotter=overlayfs", "-")
	if !strings.Contains(out, tag) {
		t.Errorf("ctr images import = %q; want %s", out, tag)
	}
	if img := n.image(t, tag); img == nil || img.Id != id || len(img.RepoDigests) != 1 {
		t.Fatalf("after the import: %v; want %s with a digest", img, id)
	}
	must(nil, "--namespace=k8s.io", "images", "tag", "--force", id, "docker.io/kindest/app:v2")
	if img := n.image(t, "kindest/app:v2"); img == nil || img.Id != id {
		t.Errorf("the name from ctr images tag is of %v; want %s", img, id)
	}
	if out := must(nil, "--namespace=k8s.io", "images", "list", "-q"); !strings.Contains(out, "docker.io/kindest/app:v2\n") {
		t.Errorf("ctr images list -q = %q; want the new name", out)
	}

	// minikube image load, and how it finds out that it need not.
	must(nil, "-n=k8s.io", "images", "import", archive)
	out = must(nil, "-n=k8s.io", "images", "ls", "name=="+tag)
	if !strings.Contains(out, tag) || !strings.Contains(out, strings.TrimPrefix(id, "sha256:")) || strings.Contains(out, "kindest") {
		t.Errorf("ctr images ls name== %s: %q; want that line alone, with the image's ID", tag, out)
	}
	if out := must(nil, "-n=k8s.io", "images", "check"); !strings.Contains(out, "complete") {
		t.Errorf("ctr images check = %q; want it complete", out)
	}
	must(nil, "-n=k8s.io", "images", "tag", tag, "docker.io/library/copy:1")

	// Node images: what they bring is pinned.
	must(b, "--namespace=k8s.io", "images", "import", "--label=io.cri-containerd.pinned=pinned", "--all-platforms", "--no-unpack", "--digests", "-")
	if !n.image(t, tag).Pinned {
		t.Error("not pinned by --label")
	}
	must(nil, "-n", "k8s.io", "i", "label", tag, "io.cri-containerd.pinned=")
	if n.image(t, tag).Pinned {
		t.Error("still pinned")
	}
	for want, args := range map[string][]string{
		`namespace "default"`: {"images", "ls"},
		"already":             {"-n=k8s.io", "images", "tag", busybox(), tag},
		"want FILE":           {"-n=k8s.io", "images", "import"},
		"no command":          {"-n=k8s.io", "tasks", "ls"},
		"filter":              {"-n=k8s.io", "images", "ls", "labels.x==y"},
		"index-name":          {"-n=k8s.io", "images", "import", "--index-name", "x", archive},
		"io.x":                {"-n=k8s.io", "images", "import", "--label", "io.x=1", archive},
	} {
		if out, err := n.ctr(t, nil, args...); err == nil || !strings.Contains(out, want) || !strings.HasPrefix(out, "ctr: ") {
			t.Errorf("ctr %s = %q, %v; want an error with %q", strings.Join(args, " "), out, err, want)
		}
	}
	if out := must(nil, "version"); err != nil || !strings.Contains(out, "Server") {
		t.Errorf("ctr version = %q, %v; want the daemon's", out, err)
	}
}
