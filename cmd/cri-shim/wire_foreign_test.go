package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func foreignHandlers(t *testing.T, runtimes map[string]config.Runtime) *foreignRuntimes {
	t.Helper()
	cfg := config.Default()
	cfg.State, cfg.Runtimes, cfg.BuiltinHandlers = t.TempDir(), runtimes, []string{"nvidia"}
	f, err := newForeignRuntimes(t.Context(), &cfg, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestForeignHandlers(t *testing.T) {
	program := filepath.Join(t.TempDir(), "runtime")
	script := `#!/bin/sh
echo '{"ociVersionMin":"1.0.0","linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":true}}}}'`
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "missing")
	f := foreignHandlers(t, map[string]config.Runtime{"b": {Path: program, Timeout: config.Seconds(7)}, "a": {Path: missing}})
	for userns, want := range map[bool][]cri.Handler{
		true:  {{Name: "a"}, {Name: "b", UserNamespaces: true}},
		false: {{Name: "a"}, {Name: "b"}},
	} {
		if diff := cmp.Diff(want, f.handlers(userns)); diff != "" {
			t.Errorf("handlers(%v) (-want +got):\n%s", userns, diff)
		}
	}
	if p := f.problems(); len(p) != 1 || !strings.Contains(p[0], missing) {
		t.Errorf("problems() = %q; want one, with %s", p, missing)
	}
	if err := f.usable("a"); !errors.Is(err, sandbox.ErrState) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("usable(a) = %v; want ErrState, as it does not exist", err)
	}
	for name, timeout := range map[string]time.Duration{"a": config.DefaultRuntimeTimeout, "b": 7 * time.Second} {
		if got := f.byName[name].Timeout; got != timeout {
			t.Errorf("timeout of %s = %s; want %s", name, got, timeout)
		}
	}
	pod := func(handler string) *sandbox.Pod { return &sandbox.Pod{Config: workload.Pod{Handler: handler}} }
	for _, builtin := range []string{"", "nvidia"} {
		if r, err := f.of(pod(builtin)); r != nil || err != nil {
			t.Errorf("of(%q) = %v, %v; want the built-in runtime", builtin, r, err)
		}
	}
	if r, err := f.of(pod("b")); err != nil || r == nil || r.Name != "b" {
		t.Errorf("of(b) = %v, %v", r, err)
	}
	if _, err := f.of(pod("gone")); !errors.Is(err, sandbox.ErrState) || !strings.Contains(err.Error(), `"gone"`) {
		t.Errorf("of(gone) = %v; want ErrState that names it", err)
	}
}

// Two ends of one container wait for each other, those of others do not, and nobody waits for ever.
func TestForeignTake(t *testing.T) {
	f := foreignHandlers(t, nil)
	free, err := f.take(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	other, err := f.take(t.Context(), "two")
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.take(ctx, "one"); !errors.Is(err, context.Canceled) {
		t.Errorf("take() of a busy one = %v; want Canceled", err)
	}
	got := make(chan error)
	go func() {
		again, err := f.take(t.Context(), "one")
		if err == nil {
			again()
		}
		got <- err
	}()
	free()
	if err := <-got; err != nil || len(f.cleaning) != 0 {
		t.Errorf("take() after it is free = %v, left %v", err, f.cleaning)
	}
}
