package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// fakeCheckpoints are on the fake host.
type fakeCheckpoints struct{ h *host }

func (f fakeCheckpoints) Ready(context.Context) error                      { return f.h.step("ready") }
func (f fakeCheckpoints) Freeze(context.Context, *Pod, *Container) error   { return nil }
func (f fakeCheckpoints) Thaw(*Pod, *Container) error                      { return nil }
func (f fakeCheckpoints) Find(context.Context, string) (Checkpoint, error) { return nil, nil }
func (f fakeCheckpoints) Save(_ context.Context, _ *Pod, _ *Container, _, _, archive string) error {
	return os.WriteFile(archive, nil, 0o600)
}

func (f fakeCheckpoints) Open(_ context.Context, archive string) (Checkpoint, error) {
	if _, err := os.Stat(archive); err != nil {
		return nil, err
	}
	return fakeCheckpoint{f.h, archive}, f.h.do("open", "open "+archive)
}

type fakeCheckpoint struct {
	h       *host
	archive string
}

func (c fakeCheckpoint) Name() string                       { return c.archive }
func (c fakeCheckpoint) Image() (*Image, error)             { return c.h.Resolve("busybox") }
func (c fakeCheckpoint) Check(*Pod, *Container, bool) error { return c.h.step("fit") }
func (c fakeCheckpoint) Close() error                       { c.h.undo("open " + c.archive); return nil }
func (c fakeCheckpoint) Unpack(_ context.Context, _ *Pod, _ *Container, dir string) error {
	return errors.Join(os.WriteFile(filepath.Join(dir, "unpacked"), nil, 0o600), c.h.step("unpack"))
}

// podCheckpoint is the folder of a pod with two containers.
func podCheckpoint(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		podOptionsFile: `{"version":1,"containers":{"one":"one.tar","two":"two.tar"}}`, podDumpFile: `{"id":"x","config":{}}`,
		"one.tar": "", "two.tar": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRestorePodBreakEveryStep(t *testing.T) {
	both := []*workload.Container{containerConfig("one"), containerConfig("two")}
	for _, step := range []string{"ready", "fit", "setup", "network", "pod init", "hold image", "layer", "unpack", "checkpoint", "log"} {
		t.Run(step, func(t *testing.T) {
			h := newHost(t)
			m := h.manager()
			m.cfg.Checkpoints = fakeCheckpoints{h}
			dir := podCheckpoint(t)
			before := h.residue()
			h.fail = step
			if id, _, err := m.RestorePod(t.Context(), dir, podConfig("p"), both); !errors.Is(err, errBroken) {
				t.Fatalf("RestorePod = %q, %v; want the broken step", id, err)
			}
			if after := h.residue(); len(after) != len(before) {
				t.Fatalf("left behind: %q; before: %q", after, before)
			}
			id, all, err := m.RestorePod(t.Context(), dir, podConfig("p"), both)
			if err != nil || len(all) != 2 || all[0].Name != "one" || all[1].Name != "two" || all[0].ID == all[1].ID {
				t.Fatalf("retry: %v, %v", all, err)
			}
			for _, r := range all {
				c, err := m.Container(r.ID)
				if err != nil || c.State() != ContainerCreated || c.PodID != id || c.Checkpoint != filepath.Join(dir, r.Name+".tar") {
					t.Errorf("%s: %+v, %v; want it created, with its archive", r.Name, c, err)
				}
			}
			again, _, err := m.RestorePod(t.Context(), dir, podConfig("p"), both)
			if err != nil || again != id {
				t.Errorf("the same request again = %q, %v; want the same pod", again, err)
			}
			other := containerConfig("one")
			other.Labels = map[string]string{"a": "b"}
			if _, _, err := m.RestorePod(t.Context(), dir, podConfig("p"), []*workload.Container{other, both[1]}); !errors.Is(err, ErrExists) {
				t.Errorf("another request for the same pod: %v; want ErrExists", err)
			}
		})
	}
}

func FuzzPodCheckpoint(f *testing.F) {
	f.Add([]byte(`{"version":1,"containers":{"one":"one.tar"}}`), []byte(`{"config":{"handler":""}}`))
	f.Add([]byte(`{"version":1,"containers":{"one":"../one.tar"}}`), []byte(`{}`))
	f.Add([]byte(`{"version":1,"containers":{"one":"."}}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, options, dump []byte) {
		dir := t.TempDir()
		if err := errors.Join(os.WriteFile(filepath.Join(dir, podOptionsFile), options, 0o600),
			os.WriteFile(filepath.Join(dir, podDumpFile), dump, 0o600)); err != nil {
			t.Fatal(err)
		}
		archives, err := readPodCheckpoint(dir, &workload.Pod{}, []*workload.Container{containerConfig("one")})
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("readPodCheckpoint = %v; want ErrInvalid", err)
			}
			return
		}
		for _, at := range archives {
			if filepath.Dir(at) != dir || strings.HasSuffix(at, "/..") {
				t.Errorf("an archive at %q; want it in %s", at, dir)
			}
		}
	})
}
