package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/image"
)

// TestImageUpkeep: du, verify and gc as an administrator calls them, on a node whose disk lost a file.
func TestImageUpkeep(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := smallImage(t, images.Server, "upkeep/app", "v1")
	if _, err := n.pull(t, images.Host()+"/upkeep/app:v1", nil); err != nil {
		t.Fatal(err)
	}
	at := "--endpoint=unix://" + n.socket()
	if out := n.shim(t, "image", "du", at); !strings.Contains(out, "upkeep/app:v1") || !strings.Contains(out, "each once") {
		t.Errorf("image du = %q; want the image and the sum", out)
	}
	if out := n.shim(t, "image", "verify", at); !strings.Contains(out, " 0 damaged") {
		t.Errorf("image verify = %q; want nothing damaged", out)
	}
	layer := n.path("root", "images", "layers", "sha256", p.DiffIDs[0].Encoded())
	resp, err := n.Status(ctx(t), &pb.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var how struct{ Name, Reason string }
	if err := json.Unmarshal([]byte(resp.Info["layerFormat"]), &how); err != nil || how.Reason == "" {
		t.Fatalf("Status: layers %s, %v; want a format and the reason", resp.Info["layerFormat"], err)
	}
	file := filepath.Join(layer, map[string]string{"erofs": "image.erofs", "directory": "fs/etc/name"}[how.Name])
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(n.program, "image", "verify", at, images.Host()+"/upkeep/app:v1").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "1 of 1 layers are damaged") {
		t.Errorf("image verify of a damaged one = %v, %s; want an error", err, out)
	}
	if out := n.shim(t, "image", "verify", at, "--repair"); !strings.Contains(out, "  repaired\n") {
		t.Errorf("image verify --repair = %q; want it repaired", out)
	}
	if b, err := os.ReadFile(file); err != nil || len(b) == 0 {
		t.Errorf("the file after the repair: %q, %v", b, err)
	}
	var f image.Freed
	if err := json.Unmarshal([]byte(n.shim(t, "image", "gc", at, "--dry-run", "--unused", "--json")), &f); err != nil || len(f.Images) != 3 {
		t.Errorf("image gc --dry-run = %+v, %v; want all three images of the node", f, err)
	}
	n.shim(t, "image", "pin", at, busybox())
	if out := n.shim(t, "image", "gc", at, "--unused"); !strings.Contains(out, "2 images, ") || !strings.Contains(out, " freed\n") {
		t.Errorf("image gc = %q; want two images freed", out)
	}
	if n.image(t, busybox()) == nil || n.image(t, images.Host()+"/upkeep/app:v1") != nil {
		t.Error("want the pinned image alone to be left")
	}
	if left, err := filepath.Glob(layer); err != nil || len(left) != 0 {
		t.Errorf("left of the image's layer: %v, %v", left, err)
	}
}
