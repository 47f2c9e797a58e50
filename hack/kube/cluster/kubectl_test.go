package cluster

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// running starts a command of kubectl that goes on until the test's end.
type running struct {
	stdin io.WriteCloser
	lines chan string
}

func start(t *testing.T, args ...string) *running {
	t.Helper()
	cmd := one.command(args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &running{stdin: stdin, lines: make(chan string, 1000)}
	var read sync.WaitGroup
	read.Add(1)
	go func() {
		defer read.Done()
		defer close(r.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			select {
			case r.lines <- s.Text():
			default: // the test has seen enough
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		read.Wait()
		cmd.Wait()
		if t.Failed() {
			t.Logf("kubectl %s: %s", strings.Join(args, " "), &stderr)
		}
	})
	return r
}

// wants reads lines until one has text.
func (r *running) wants(t *testing.T, text string) string {
	t.Helper()
	var seen []string
	limit := time.After(patience)
	for {
		select {
		case line, ok := <-r.lines:
			if strings.Contains(line, text) {
				return line
			}
			if seen = append(seen, line); !ok {
				t.Fatalf("ended after %q; want %q", seen, text)
			}
		case <-limit:
			t.Fatalf("not after %v: %q in %q", patience, text, seen)
		}
	}
}

func TestKubectl(t *testing.T) {
	app := name(t)
	apply(t, app, pod(app, sleeper+", "+strings.Replace(server, "name: main", "name: server", 1)))
	ready(t, app, 1)
	t.Run("logs -f", func(t *testing.T) {
		r := start(t, "logs", "-f", "-c", "main", "--tail=1", app)
		var first int
		if _, err := fmt.Sscanf(r.wants(t, "count "), "count %d", &first); err != nil {
			t.Fatal(err)
		}
		r.wants(t, fmt.Sprintf("count %d", first+15))
	})
	t.Run("exec", func(t *testing.T) {
		out, err := one.Kubectl("from outside", "exec", "-i", "-c", "main", app, "--", "sh", "-c", "cat; exit 7")
		if out != "from outside" || err == nil || !strings.Contains(err.Error(), "exit code 7") {
			t.Errorf("kubectl exec = %q, %v; want the input and exit code 7", out, err)
		}
	})
	t.Run("exec -it", func(t *testing.T) { testTerminal(t, app) })
	t.Run("port-forward", func(t *testing.T) {
		r := start(t, "port-forward", app, ":8080")
		m := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(r.wants(t, "Forwarding from 127.0.0.1"))
		for i := range 5 {
			got, err := get(fmt.Sprintf("http://%s/n%d", m, i))
			if err != nil || got != fmt.Sprintf("%s /n%d\n", app, i) {
				t.Errorf("through the forwarded port: %q, %v", got, err)
			}
		}
	})
	t.Run("cp", func(t *testing.T) { testCopy(t, app) })
	t.Run("debug --target", func(t *testing.T) {
		kubectl(t, "debug", app, "--image="+TestImage, "--target=main", "--container=debugger", "--", "sh", "-c", "ps; echo end of list")
		logsHave(t, app, "end of list", "-c", "debugger")
		logsHave(t, app, "count $i", "-c", "debugger") // the target's command line
	})
	t.Run("top", func(t *testing.T) { testSummary(t, app) })
}

// testTerminal talks to a shell through a terminal on both sides.
func testTerminal(t *testing.T, app string) {
	master, slave, err := openTerminal(33, 101)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	cmd := one.command("exec", "-it", "-c", "main", app, "--", "sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	slave.Close()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var seen bytes.Buffer
	go func() {
		b := make([]byte, 1024)
		for {
			n, err := master.Read(b)
			mu.Lock()
			seen.Write(b[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	screen := func() string { mu.Lock(); defer mu.Unlock(); return seen.String() }
	shows := func(text string) {
		t.Helper()
		eventually(t, fmt.Sprintf("%q on the terminal", text), func() error {
			if s := screen(); !strings.Contains(s, text) {
				return fmt.Errorf("%q", s)
			}
			return nil
		})
	}
	fmt.Fprint(master, "tty; stty size\n")
	shows("/dev/pts/")
	shows("33 101")
	if err := setSize(master, 44, 99); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new size inside", func() error {
		fmt.Fprint(master, "stty size\n")
		if s := screen(); !strings.Contains(s, "44 99") {
			return fmt.Errorf("%q", s)
		}
		return nil
	})
	fmt.Fprint(master, "sleep 1000; echo stat''us $?\n") // an echo of the input must not do for the output
	shows("sleep 1000")
	time.Sleep(500 * time.Millisecond)
	fmt.Fprint(master, "\x03")
	fmt.Fprint(master, "echo still he''re; exit 5\n")
	shows("still here")
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("kubectl exec -it exits with %d; want the shell's 5", code)
	}
}

func testCopy(t *testing.T, app string) {
	dir := t.TempDir()
	in := filepath.Join(dir, "in")
	want := bytes.Repeat([]byte("a line that is copied there and back\n"), 100_000)
	if err := os.MkdirAll(in+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in+"/sub/file", want, 0o640); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "cp", "-c", "main", in, app+":/tmp/there")
	kubectl(t, "cp", "-c", "main", app+":/tmp/there", filepath.Join(dir, "back"))
	got, err := os.ReadFile(filepath.Join(dir, "back/sub/file"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("copied there and back: %d bytes, %v; want %d", len(got), err, len(want))
	}
}

// testSummary asks for what kubectl top and autoscalers are made of, by way of the API server.
func testSummary(t *testing.T, app string) {
	eventually(t, "the summary has the pod's use", func() error {
		text, err := one.Kubectl("", "get", "--raw", "/api/v1/nodes/"+NodeName+"/proxy/stats/summary")
		if err != nil {
			return err
		}
		var summary struct {
			Node struct {
				CPU *struct{ UsageNanoCores *uint64 }
			}
			Pods []struct {
				PodRef     struct{ Name string }
				Containers []struct {
					Name   string
					CPU    *struct{ UsageNanoCores *uint64 }
					Memory *struct{ WorkingSetBytes *uint64 }
				}
			}
		}
		if err := json.Unmarshal([]byte(text), &summary); err != nil {
			return err
		}
		if summary.Node.CPU == nil || summary.Node.CPU.UsageNanoCores == nil {
			return fmt.Errorf("the node's CPU %+v", summary.Node.CPU)
		}
		for _, p := range summary.Pods {
			if p.PodRef.Name != app {
				continue
			}
			for _, c := range p.Containers {
				if c.CPU == nil || c.CPU.UsageNanoCores == nil || c.Memory == nil || c.Memory.WorkingSetBytes == nil || *c.Memory.WorkingSetBytes == 0 {
					return fmt.Errorf("container %+v", c)
				}
			}
			if len(p.Containers) < 2 {
				return fmt.Errorf("containers %+v", p.Containers)
			}
			return nil
		}
		return fmt.Errorf("no pod %s", app)
	})
}

func TestAttach(t *testing.T) {
	app := name(t)
	apply(t, app, pod(app, "{name: main, image: '"+TestImage+"', stdin: true, stdinOnce: true, command: [/bin/sh, -c, 'while read line; do echo got $line; done; echo end of input; sleep 100000']}"))
	ready(t, app, 1)
	r := start(t, "attach", "-i", app)
	fmt.Fprintln(r.stdin, "one")
	r.wants(t, "got one")
	fmt.Fprintln(r.stdin, "two")
	r.wants(t, "got two")
	r.stdin.Close()
	logsHave(t, app, "end of input")
}

func TestResize(t *testing.T) {
	app := name(t)
	limits := func(memory, cpu string) string {
		return fmt.Sprintf("{requests: {memory: %[1]s, cpu: %[2]s}, limits: {memory: %[1]s, cpu: %[2]s}}", memory, cpu)
	}
	apply(t, app, pod(app, strings.TrimSuffix(sleeper, "}")+", resources: "+limits("64Mi", "200m")+"}"))
	before := ready(t, app, 1)[0]
	inside := func(memory, quota string) {
		t.Helper()
		eventually(t, "limits inside", func() error {
			got, err := one.Kubectl("", "exec", app, "--", "sh", "-c",
				"cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us 2>/dev/null || cat memory.max cpu.max")
			if f := strings.Fields(got); err == nil && (len(f) < 2 || f[0] != memory || f[1] != quota) {
				err = fmt.Errorf("%q; want %s, %s", f, memory, quota)
			}
			return err
		})
	}
	inside("67108864", "20000")
	kubectl(t, "patch", "pod", app, "--subresource", "resize", "--patch",
		`{"spec": {"containers": [{"name": "main", "resources": {"requests": {"memory": "96Mi", "cpu": "300m"}, "limits": {"memory": "96Mi", "cpu": "300m"}}}]}}`)
	inside("100663296", "30000")
	eventually(t, "the status has the new limits", func() error {
		list, err := pods(app)
		if err != nil {
			return err
		}
		s := list[0].Status.ContainerStatuses[0]
		if s.Resources == nil || s.Resources.Limits.Memory().String() != "96Mi" || s.Resources.Limits.Cpu().String() != "300m" {
			return fmt.Errorf("%+v", s.Resources)
		}
		if s.RestartCount != 0 || s.ContainerID != before.Status.ContainerStatuses[0].ContainerID {
			t.Fatalf("container %s, %d restarts; want %s to live on", s.ContainerID, s.RestartCount, before.Status.ContainerStatuses[0].ContainerID)
		}
		return nil
	})
}
