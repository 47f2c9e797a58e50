package e2e

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/testtools"
	"github.com/cri-shim/cri-shim/oci/criu"
)

// criuNode is a node with a criu that suits the kernel.
func criuNode(t *testing.T) *node {
	t.Helper()
	program := testtools.CRIU(t)
	if _, err := (&criu.Tool{Program: program}).Check(t.Context()); err != nil {
		t.Skip(err)
	}
	return newNode(t, map[string]string{"criu_program": quote(program)})
}

// archived are the entries of an archive; of regular files the content where it is small.
func archived(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(io.LimitReader(r, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(text)
	}
}

const countScript = `i=0; rm -f /etc/group; while :; do i=$((i+1)); echo $i >/written; echo $i; sleep 0.05; done`

// goesOn waits until a counting container counts.
func (c *container) goesOn(t *testing.T) {
	t.Helper()
	at := func() int { n, _ := strconv.Atoi(strings.TrimSpace(c.exec(t, "cat /written || :"))); return n }
	before := at()
	eventually(t, "the container goes on", func() bool { return at() > before })
}

func TestCheckpointContainer(t *testing.T) {
	n := criuNode(t)
	p := n.runPod(t)
	c := p.run(t, sh(countScript))
	c.goesOn(t)
	archive := filepath.Join(t.TempDir(), "checkpoint.tar")
	if _, err := n.CheckpointContainer(ctx(t), &pb.CheckpointContainerRequest{ContainerId: c.id, Location: archive}); err != nil {
		t.Fatal(err)
	}
	c.goesOn(t)
	in := archived(t, archive)
	for _, name := range []string{"config.dump", "spec.dump", "status", "network.status", "deleted.files", "rootfs-diff.tar",
		"checkpoint/inventory.img", "checkpoint/descriptors.json", "stats-dump", "dump.log"} {
		if in[name] == "" {
			t.Errorf("%s is not in the archive, or empty", name)
		}
	}
	var config struct{ ID, Name, RootfsImageRef string }
	if err := json.Unmarshal([]byte(in["config.dump"]), &config); err != nil || config.ID != c.id || config.Name == "" || config.RootfsImageRef == "" {
		t.Errorf("config.dump = %s, %v", in["config.dump"], err)
	}
	var deleted []string
	if err := json.Unmarshal([]byte(in["deleted.files"]), &deleted); err != nil || !slices.Contains(deleted, "/etc/group") {
		t.Errorf("deleted.files = %s, %v; want /etc/group", in["deleted.files"], err)
	}
	diff := map[string]bool{}
	for r := tar.NewReader(strings.NewReader(in["rootfs-diff.tar"])); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		diff[h.Name] = true
	}
	if !diff["written"] || !diff["etc/.wh.group"] {
		t.Errorf("rootfs-diff.tar has %v; want written and etc/.wh.group", diff)
	}

	_, err := n.CheckpointContainer(ctx(t), &pb.CheckpointContainerRequest{ContainerId: c.id, Location: "relative"})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a relative location: %v", err)
	}
	c.stopIt(t, 0)
	_, err = n.CheckpointContainer(ctx(t), &pb.CheckpointContainerRequest{ContainerId: c.id, Location: archive})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a container that has ended: %v; want FailedPrecondition", err)
	}
}

func TestCheckpointPod(t *testing.T) {
	n := criuNode(t)
	p := n.runPod(t)
	// Each looks at the other's count, over a file that both have.
	shared := t.TempDir()
	both := func(c *pb.ContainerConfig) {
		c.Mounts = append(c.Mounts, &pb.Mount{ContainerPath: "/shared", HostPath: shared})
	}
	one, two := p.run(t, sh(countScript), both), p.run(t, sh(countScript), both)
	dir := t.TempDir()
	bounded, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	req := &pb.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: dir, ContainerIds: []string{one.id}}
	if _, err := n.CheckpointPod(bounded, req); status.Code(err) != codes.InvalidArgument {
		t.Errorf("one of two running containers: %v; want InvalidArgument", err)
	}
	req.ContainerIds = []string{one.id, two.id}
	req.Options = map[string]string{"x": "y"}
	if _, err := n.CheckpointPod(bounded, req); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an unknown option: %v; want InvalidArgument", err)
	}
	req.Options = nil
	if _, err := n.CheckpointPod(context.Background(), req); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without a deadline: %v; want InvalidArgument", err)
	}
	if _, err := n.CheckpointPod(bounded, req); err != nil {
		t.Fatal(err)
	}
	one.goesOn(t)
	two.goesOn(t)
	for _, c := range []*container{one, two} {
		in := archived(t, filepath.Join(dir, c.status(t).Metadata.Name+".tar"))
		if in["checkpoint/inventory.img"] == "" {
			t.Errorf("the archive of %s has no processes", c.status(t).Metadata.Name)
		}
	}
	for _, name := range []string{"pod.options", "pod.dump"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.CheckpointPod(bounded, req); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a folder that is not empty: %v; want FailedPrecondition", err)
	}
	if entries, err := os.ReadDir(n.path("root", "checkpoints")); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// A daemon that dies in the middle leaves a frozen container; the next one lets it go on.
func TestCheckpointInterrupted(t *testing.T) {
	n := newNode(t, map[string]string{"criu_program": quote("/nonexistent/criu")})
	p := n.runPod(t)
	c := p.run(t, sh(countScript))
	_, err := n.CheckpointContainer(ctx(t), &pb.CheckpointContainerRequest{ContainerId: c.id, Location: "/tmp/never"})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "the program criu") {
		t.Errorf("without criu: %v; want Unimplemented, and what is missing", err)
	}
	mark := n.path("root", "checkpoints", c.id)
	if err := os.MkdirAll(mark, 0o700); err != nil {
		t.Fatal(err)
	}
	setFrozen(t, n, p, c, true)
	n.restart(t, stopSignal)
	c.goesOn(t)
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v; want it gone", mark, err)
	}
}

// setFrozen writes the freezer's file of a container's group.
func setFrozen(t *testing.T, n *node, p *pod, c *container, on bool) {
	t.Helper()
	pattern, value := "/sys/fs/cgroup/freezer"+n.pods[p.id]+"/"+c.id+"/freezer.state", map[bool]string{true: "FROZEN", false: "THAWED"}[on]
	if unified() {
		pattern, value = "/sys/fs/cgroup"+n.pods[p.id]+"/"+c.id+"/cgroup.freeze", map[bool]string{true: "1", false: "0"}[on]
	}
	if err := os.WriteFile(pattern, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
}
