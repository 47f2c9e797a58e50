package kubelet

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

// The kubelet's checkpoint API (feature ContainerCheckpoint). $CRIU names a criu that suits the kernel.
func TestCheckpoint(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.Containers[0] = container("main", "trap 'exit 0' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")
	}))
	p.ready(t)
	if missing := checkpointMissing(t, p.node); missing != "" {
		t.Skip(missing)
	}
	client, err := rest.HTTPClientFor(restConfig)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Post(secure+"/checkpoint/default/"+p.fullName()+"/main", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	var answer struct{ Items []string }
	if err == nil && resp.StatusCode == http.StatusOK {
		err = json.Unmarshal(body, &answer)
	}
	if err != nil || resp.StatusCode != http.StatusOK || len(answer.Items) != 1 {
		t.Fatalf("POST checkpoint = %s, %s, %v; want the archive", resp.Status, body, err)
	}
	entries := archived(t, answer.Items[0])
	for _, name := range []string{"config.dump", "spec.dump", "checkpoint/inventory.img"} {
		if !entries[name] {
			t.Errorf("%s has no %s; it has %v", answer.Items[0], name, entries)
		}
	}
	before, err := p.logs("main", "")
	if err != nil {
		t.Fatal(err)
	}
	p.eventually(t, "the container goes on", func() error {
		now, err := p.logs("main", "")
		if err == nil && len(now) <= len(before) {
			err = errors.New("its log does not grow")
		}
		return err
	})
}

// checkpointMissing is what the daemon says that a checkpoint lacks.
func checkpointMissing(t *testing.T, n *node) string {
	t.Helper()
	out, err := n.cri("info")
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Checkpoint struct {
			Available bool
			Missing   string
		}
	}
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if c := info.Checkpoint; !c.Available {
		return fmt.Sprint("the daemon has no checkpoints ($CRIU names a criu): ", strings.TrimSpace(c.Missing))
	}
	return ""
}

func archived(t *testing.T, path string) map[string]bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names := map[string]bool{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = true
	}
}
