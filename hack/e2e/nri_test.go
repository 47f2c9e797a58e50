package e2e

import (
	"fmt"
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

// TestNRIAdjustments: what plugins may change of a container, on what runs then.
func TestNRIAdjustments(t *testing.T) {
	n, heard := nriNode(t)
	p := n.runPod(t)
	touched := filepath.Join(t.TempDir(), "touched")
	c := p.sleeping(t, func(c *pb.ContainerConfig) {
		c.Envs = []*pb.KeyValue{{Key: "GONE", Value: []byte("1")}, {Key: "KEPT", Value: []byte("1")}}
		c.Mounts = []*pb.Mount{{HostPath: "/etc", ContainerPath: "/gone", Readonly: true}}
	}, annotated("adjust", fmt.Sprintf(`{
  "env": [{"key": "-GONE"}, {"key": "NEW", "value": "2"}], "mounts": [{"destination": "-/gone"}],
  "args": ["/bin/sh", "-c", "sleep 1000052"],
  "rlimits": [{"type": "RLIMIT_NOFILE", "hard": "777", "soft": "666"}],
  "hooks": {"poststart": [{"path": "/bin/touch", "args": ["touch", %q]}]},
  "linux": {
    "oomScoreAdj": {"value": "321"},
    "sysctl": {"net.core.somaxconn": "413"},
    "devices": [{"path": "/dev/plugged", "type": "c", "major": "10", "minor": "229"}],
    "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
    "scheduler": {"policy": "SCHED_BATCH", "nice": 5},
    "seccompPolicy": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": {"value": 30}}]},
    "resources": {"cpu": {"shares": {"value": "333"}, "quota": {"value": "44000"}, "period": {"value": "100000"}, "cpus": "0"}}
  }}`, touched)))
	got := c.exec(t, `echo ${GONE-unset} $KEPT $NEW; ls /gone 2>/dev/null | wc -l; tr '\0' ' ' < /proc/1/cmdline; echo
grep 'open files' /proc/1/limits | tr -s ' '; cat /proc/1/oom_score_adj /proc/sys/net/core/somaxconn; stat -c '%t %T' /dev/plugged
(: < /dev/plugged) 2>&1 | grep 'not permitted'; mkdir /tmp/d 2>&1 | grep -o 'Read-only'; nproc; awk '{print $19, $41}' /proc/1/stat`)
	want := "unset 1 2\n0\nsleep 1000052 \nMax open files 666 777 files \n321\n413\na e5\nRead-only\n1\n5 3\n"
	if got != want {
		t.Errorf("in the container:\n%s\nwant\n%s", got, want)
	}
	if _, err := os.Stat(touched); err != nil {
		t.Errorf("the plugin's hook: %v", err)
	}
	if r := c.status(t).GetResources().GetLinux(); r.GetCpuShares() != 333 || r.GetCpuQuota() != 44000 || r.GetCpusetCpus() != "0" {
		t.Errorf("status: %v; want the plugin's limits", r)
	}
	// What could not be run is refused when it is asked for.
	for text, what := range map[string]string{
		`{"rlimits": [{"type": "RLIMIT_NOSUCH", "hard": "1", "soft": "1"}]}`: "NOSUCH",
		`{"linux": {"sysctl": {"kernel.panic": "1"}}}`:                       "kernel.panic",
		`{"linux": {"resources": {"rdtClass": {"value": "gold"}}}}`:          "rdt_class",
	} {
		_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig("bad", sh("true"), annotated("adjust", text))})
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("an adjustment of %s: %v; want it refused", what, err)
		}
	}
	_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig("vetoed", sh("true"), annotated("veto", "", "memory", "67108864"))})
	if err == nil || !strings.Contains(err.Error(), "vetoed by the test") {
		t.Errorf("an adjustment that a plugin does not let pass: %v; want its words", err)
	}
	if !strings.Contains(heard(), "ValidateContainerAdjustment "+c.id) {
		t.Errorf("the plugin is not asked whether the adjustment is valid:\n%s", heard())
	}
}

// TestNRIUpdates: changes of limits that plugins ask for when something else happens, and by themselves; and a pod's events.
func TestNRIUpdates(t *testing.T) {
	n, heard := nriNode(t)
	p := n.runPod(t)
	other := p.sleeping(t)
	limit := "/sys/fs/cgroup/memory/memory.limit_in_bytes"
	if unified() {
		limit = "/sys/fs/cgroup/memory.max"
	}
	wants := func(what string, c *container, bytes string) {
		t.Helper()
		eventually(t, what, func() bool { return c.exec(t, "cat "+limit) == bytes+"\n" })
		if got := fmt.Sprint(c.status(t).GetResources().GetLinux().GetMemoryLimitInBytes()); got != bytes {
			t.Errorf("%s: the status says %s; want %s", what, got, bytes)
		}
	}
	p.sleeping(t, annotated("by-itself", other.id+"=50331648"))
	wants("by itself", other, "50331648")
	update := func(c *container) {
		t.Helper()
		if _, err := n.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{
			ContainerId: c.id, Linux: &pb.LinuxContainerResources{MemoryLimitInBytes: 32 << 20},
		}); err != nil {
			t.Fatal(err)
		}
	}
	c := p.sleeping(t, annotated("on-update", other.id+"=54525952", "on-stop", other.id+"=62914560"))
	update(c)
	wants("the client's, as no plugin changed it", c, "33554432")
	wants("another's at an update", other, "54525952")
	own := p.sleeping(t, annotated("on-update", "own=58720256"))
	update(own)
	wants("its own at an update", own, "58720256")
	c.stopIt(t, 0)
	wants("another's at an end", other, "62914560")
	if _, err := n.UpdatePodSandboxResources(ctx(t), &pb.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.id, Resources: &pb.LinuxContainerResources{CpuShares: 512},
	}); err != nil {
		t.Error(err)
	}
	got := heard()
	before := strings.Index(got, "\nUpdatePodSandbox "+p.id)
	if before < 0 || !strings.Contains(got[before:], "\nPostUpdatePodSandbox "+p.id) || !strings.Contains(got, "\nUpdateContainers 0 <nil>\n") {
		t.Errorf("the plugin hears %q; want the pod's update, before and after, and that its own failed for nothing", got)
	}
	refused := n.podConfig(func(c *pb.PodSandboxConfig) { c.Annotations = map[string]string{"nri.test/refuse": ""} })
	if _, err := n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{Config: refused}); err == nil || !strings.Contains(err.Error(), "refused by the test") {
		t.Errorf("a pod that a plugin refuses: %v; want its words", err)
	}
	n.remember("refused"+strings.Repeat(" ", 64), refused)
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
