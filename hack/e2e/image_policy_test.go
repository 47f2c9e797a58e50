package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestImagePolicy: a program of the administrator's decides what is pulled, loaded, mounted and run.
func TestImagePolicy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "policy"), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("#!/bin/sh\ncase $2 in */e2e/*) ;; *) echo not ours; exit 1;; esac\n")
	n := newNode(t, map[string]string{"image_verifier_dir": quote(dir)})
	smallImage(t, images.Server, "foreign/app", "v1")
	foreign := images.Host() + "/foreign/app:v1"
	_, err := n.pull(t, foreign, nil)
	if status.Code(err) != codes.Unknown || !strings.Contains(err.Error(), "SignatureValidationFailed: ") || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("PullImage = %v; want what the kubelet knows, and the reason", err)
	}
	archive := filepath.Join(t.TempDir(), "a.tar")
	n.shim(t, "image", "export", "--endpoint=unix://"+n.socket(), "-o", archive, busybox())
	b, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	renamed := []byte(strings.ReplaceAll(string(b), "/"+busyboxRepo+":", "/x"+busyboxRepo[1:]+":"))
	if out, err := n.ctr(t, renamed, "-n=k8s.io", "images", "import", "-"); err == nil || !strings.Contains(out, "not ours") {
		t.Errorf("ctr images import of another name = %q, %v; want it denied", out, err)
	}

	p := n.runPod(t)
	made := 0
	container := func(edits ...edit) error {
		t.Helper()
		made++
		return p.createAndStart(t, p.containerConfig(fmt.Sprint("c", made), []string{"true"}, edits...))
	}
	mountWeb := func(c *pb.ContainerConfig) {
		c.Mounts = []*pb.Mount{{ContainerPath: "/web", Image: &pb.ImageSpec{Image: web()}, Readonly: true}}
	}
	if err := container(mountWeb); err != nil {
		t.Errorf("a container of images that are allowed: %v", err)
	}
	write("#!/bin/sh\ncase $2 in */" + busyboxRepo + ":*) ;; *) echo no longer; exit 1;; esac\n")
	if err := container(); err != nil {
		t.Errorf("a container of an image that is still allowed: %v", err)
	}
	if err := container(mountWeb); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "no longer") {
		t.Errorf("with a volume of an image that is no longer allowed: %v; want it denied", err)
	}
	if err := container(func(c *pb.ContainerConfig) { c.Image.Image = web() }); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "no longer") {
		t.Errorf("a container of an image that is no longer allowed: %v; want it denied", err)
	}
}

// TestSignaturePolicy: what no key has signed is neither pulled nor run, also under a policy that came after it.
func TestSignaturePolicy(t *testing.T) {
	t.Parallel()
	needNode(t)
	dir := t.TempDir()
	trust, policy := filepath.Join(dir, "cri-shim-trust"), filepath.Join(dir, "policy.json")
	if out, err := exec.Command("../../cmd/cri-shim-trust/build.sh", trust).CombinedOutput(); err != nil {
		t.Fatalf("build cri-shim-trust: %v\n%s", err, out)
	}
	write := func(foreign string) {
		t.Helper()
		text := fmt.Sprintf(`{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {"%s/signed": [%s]}}}`, images.Host(), foreign)
		if err := os.WriteFile(policy, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Also for the images that every node of these tests begins with; their host is known then.
	if err := os.WriteFile(policy, []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, map[string]string{"signature_policy": quote(policy), "trust_program": quote(trust), "signature_sources_dir": quote(dir + "/none")})
	write(`{"type": "reject"}`)
	smallImage(t, images.Server, "signed/app", "v1")
	app := images.Host() + "/signed/app:v1"
	_, err := n.pull(t, app, nil)
	scope := fmt.Sprintf("scope docker %q", images.Host()+"/signed")
	if status.Code(err) != codes.Unknown || !strings.Contains(err.Error(), "SignatureValidationFailed: ") || !strings.Contains(err.Error(), scope) {
		t.Errorf("PullImage = %v; want what the kubelet knows, and %s", err, scope)
	}
	write(`{"type": "insecureAcceptAnything"}`)
	if _, err := n.pull(t, app, nil); err != nil {
		t.Fatal(err)
	}
	p := n.runPod(t)
	container := func(name string) error {
		t.Helper()
		return p.createAndStart(t, p.containerConfig(name, []string{"true"}, func(c *pb.ContainerConfig) {
			c.Mounts = []*pb.Mount{{ContainerPath: "/app", Image: &pb.ImageSpec{Image: app}, Readonly: true}}
		}))
	}
	if err := container("before"); err != nil {
		t.Errorf("a container with an image that is allowed: %v", err)
	}
	write(`{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/nonexistent/release.gpg"}`)
	if err := container("after"); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "/nonexistent/release.gpg") {
		t.Errorf("a container with an image that nobody has signed: %v; want it denied, with the key", err)
	}
}
