package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/testtools"
	"github.com/cri-shim/cri-shim/oci/criu"
)

// restoringNode is a node with a criu that suits the kernel, and with keys of the configuration over that.
func restoringNode(t *testing.T, config map[string]string) *node {
	t.Helper()
	program := testtools.CRIU(t)
	if _, err := (&criu.Tool{Program: program}).Check(t.Context()); err != nil {
		t.Skip(err)
	}
	all := map[string]string{"criu_program": quote(program)}
	for key, value := range config {
		all[key] = value
	}
	return newNode(t, all)
}

// countAndEnd counts, and ends by itself when it is told to.
const countAndEnd = `trap 'exit 7' TERM; i=0; rm -f /etc/group; mkdir -m 1777 /made
while :; do i=$((i+1)); echo $i >/written; echo line $i; sleep 0.05; done`

// lines are the numbers that a counting container has logged.
func (c *container) lines(t *testing.T) (out []int) {
	t.Helper()
	for line := range strings.Lines(c.log(t, "stdout")) {
		if n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "line "))); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// checkpointed is a counting container and an archive of it; the container is gone.
func (n *node) checkpointed(t *testing.T, archive string, edits ...edit) (last int) {
	t.Helper()
	p := n.runPod(t)
	c := p.run(t, sh(countAndEnd), edits...)
	c.goesOn(t)
	if _, err := n.CheckpointContainer(ctx(t), &pb.CheckpointContainerRequest{ContainerId: c.id, Location: archive}); err != nil {
		t.Fatal(err)
	}
	at := c.lines(t)
	if err := n.removePod(ctx(t), p.id); err != nil {
		t.Fatal(err)
	}
	return at[len(at)-1]
}

// wantGoesOn checks a container that has been restored and started.
func (c *container) wantGoesOn(t *testing.T, last int) {
	t.Helper()
	c.goesOn(t)
	eventually(t, "the log goes on", func() bool { return len(c.lines(t)) > 3 })
	if first := c.lines(t)[0]; first < 2 || first > last+2 {
		t.Errorf("it counts on from %d; want about %d", first, last)
	}
	if got := c.exec(t, "ls /etc/group 2>/dev/null; stat -c %a /made; hostname; cat /etc/hostname"); got != "1777\n"+c.config.Hostname+"\n"+c.config.Hostname+"\n" {
		t.Errorf("in the restored container: %q; want no /etc/group, /made with its mode, and the new pod's name", got)
	}
	c.stopIt(t, 20)
	if s := c.status(t); s.ExitCode != 7 {
		t.Errorf("the restored container ended with %d (%s %s); want 7, its own", s.ExitCode, s.Reason, s.Message)
	}
}

func TestRestoreFromArchive(t *testing.T) {
	dir := t.TempDir()
	n := restoringNode(t, map[string]string{"restore_archive_dirs": "[" + quote(dir) + "]"})
	archive := filepath.Join(dir, "checkpoint.tar")
	last := n.checkpointed(t, archive)
	p := n.runPod(t)
	c := p.create(t, nil, func(c *pb.ContainerConfig) { c.Image.Image = archive })
	if s := c.status(t); s.State != pb.ContainerState_CONTAINER_CREATED || s.ImageId == "" {
		t.Errorf("status = %v; want created, with the image of the first container", s)
	}
	c.startIt(t)
	c.wantGoesOn(t, last)

	elsewhere := filepath.Join(t.TempDir(), "checkpoint.tar")
	if err := os.Link(archive, elsewhere); err != nil {
		t.Fatal(err)
	}
	config := p.containerConfig("elsewhere", nil, func(c *pb.ContainerConfig) { c.Image.Image = elsewhere })
	_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "restore_archive_dirs") {
		t.Errorf("an archive elsewhere: %v; want FailedPrecondition that names restore_archive_dirs", err)
	}
}
