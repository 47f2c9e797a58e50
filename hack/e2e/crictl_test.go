package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// crictl runs crictl against the node and returns its standard output.
func (n *node) crictl(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(ctx(t), testtools.Crictl(t), append([]string{
		"--config", "/dev/null", "--runtime-endpoint", "unix://" + n.socket(), "--image-endpoint", "unix://" + n.socket(), "--timeout", "60s",
	}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("crictl %s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

func writeConfig(t *testing.T, name string, m proto.Message) string {
	t.Helper()
	text, err := protojson.MarshalOptions{UseProtoNames: true, UseEnumNumbers: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCrictl(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	wants := func(want string, args ...string) string {
		t.Helper()
		got := n.crictl(t, args...)
		if !strings.Contains(got, want) {
			t.Errorf("crictl %s = %q; want %q in it", strings.Join(args, " "), got, want)
		}
		return got
	}
	wants("cri-shim", "version")
	wants("NetworkReady", "info")
	wants("up to date", "pull", busybox())
	wants(busyboxRepo, "images")
	wants("sha256:", "inspecti", busybox())
	wants(n.path("root"), "imagefsinfo")

	p := &pod{node: n, config: n.podConfig()}
	podFile := writeConfig(t, "pod.json", p.config)
	p.id = strings.TrimSpace(n.crictl(t, "runp", podFile))
	n.remember(p.id, p.config)
	name := p.config.Metadata.Name
	wants(name, "pods", "--name", name, "--state", "ready")
	wants(`"ip": "10.77.`, "inspectp", p.id)

	config := p.containerConfig("counter", sh("echo out; echo err >&2; exec sleep 100000"))
	id := strings.TrimSpace(n.crictl(t, "create", p.id, writeConfig(t, "c.json", config), podFile))
	wants("Created", "ps", "-a", "--pod", p.id)
	wants(id, "start", id)
	wants("counter", "ps", "--state", "running", "--name", "counter", "--pod", p.id)
	wants("counter", "ps", "--image", busybox(), "--pod", p.id)
	if got := n.crictl(t, "ps", "-q", "--state", "exited", "--pod", p.id); got != "" {
		t.Errorf("crictl ps --state exited = %q; want none", got)
	}
	wants("in-there", "exec", "-s", id, "echo", "in-there")
	eventually(t, "out in crictl logs", func() bool { return strings.Contains(n.crictl(t, "logs", id), "out\n") })
	var inspected struct {
		Status struct{ State, ID string }
		Info   map[string]any
	}
	if err := json.Unmarshal([]byte(n.crictl(t, "inspect", id)), &inspected); err != nil {
		t.Fatal(err)
	}
	if inspected.Status.ID != id || inspected.Status.State != "CONTAINER_RUNNING" {
		t.Errorf("crictl inspect = %+v; want %s running", inspected.Status, id)
	}
	wants(id, "stop", "--timeout", "0", id)
	wants("Exited", "ps", "-a", "--pod", p.id)
	wants(id, "rm", id)
	wants(p.id, "stopp", p.id)
	wants("NotReady", "pods", "--id", p.id)
	wants(p.id, "rmp", p.id)
	if got := n.crictl(t, "pods", "-q", "--id", p.id); got != "" {
		t.Errorf("crictl pods after rmp = %q; want none", got)
	}
}

func TestTimeline(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	c := p.sleeping(t)
	got := n.cli(t, "timeline", p.id)
	for _, want := range []string{p.id[:13], c.id[:13], "network", " ms"} {
		if !strings.Contains(got, want) {
			t.Errorf("cri-shim timeline = %s; want %q in it", got, want)
		}
	}
}
