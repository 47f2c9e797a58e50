package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pod is a pod sandbox that goes with its test.
type pod struct {
	*node
	id     string
	config *pb.PodSandboxConfig
}

var podNumber atomic.Int32

// podConfig is a pod with a network, its own cgroup and a folder for logs.
func (n *node) podConfig(edit ...func(*pb.PodSandboxConfig)) *pb.PodSandboxConfig {
	name := fmt.Sprintf("pod%d", podNumber.Add(1))
	c := &pb.PodSandboxConfig{
		Metadata:     &pb.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "e2e"},
		Hostname:     name,
		LogDirectory: n.path("logs", name),
		Linux: &pb.LinuxPodSandboxConfig{
			CgroupParent:    n.cgroup + "/" + name,
			SecurityContext: &pb.LinuxSandboxSecurityContext{NamespaceOptions: &pb.NamespaceOption{Pid: pb.NamespaceMode_CONTAINER}},
		},
	}
	for _, f := range edit {
		f(c)
	}
	return c
}

// hostNetwork is an edit of pods and, with the same meaning, what their containers inherit.
func hostNetwork(c *pb.PodSandboxConfig) {
	c.Hostname = ""
	c.Linux.SecurityContext.NamespaceOptions.Network = pb.NamespaceMode_NODE
}

// runPod runs a pod that is removed after the test.
func (n *node) runPod(t *testing.T, edit ...func(*pb.PodSandboxConfig)) *pod {
	t.Helper()
	return n.runPodAs(t, n.handler, edit...)
}

// runPodAs is runPod with a runtime handler.
func (n *node) runPodAs(t *testing.T, handler string, edit ...func(*pb.PodSandboxConfig)) *pod {
	t.Helper()
	config := n.podConfig(edit...)
	resp, err := n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{node: n, id: resp.PodSandboxId, config: config}
	n.remember(p.id, config)
	t.Cleanup(func() {
		if n.daemon == nil {
			return // the node's own end puts it right
		}
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		if err := n.removePod(ctx, p.id); err != nil {
			t.Errorf("removing pod %s: %v", p.id, err)
		}
	})
	return p
}

func (n *node) remember(id string, config *pb.PodSandboxConfig) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods[id] = config.Linux.CgroupParent
}

func (p *pod) status(t *testing.T) *pb.PodSandboxStatus {
	t.Helper()
	resp, err := p.PodSandboxStatus(ctx(t), &pb.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status
}

func (p *pod) ip(t *testing.T) string {
	t.Helper()
	return p.status(t).Network.Ip
}

type edit = func(*pb.ContainerConfig)

// container is a container of a pod.
type container struct {
	*pod
	id      string
	logPath string
}

// config is a container that runs a command of busybox, its security as a pod of Kubernetes has it by default.
func (p *pod) containerConfig(name string, command []string, edits ...edit) *pb.ContainerConfig {
	c := &pb.ContainerConfig{
		Metadata: &pb.ContainerMetadata{Name: name},
		Image:    &pb.ImageSpec{Image: busybox()},
		Command:  command,
		LogPath:  name + ".log",
		Linux: &pb.LinuxContainerConfig{
			Resources: &pb.LinuxContainerResources{},
			SecurityContext: &pb.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
				Seccomp:          &pb.SecurityProfile{ProfileType: pb.SecurityProfile_RuntimeDefault},
				MaskedPaths:      []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
				ReadonlyPaths:    []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"},
			},
		},
	}
	for _, f := range edits {
		f(c)
	}
	return c
}

var containerNumber atomic.Int32

func (p *pod) create(t *testing.T, command []string, edits ...edit) *container {
	t.Helper()
	name := fmt.Sprintf("c%d", containerNumber.Add(1))
	config := p.containerConfig(name, command, edits...)
	resp, err := p.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		t.Fatal(err)
	}
	return &container{pod: p, id: resp.ContainerId, logPath: filepath.Join(p.config.LogDirectory, config.LogPath)}
}

func (c *container) startIt(t *testing.T) *container {
	t.Helper()
	if _, err := c.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	return c
}

// run creates and starts a container.
func (p *pod) run(t *testing.T, command []string, edits ...edit) *container {
	t.Helper()
	return p.create(t, command, edits...).startIt(t)
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

// sleeping runs a container that does nothing.
func (p *pod) sleeping(t *testing.T, edits ...edit) *container {
	t.Helper()
	return p.run(t, []string{"/bin/sleep", "1000000"}, edits...)
}

// output runs a script to its end and returns what it wrote to standard output.
func (p *pod) output(t *testing.T, script string, edits ...edit) string {
	t.Helper()
	c := p.run(t, sh(script), edits...)
	if s := c.wait(t); s.ExitCode != 0 {
		t.Fatalf("%q exited with %d (%s %s); want 0\n%s", script, s.ExitCode, s.Reason, s.Message, c.rawLog(t))
	}
	return c.log(t, "stdout")
}

func (c *container) status(t *testing.T) *pb.ContainerStatus {
	t.Helper()
	resp, err := c.ContainerStatus(ctx(t), &pb.ContainerStatusRequest{ContainerId: c.id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status
}

// wait waits until the container has exited.
func (c *container) wait(t *testing.T) *pb.ContainerStatus {
	t.Helper()
	var s *pb.ContainerStatus
	eventually(t, "container "+c.id+" has exited", func() bool {
		s = c.status(t)
		return s.State == pb.ContainerState_CONTAINER_EXITED
	})
	return s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(callTimeout); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %s not yet: %s", callTimeout, what)
		}
	}
}

func (c *container) rawLog(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(c.logPath)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// log is what a stream brought, its lines put together again.
func (c *container) log(t *testing.T, stream string) string {
	t.Helper()
	return joinLog(t, c.rawLog(t), stream)
}

// entry is a line of a log in the CRI's format.
type entry struct {
	time    time.Time
	stream  string
	partial bool
	text    string
}

func parseLog(t *testing.T, text string) (list []entry) {
	t.Helper()
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if !strings.HasSuffix(line, "\n") || len(fields) != 4 || fields[2] != "F" && fields[2] != "P" {
			t.Fatalf("log line %.100q is not time, stream, F or P, text", line)
		}
		stamp, err := time.Parse(time.RFC3339Nano, fields[0])
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, entry{stamp, fields[1], fields[2] == "P", fields[3]})
	}
	return list
}

func joinLog(t *testing.T, text, stream string) string {
	t.Helper()
	var b strings.Builder
	for _, e := range parseLog(t, text) {
		if e.stream == stream {
			b.WriteString(e.text)
			if !e.partial {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// exec runs a script in the container, which must succeed, and returns its standard output.
func (c *container) exec(t *testing.T, script string) string {
	t.Helper()
	resp, err := c.ExecSync(ctx(t), &pb.ExecSyncRequest{ContainerId: c.id, Cmd: sh(script), Timeout: 30})
	if err != nil {
		t.Fatal(err)
	}
	if resp.ExitCode != 0 {
		t.Fatalf("exec %q exited with %d; want 0\n%s%s", script, resp.ExitCode, resp.Stdout, resp.Stderr)
	}
	return string(resp.Stdout)
}

// stopIt stops the container with a grace in seconds.
func (c *container) stopIt(t *testing.T, grace int64) {
	t.Helper()
	if _, err := c.StopContainer(ctx(t), &pb.StopContainerRequest{ContainerId: c.id, Timeout: grace}); err != nil {
		t.Fatal(err)
	}
}
