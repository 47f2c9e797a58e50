package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// footprint is what a node holds while it has no pod.
type footprint struct {
	descriptors, threads, mounts, files int
	memory                              int // KiB of PSS
}

func (f footprint) String() string {
	return fmt.Sprintf("%d descriptors, %d threads, %d mounts, %d files, %d KiB", f.descriptors, f.threads, f.mounts, f.files, f.memory)
}

// TestSoak: pods come and go for as long as $CRI_SHIM_SOAK says, with execs, streams, failures and restarts of the daemon
// among them, and the node ends as it was after the first of them.
func TestSoak(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv("CRI_SHIM_SOAK"))
	if err != nil {
		t.Skip("takes as long as $CRI_SHIM_SOAK says (\"10m\"), which is not set")
	}
	n := newNode(t, nil)
	end := time.Now().Add(limit)
	round := 0
	run := func(rounds int) {
		for range rounds {
			n.soakRound(t, round)
			round++
		}
	}
	run(20)
	first := n.settled(t)
	t.Logf("after %d rounds: %s", round, first)
	for time.Now().Before(end) && !t.Failed() {
		run(20)
	}
	last := n.settled(t)
	t.Logf("after %d rounds: %s", round, last)
	if last.descriptors > first.descriptors+4 || last.mounts > first.mounts || last.files > first.files || last.threads > first.threads+8 {
		t.Errorf("%d rounds left %s; want about %s", round, last, first)
	}
	if last.memory > first.memory*5/4 {
		t.Errorf("%d rounds left %d KiB; want about %d", round, last.memory, first.memory)
	}
}

// soakRound is the life of two pods; what happens in it depends on the round's number.
func (n *node) soakRound(t *testing.T, round int) {
	t.Helper()
	var edits []func(*pb.PodSandboxConfig)
	if round%3 == 0 {
		edits = append(edits, hostNetwork)
	}
	p, q := n.runPod(t, edits...), n.runPod(t)
	c := p.sleeping(t)
	q.startFails(t, "fails", []string{"/no/such/program"})
	d := q.sleeping(t)
	if got := c.exec(t, "echo there"); got != "there\n" {
		t.Fatalf("exec = %q; want there", got)
	}
	n.crictl(t, "exec", "-i", c.id, "true")
	if _, err := n.ListPodSandboxStats(ctx(t), &pb.ListPodSandboxStatsRequest{}); err != nil {
		t.Fatal(err)
	}
	switch round % 20 {
	case 7:
		n.restart(t, syscall.SIGTERM)
	case 13:
		n.restart(t, syscall.SIGKILL)
	}
	d.stopIt(t, 0)
	for _, id := range []string{p.id, q.id} {
		if err := n.removePod(ctx(t), id); err != nil {
			t.Fatal(err)
		}
	}
}

// startFails makes a container whose start fails.
func (p *pod) startFails(t *testing.T, name string, command []string) {
	t.Helper()
	r, err := p.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig(name, command), SandboxConfig: p.config})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: r.ContainerId}); err == nil {
		t.Error("a program that is not there was started")
	}
}

// settled is the footprint once what happens in the background has.
func (n *node) settled(t *testing.T) footprint {
	t.Helper()
	if err := n.leftovers(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second) // memory is given back after a while without work
	f := footprint{descriptors: n.descriptors(t), files: countFiles(t, n.path("state")) + countFiles(t, n.path("root"))}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	f.mounts = bytes.Count(text, []byte("\n"))
	for _, pid := range n.processes() {
		f.threads += len(entries("/proc/" + pid + "/task"))
		rollup, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
		if err != nil {
			continue // it has just ended
		}
		for line := range strings.Lines(string(rollup)) {
			if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Pss:" {
				kib, _ := strconv.Atoi(fields[1])
				f.memory += kib
			}
		}
	}
	return f
}

func countFiles(t *testing.T, dir string) (count int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			count++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}
