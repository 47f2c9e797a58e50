package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLogFormat(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	begin := time.Now().Add(-time.Second)
	c := p.run(t, sh("echo out; echo err >&2; echo; printf 'é\\001 \\n'; head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'no newline'"))
	c.wait(t)
	list := parseLog(t, c.rawLog(t))
	var pieces []string
	last := begin
	for _, e := range list {
		if e.stream == "stderr" {
			if e.text != "err" || e.partial {
				t.Errorf("stderr entry %+v; want err", e)
			}
			continue
		}
		if e.time.Before(last) || e.time.After(time.Now()) {
			t.Errorf("time %s of %.20q is not between %s and now", e.time, e.text, last)
		}
		last = e.time
		tag := "F"
		if e.partial {
			tag = "P"
		}
		pieces = append(pieces, fmt.Sprintf("%s%d", tag, len(e.text)))
	}
	// 40000 is twice 16 KiB and 7232; what has no newline at the end counts as a line of its own.
	if got, want := strings.Join(pieces, " "), "F3 F0 F4 P16384 P16384 F7232 P10"; got != want && got != strings.Replace(want, "P10", "F10", 1) {
		t.Errorf("pieces of the log: %s; want %s", got, want)
	}
	text := joinLog(t, c.rawLog(t), "stdout")
	if want := "out\n\né\x01 \n" + strings.Repeat("x", 40000) + "\nno newline"; strings.TrimSuffix(text, "\n") != want {
		t.Errorf("what the log says has %d bytes; want all %d that were written", len(text), len(want))
	}
}

// counting writes numbers without end, about a thousand a second.
var counting = sh("i=0; while :; do echo $i; i=$((i+1)); test $((i%20)) -ne 0 || usleep 20000; done")

// checkCount fails unless logs, put together, count from 0 without a gap; it returns how far.
func checkCount(t *testing.T, logs ...string) int {
	t.Helper()
	next := 0
	for _, text := range logs {
		for _, e := range parseLog(t, text) {
			if got, err := strconv.Atoi(e.text); err != nil || got != next {
				t.Fatalf("the log goes on with %q; want %d", e.text, next)
			}
			next++
		}
	}
	return next
}

func TestReopenLog(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	c := p.run(t, counting)
	var logs []string
	rotated := make([]string, 4)
	for i := range rotated {
		eventually(t, "the log has something", func() bool { return fileSize(t, c.logPath) > 0 })
		rotated[i] = fmt.Sprintf("%s.%d", c.logPath, i)
		if err := os.Rename(c.logPath, rotated[i]); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReopenContainerLog(ctx(t), &pb.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the log has something", func() bool { return fileSize(t, c.logPath) > 0 })
	c.stopIt(t, 0)
	for _, path := range append(rotated, c.logPath) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, string(text))
	}
	checkCount(t, logs...)
	if _, err := c.ReopenContainerLog(ctx(t), &pb.ReopenContainerLogRequest{ContainerId: c.id}); err == nil {
		t.Error("ReopenContainerLog() of an exited container: no error")
	}
}

// TestLogOfNobody: a container without a log path runs.
func TestLogOfNobody(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	if s := p.run(t, sh("head -c 1000000 /dev/zero"), func(c *pb.ContainerConfig) { c.LogPath = "" }).wait(t); s.ExitCode != 0 {
		t.Errorf("exit code %d; want 0", s.ExitCode)
	}
}

// TestLogHeldOpen: a container has ended although what it started holds its output.
func TestLogHeldOpen(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t, namespaces(func(o *pb.NamespaceOption) { o.Pid = pb.NamespaceMode_POD }))
	begin := time.Now()
	c := p.run(t, sh("sleep 1000020 & echo done"))
	c.wait(t)
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("the end took %s although the process had ended; a child held its output", took)
	}
	if got := c.log(t, "stdout"); got != "done\n" {
		t.Errorf("log = %q; want done", got)
	}
}
