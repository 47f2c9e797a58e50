package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/testtools"
	"github.com/cri-shim/cri-shim/oci/criu"
)

// count reads what a container counts up in a file.
func count(t *testing.T, file string) int {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(data))) // it may be just being written
	return n
}

func waitCount(t *testing.T, file string, more int) int {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if n := count(t, file); n > more {
			return n
		}
	}
	t.Fatalf("%s does not go beyond %d", file, more)
	return 0
}

// startPiped runs a command whose container writes to a pipe that somebody reads.
func startPiped(t *testing.T, b *bench, args ...string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd := b.command(args...)
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Run()
	w.Close()
	go func() {
		buf := make([]byte, 4096)
		for {
			if _, err := r.Read(buf); err != nil {
				return
			}
		}
	}()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
}

func TestCheckpointRestore(t *testing.T) {
	program := testtools.CRIU(t)
	tool := &criu.Tool{Program: program}
	if _, err := tool.Check(t.Context()); err != nil {
		t.Skip(err)
	}
	b := ours(t, "i=0; while :; do i=$((i+1)); echo $i; echo $i >/data/count; echo $i >/tmp/count; sleep 0.05; done")
	data := t.TempDir()
	b.spec.Mounts = append(b.spec.Mounts,
		specs.Mount{Destination: "/data", Type: "bind", Source: data, Options: []string{"rbind", "rw"}},
		specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"})
	b.write()
	if err := os.Mkdir(filepath.Join(b.bundle, "rootfs/data"), 0o755); err != nil {
		t.Fatal(err)
	}
	counter, images := filepath.Join(data, "count"), filepath.Join(t.TempDir(), "images")
	startPiped(t, b, "--criu", program, "run", "-d", "one")
	waitCount(t, counter, 3)

	// It goes on after the one, and is gone after the other.
	if r := b.run("--criu", program, "checkpoint", "--leave-running", "--image-path", images+"1", "one"); r.code != 0 {
		t.Fatalf("checkpoint --leave-running: %d %s", r.code, r.errs)
	}
	waitCount(t, counter, count(t, counter)+2)
	if r := b.run("--criu", program, "checkpoint", "--image-path", images, "one"); r.code != 0 {
		t.Fatalf("checkpoint: %d %s", r.code, r.errs)
	}
	if r := b.run("state", "one"); r.code == 0 {
		t.Errorf("state after a checkpoint: %s; want no container", r.out)
	}
	at := count(t, counter)
	if err := os.Remove(counter); err != nil {
		t.Fatal(err)
	}

	startPiped(t, b, "--criu", program, "restore", "-d", "--image-path", images, "two")
	if n := waitCount(t, counter, 0); n <= at || n > at+100 {
		t.Errorf("it counts from %d after the restore; want to go on from %d", n, at)
	}
	var state struct {
		PID    int
		Status string
	}
	if err := json.Unmarshal([]byte(b.run("state", "two").out), &state); err != nil || state.Status != "running" {
		t.Errorf("state = %+v, %v; want running", state, err)
	}
	groups, err := os.ReadFile("/proc/" + strconv.Itoa(state.PID) + "/cgroup")
	if err != nil || !strings.Contains(string(groups), b.spec.Linux.CgroupsPath) {
		t.Errorf("cgroups of the restored process: %s, %v; want those of the bundle", groups, err)
	}
	if r := b.run("exec", "two", "cat", "/tmp/count"); r.code != 0 || strings.TrimSpace(r.out) == "" {
		t.Errorf("exec in the restored container: %+v; want the file that was on its tmpfs", r)
	}
	if r := b.run("delete", "-f", "two"); r.code != 0 {
		t.Errorf("delete: %+v", r)
	}
}

func TestCheckpointWithout(t *testing.T) {
	b := ours(t, "sleep 100")
	startPiped(t, b, "run", "-d", "one")
	for name, args := range map[string][]string{
		"checkpoint": {"checkpoint", "--image-path", t.TempDir(), "one"},
		"restore":    {"restore", "-d", "--image-path", t.TempDir(), "two"},
	} {
		r := b.run(slices.Concat([]string{"--criu", "/nonexistent/criu"}, args)...)
		if r.code == 0 || !strings.Contains(r.errs, "checkpoint and restore need the program criu") {
			t.Errorf("%s without criu: %+v; want an error that says so", name, r)
		}
		if out := b.run("list", "-q").out; strings.TrimSpace(out) != "one" {
			t.Errorf("after %s: %q; want one, and nothing else", name, out)
		}
	}
	if r := b.run("checkpoint", "--lazy-pages", "one"); !strings.Contains(r.errs, errors.ErrUnsupported.Error()) {
		t.Errorf("--lazy-pages: %+v; want unsupported", r)
	}
	if _, err := exec.LookPath("false"); err != nil {
		t.Skip("needs the program false, of coreutils")
	}
	if r := b.run("--criu", "false", "checkpoint", "--image-path", t.TempDir(), "one"); !strings.Contains(r.errs, "need a working") {
		t.Errorf("with a program that is not criu: %+v; want an error that says so", r)
	}
}
