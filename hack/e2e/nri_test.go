package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// nriNode is a node with the test plugin, and a function that returns what the plugin has heard.
func nriNode(t *testing.T) (*node, func() string) {
	t.Helper()
	needNode(t)
	dir := t.TempDir()
	plugins, log := filepath.Join(dir, "plugins"), filepath.Join(dir, "log")
	program := nriPlugin(t, dir)
	if err := os.Mkdir(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\nNRI_TEST_LOG=" + log + " exec " + program + "\n"
	if err := os.WriteFile(filepath.Join(plugins, "10-test"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "test.conf"), []byte("configured"), 0o644); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, map[string]string{
		"nri_plugin_dir": quote(plugins), "nri_config_dir": quote(dir), "nri_socket": quote(dir, "sock"), "nri_request_timeout": `"1s"`,
	})
	return n, func() string {
		data, _ := os.ReadFile(log)
		return string(data)
	}
}

// nriPlugin is the test plugin: the one in $PATH, as in a guest without Go, or built into dir.
func nriPlugin(t *testing.T, dir string) string {
	t.Helper()
	if program, err := exec.LookPath("nriplugin"); err == nil {
		return program
	}
	program := filepath.Join(dir, "nriplugin")
	if out, err := exec.Command("go", "build", "-tags", "nri_no_wasm", "-o", program, "../nriplugin").CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	return program
}

func annotated(pairs ...string) edit {
	return func(c *pb.ContainerConfig) {
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		for i := 0; i < len(pairs); i += 2 {
			c.Annotations["nri.test/"+pairs[i]] = pairs[i+1]
		}
	}
}

func TestNRI(t *testing.T) {
	n, heard := nriNode(t)
	if got := heard(); !strings.Contains(got, "Configure cri-shim configured\nSynchronize 0 0\n") {
		t.Errorf("at the start the plugin hears %q; want its configuration and that there is nothing", got)
	}
	p := n.runPod(t)
	other := p.sleeping(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("mounted"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := p.sleeping(t, annotated("env", "PLUGIN=yes", "mount", file+":/plugin", "annotate", "a=b",
		"memory", "67108864", "pids", "37", "limit", other.id+"=50331648"))
	if got := c.exec(t, "echo $PLUGIN; cat /plugin; touch /plugin 2>/dev/null || echo read-only"); got != "yes\nmountedread-only\n" {
		t.Errorf("in the container: %q; want the environment and the mount of the plugin", got)
	}
	limit, pids := "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/pids/pids.max"
	if unified() {
		limit, pids = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max"
	}
	if got := c.exec(t, "cat "+limit+" "+pids); got != "67108864\n37\n" {
		t.Errorf("limits: %q; want the plugin's", got)
	}
	if got := other.exec(t, "cat "+limit); got != "50331648\n" {
		t.Errorf("the other's limit: %q; want the plugin's", got)
	}
	if got := c.status(t).GetResources().GetLinux().GetMemoryLimitInBytes(); got != 67108864 {
		t.Errorf("status: memory limit %d; want the plugin's", got)
	}
	if _, err := n.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &pb.LinuxContainerResources{CpuShares: 512},
	}); err != nil {
		t.Error(err)
	}
	c.stopIt(t, 0)
	if _, err := n.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Error(err)
	}
	at := 0
	for _, event := range []string{"RunPodSandbox " + p.id, "CreateContainer " + c.id + " ", "PostCreateContainer " + c.id,
		"StartContainer " + c.id, "PostStartContainer " + c.id, "UpdateContainer " + c.id, "PostUpdateContainer " + c.id,
		"StopContainer " + c.id, "RemoveContainer " + c.id} {
		i := strings.Index(heard()[at:], event)
		if i < 0 {
			t.Fatalf("the plugin does not hear %s after the events before it:\n%s", event, heard())
		}
		at += i
	}
	_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{
		PodSandboxId: p.id, Config: p.containerConfig("elsewhere", sh("true"), annotated("cgroup", "/elsewhere")),
	})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a plugin that names a cgroup: %v; want InvalidArgument", err)
	}
	_, err = n.CreateContainer(ctx(t), &pb.CreateContainerRequest{
		PodSandboxId: p.id, Config: p.containerConfig("refused", sh("true"), annotated("refuse", "")),
	})
	if err == nil || !strings.Contains(err.Error(), "refused by the test") {
		t.Errorf("a plugin that refuses: %v; want its words", err)
	}
	n.stopAndRemove(t, p)
	if got := heard(); !strings.Contains(got, "StopPodSandbox "+p.id+"\n") || !strings.Contains(got, "RemovePodSandbox "+p.id+"\n") {
		t.Errorf("the plugin does not hear of the pod's end:\n%s", got)
	}
}

func (n *node) stopAndRemove(t *testing.T, p *pod) {
	t.Helper()
	if _, err := n.StopPodSandbox(ctx(t), &pb.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Error(err)
	}
	if _, err := n.RemovePodSandbox(ctx(t), &pb.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Error(err)
	}
}

// A plugin that hangs is left out; one that has died is not missed, and the next one that connects hears of all there is.
func TestNRIPluginHangs(t *testing.T) {
	n, heard := nriNode(t)
	p := n.runPod(t)
	begun := time.Now()
	c := p.sleeping(t, annotated("hang", ""))
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("with a plugin that hangs the start took %s", took)
	}
	after := p.sleeping(t, annotated("env", "PLUGIN=yes"))
	if got := after.exec(t, "echo $PLUGIN"); got != "\n" {
		t.Errorf("the plugin still adjusts: %q; want it disconnected", got)
	}
	n.restart(t, syscall.SIGKILL)
	eventually(t, "the new daemon's plugin hears of the pod and its containers", func() bool {
		return strings.Contains(heard(), "Synchronize 1 2\n")
	})
	c.exec(t, "true")
	if got := p.sleeping(t, annotated("env", "PLUGIN=again")).exec(t, "echo $PLUGIN"); got != "again\n" {
		t.Errorf("after a restart: %q; want the plugin's environment", got)
	}
}
