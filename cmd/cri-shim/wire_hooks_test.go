package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/sandbox"
)

// TestPodHooks follows the hooks of a container that are run beside the init; another daemon runs those of its end.
func TestPodHooks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the files are those of a user namespace's root")
	}
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	hook := func(script string) specs.Hook {
		return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script, log}, Env: []string{"PATH=/usr/bin:/bin"}}
	}
	said := func() string {
		data, _ := os.ReadFile(log)
		os.Remove(log)
		return string(data)
	}
	open := func() *podRuntime {
		store, err := openSpecStore(filepath.Join(dir, "specs"))
		if err != nil {
			t.Fatal(err)
		}
		return &podRuntime{specs: store, bundles: filepath.Join(dir, "hooks"), staging: "/stage", log: slog.New(slog.DiscardHandler)}
	}
	c, l := &sandbox.Container{ID: "c1"}, new(sandbox.Launch)
	p := &oci.Prepared{Spec: &specs.Spec{Root: &specs.Root{}, Linux: &specs.Linux{UIDMappings: []specs.LinuxIDMapping{{HostID: 3000, Size: 10}}}, Hooks: &specs.Hooks{
		Poststart: []specs.Hook{hook(`cat > $0`)},
		Poststop:  []specs.Hook{hook("exit 1"), hook(`cat >> $0`)},
	}}}
	if err := open().hooks(t.Context(), new(sandbox.Pod), c, p, l); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(dir, "hooks", "c1")
	var config specs.Spec
	if err := readJSON(filepath.Join(bundle, "config.json"), &config); err != nil || config.Root.Path != "/stage" || p.Spec.Root.Path != "" {
		t.Errorf("the bundle's root = %+v, %v; want where the init mounts it, and the specification as it was", config.Root, err)
	}
	if err := l.Started(t.Context(), 42); err != nil {
		t.Fatal(err)
	}
	if got := said(); !strings.Contains(got, `"id":"c1"`) || !strings.Contains(got, `"status":"running"`) || !strings.Contains(got, `"pid":42`) ||
		!strings.Contains(got, `"bundle":"`+bundle+`"`) {
		t.Errorf("poststart was told %s", got)
	}
	for i := range 2 { // Cleanup may run again
		if err := open().poststop(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
		if got := said(); strings.Contains(got, `"status":"stopped"`) != (i == 0) {
			t.Errorf("poststop, time %d, was told %q", i, got)
		}
	}
	p.Spec.Hooks.Poststart[0] = hook("exit 3")
	if err := l.Started(t.Context(), 42); err == nil || !strings.Contains(err.Error(), "poststart hook /bin/sh: exit status 3") {
		t.Errorf("a poststart hook that fails: %v", err)
	}

	l = new(sandbox.Launch)
	if err := open().hooks(t.Context(), new(sandbox.Pod), c, &oci.Prepared{Spec: new(specs.Spec)}, l); err != nil || l.Started != nil {
		t.Errorf("without hooks: %v, %v", err, l.Started != nil)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
