package image

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/hack/registry"
)

func TestPullProgress(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	base := registry.Files(map[string]string{"base": "b"})
	add(t, r, "base", "v1", registry.Image{Layers: []registry.Layer{base}})
	p := add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{base, registry.Files(map[string]string{"big": incompressible(1<<20, 1)})}})
	big := p.Layers[1].Digest.String()
	var log bytes.Buffer
	s := openStore(t, t.TempDir(), func(c *Config) { c.Log = slog.New(slog.NewJSONHandler(&log, nil)) })
	mustPull(t, s, r.Host()+"/base:v1")
	r.SetFault(func(req *http.Request) *registry.Fault {
		if strings.HasSuffix(req.URL.Path, big) {
			return &registry.Fault{StallAfter: 300 << 10}
		}
		return nil
	})
	ref := r.Host() + "/app:v1"
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, ref, nil, PullOptions{})
		ended <- err
	}()
	var got PullProgress
	for deadline := time.Now().Add(20 * time.Second); got.BytesDone < 300<<10; time.Sleep(5 * time.Millisecond) {
		all, err := s.Pulls(t.Context(), ref)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("Pulls() = %+v, %v; want 300 KiB after a while", all, err)
		}
		if len(all) == 1 {
			got = all[0]
		}
	}
	if got.Stage != "layers" || got.Layers != 2 || got.Done != 1 || got.Bytes != p.Layers[1].Size || got.BytesDone != 300<<10 ||
		got.Host != r.Host() || got.Rate <= 0 || got.Reference != ref {
		t.Errorf("Pulls() = %+v; want one of two layers done, and %d bytes expected", got, p.Layers[1].Size)
	}
	if n, want := s.Fetched(), p.Layers[0].Size+300<<10; n != want {
		t.Errorf("Fetched() = %d in the pull; want %d", n, want)
	}
	if other, err := s.Pulls(t.Context(), r.Host()+"/base:v1"); err != nil || len(other) != 0 {
		t.Errorf("Pulls() of another image = %+v, %v; want none", other, err)
	}
	cancel()
	<-ended
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if all, _ := s.Pulls(t.Context(), ""); len(all) == 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("Pulls() after the end = %+v; want none", all)
		}
	}
	r.SetFault(nil)
	mustPull(t, s, ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	var last map[string]any
	for _, l := range lines {
		m := map[string]any{}
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatal(err)
		}
		if m["msg"] == "pulled image" && m["image"] == ref {
			last = m
		}
	}
	if !strings.Contains(log.String(), `"pulling image","image":"`+ref) || last == nil {
		t.Fatalf("log = %s; want the begin and the end of the pull", log.String())
	}
	sum := 0.0
	for _, key := range []string{"resolve", "fetch", "unpack", "commit"} {
		v, ok := last[key].(float64)
		if !ok || v < 0 {
			t.Errorf("log: %s = %v; want a time", key, last[key])
		}
		sum += v
	}
	// The parts are the whole, but for what comes between them.
	if took, _ := last["took"].(float64); sum > took+1e6 || sum < took/2 {
		t.Errorf("log: the parts take %v ns, the whole %v", sum, took)
	}
	if last["host"] != r.Host() || last["fetched"].(float64) < float64(p.Layers[1].Size) {
		t.Errorf("log: host %v, fetched %v; want %s and at least %d", last["host"], last["fetched"], r.Host(), p.Layers[1].Size)
	}
}
