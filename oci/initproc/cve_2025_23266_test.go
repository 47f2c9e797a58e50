package initproc_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestCVE_2025_23266: a hook with the host's rights gets the environment that its own entry names, and not the image's, whose
// LD_PRELOAD would be loaded into it; it does not start in the image's directory either.
func TestCVE_2025_23266(t *testing.T) {
	b := newBox(t, "true")
	out := filepath.Join(t.TempDir(), "out")
	b.m.Process.Env = append(b.m.Process.Env, "LD_PRELOAD=./evil.so", "EVIL=1")
	b.m.CreateContainerHooks = []initmsg.Hook{{
		Path: "/bin/sh", Args: []string{"sh", "-c", "tr '\\0' '\\n' </proc/self/environ >" + out + "; echo cwd $(pwd) >>" + out},
		Env: []string{"PATH=/usr/bin:/bin", "MINE=1"},
	}}
	b.ok()
	got := read(t, out)
	if strings.Contains(got, "evil") || strings.Contains(got, "EVIL") || !strings.Contains(got, "MINE=1\n") {
		t.Errorf("the hook's environment = %q; want its own alone", got)
	}
	if !strings.HasSuffix(strings.TrimSpace(got), "cwd /") {
		t.Errorf("the hook's directory: %q; want /", got)
	}
}
