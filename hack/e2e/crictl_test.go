package e2e

import (
	"bytes"
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
