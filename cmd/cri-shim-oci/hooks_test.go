package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// hook appends its name, its pid and mount namespace as it sees them, and the state's status to a file. A hook of the
// container's namespaces before the pivot still sees the host's files.
func hook(kind, file string) specs.Hook {
	const script = `read -r state; echo "$0 $state" >> "$1"; echo "$0 $(readlink /proc/self/ns/uts)" >> "$1.ns"`
	return specs.Hook{Path: "/bin/sh", Args: []string{kind, "-c", script, kind, file}, Env: []string{"PATH=/bin:/usr/bin"}}
}

// TestHooks has all six kinds: their order, where they run and what they are told.
func TestHooks(t *testing.T) {
	b := ours(t, "echo workload >> /log; exec sleep 100")
	log := filepath.Join(b.bundle, "log")
	inside := filepath.Join(b.bundle, "rootfs/log")
	b.spec.Root.Readonly = false
	start := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "read -r state; echo startContainer $state >> /log"}}
	b.spec.Hooks = &specs.Hooks{
		//lint:ignore SA1019 deprecated by the specification, and still to be run
		Prestart:        []specs.Hook{hook("prestart", log)},
		CreateRuntime:   []specs.Hook{hook("createRuntime", log), hook("createRuntime2", log)},
		CreateContainer: []specs.Hook{hook("createContainer", log)},
		StartContainer:  []specs.Hook{start},
		Poststart:       []specs.Hook{hook("poststart", log)},
		Poststop:        []specs.Hook{hook("poststop", log)},
	}
	b.write()
	b.ok("create", "c")
	pid := b.state("c").PID
	if _, err := os.Stat(inside); err == nil {
		t.Error("startContainer hooks ran before the start")
	}
	b.ok("start", "c")
	b.ok("delete", "-f", "c")
	b.gone("c")

	own, err := os.Readlink("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		kind, status string
		pid          int
		host         bool
	}{
		{"prestart", "creating", pid, true}, {"createRuntime", "creating", pid, true}, {"createRuntime2", "creating", pid, true},
		{"createContainer", "creating", 1, false}, {"poststart", "running", pid, true}, {"poststop", "stopped", 0, true},
	}
	lines, spaces := readLines(t, log), readLines(t, log+".ns")
	if len(lines) != len(want) || len(spaces) != len(want) {
		t.Fatalf("hooks said %q, %q; want %d", lines, spaces, len(want))
	}
	for i, w := range want {
		kind, text, _ := strings.Cut(lines[i], " ")
		var s specs.State
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatalf("%s: %v", lines[i], err)
		}
		if kind != w.kind || string(s.Status) != w.status || s.Pid != w.pid || s.ID != "c" || s.Bundle != b.bundle || s.Annotations["key"] != "value" {
			t.Errorf("hook %d = %s; want %+v", i, lines[i], w)
		}
		if got := strings.HasSuffix(spaces[i], own); got != w.host {
			t.Errorf("%s ran in the runtime's namespaces: %v; want %v", kind, got, w.host)
		}
	}
	if got := readLines(t, inside); len(got) != 2 || !strings.HasPrefix(got[0], "startContainer ") || got[1] != "workload" {
		t.Errorf("in the container: %q; want the hook and then the workload", got)
	}
}

func readLines(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

// TestFailingHooks: what fails is named, what was made is gone, and the poststop hooks run (runtime-spec, "Lifecycle").
func TestFailingHooks(t *testing.T) {
	second := 1
	bad := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo because >&2; exit 4"}}
	slow := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "sleep 60 & wait"}, Timeout: &second}
	for _, tt := range []struct {
		name    string
		hooks   specs.Hooks
		command string
		want    string
	}{
		{"createRuntime", specs.Hooks{CreateRuntime: []specs.Hook{bad}}, "create", "createRuntime hook /bin/sh: exit status 4: because"},
		{"timeout", specs.Hooks{CreateRuntime: []specs.Hook{slow}}, "create", "createRuntime hook /bin/sh: no end after 1 s"},
		{"missing", specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/no/such"}}}, "run", "createRuntime hook /no/such"},
		{"createContainer", specs.Hooks{CreateContainer: []specs.Hook{bad}}, "create", "createContainer hook /bin/sh: exit status 4: because"},
		{"startContainer", specs.Hooks{StartContainer: []specs.Hook{bad}}, "run", "startContainer hook /bin/sh: exit status 4: because"},
		{"poststart", specs.Hooks{Poststart: []specs.Hook{bad}}, "run", "poststart hook /bin/sh: exit status 4: because"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := ours(t, "sleep 100")
			log := filepath.Join(b.bundle, "log")
			tt.hooks.Poststop = []specs.Hook{bad, hook("poststop", log)} // the first is a warning
			b.spec.Hooks = &tt.hooks
			b.write()
			args := []string{tt.command, "c"}
			if tt.command == "run" {
				args = []string{"run", "-d", "c"}
			}
			b.fails(tt.want, args...)
			b.gone("c")
			if got := readLines(t, log); len(got) != 1 || !strings.HasPrefix(got[0], "poststop ") {
				t.Errorf("after the failure: %q; want the poststop hook", got)
			}
		})
	}
	t.Run("start", func(t *testing.T) { // where the one who starts is not the one who created
		b := ours(t, "sleep 100")
		b.spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{bad}}
		b.write()
		b.ok("create", "c")
		b.fails("startContainer hook /bin/sh: exit status 4: because", "start", "c")
		b.until("c", specs.StateStopped)
		b.ok("delete", "c")
	})
}
