package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// gpuNode is a daemon on a node that seems to have GPUs.
func gpuNode(t *testing.T, config map[string]string) *node {
	t.Helper()
	needNode(t)
	root := t.TempDir()
	testtools.FakeNVIDIA(t, root)
	all := map[string]string{
		"gpu_device_root": quote(root), "gpu_driver_root": quote(root), "cdi_spec_dirs": "[" + quote(root, "cdi") + "]",
		"builtin_handlers": `["nvidia"]`,
	}
	for k, v := range config {
		all[k] = v
	}
	n := newNode(t, all)
	if err := os.Mkdir(filepath.Join(root, "cdi"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.gpuRoot = root
	return n
}

func (n *node) writeCDI(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.gpuRoot, "cdi", name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func cdi(names ...string) edit {
	return func(c *pb.ContainerConfig) {
		for _, name := range names {
			c.CDIDevices = append(c.CDIDevices, &pb.CDIDevice{Name: name})
		}
	}
}

// probe is a script that says of device numbers whether the control group lets them be opened: yes, whether or not a
// driver is there, or EPERM. The nodes are made on the spot, so that what /dev has does not matter.
func probe(numbers ...string) string {
	return fmt.Sprintf(`for n in %s; do
  rm -f /dev/probe; mknod /dev/probe c ${n%%:*} ${n#*:} || exit 1
  if err=$( (: < /dev/probe) 2>&1 ); then echo $n yes; else
    case "$err" in *"not permitted"*) echo $n EPERM;; *) echo $n yes;; esac
  fi
done; rm -f /dev/probe`, strings.Join(numbers, " "))
}

// TestGPU: a container has the GPU that it asked for and no other, and keeps it.
func TestGPU(t *testing.T) {
	t.Parallel()
	n := gpuNode(t, nil)
	p := n.runPod(t)
	script := probe("10:200", "10:229", "1:11", "10:237", "1:3")
	const want = "10:200 yes\n10:229 EPERM\n1:11 EPERM\n10:237 yes\n1:3 yes\n"
	c := p.sleeping(t, cdi("nvidia.com/gpu=0"))
	check := func(when string) {
		t.Helper()
		if got := c.exec(t, script); got != want {
			t.Errorf("%s: the container may open %q; want %q", when, got, want)
		}
	}
	check("exec")
	if _, err := n.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: &pb.LinuxContainerResources{CpuShares: 512}}); err != nil {
		t.Errorf("UpdateContainerResources: %v", err)
	}
	check("after an update")
	n.restart(t, syscall.SIGKILL)
	check("after the daemon was killed")

	if got := p.output(t, script); strings.Contains(got, "200 yes") || strings.Contains(got, "237 yes") {
		t.Errorf("a container that asked for nothing may open %q", got)
	}
	got := c.exec(t, "ls -l /dev/nvidia* | awk '{print $1, $5, $6, $10}'; /usr/bin/nvidia-smi; cat /etc/ld.so.conf.d/*.conf; ls /usr/local/nvidia/lib64; readlink /usr/local/nvidia/lib64/libcuda.so.1")
	wantFiles := "crw-rw-rw- 10, 200 /dev/nvidia0\ncrw-rw-rw- 10, 237 /dev/nvidiactl\n"
	for _, part := range []string{
		"10, 200 /dev/nvidia0", "10, 237 /dev/nvidiactl", "510, 0 /dev/nvidia-uvm", "fake smi\n", "/usr/local/nvidia/lib64\n",
		"libcuda.so\nlibcuda.so.1\nlibcuda.so." + testtools.FakeNVIDIAVersion, "libnvidia-ml.so.1",
	} {
		if !strings.Contains(got, part) {
			t.Errorf("in the container %q is missing; want it as in %q:\n%s", part, wantFiles, got)
		}
	}
	if strings.Contains(got, "glcore") || strings.Contains(got, "535.104") || strings.Contains(got, "/dev/nvidia1") {
		t.Errorf("the container has more than it asked for:\n%s", got)
	}
	out := n.shim(t, "gpu", "ls", "--config", n.path("config.toml"), "--endpoint", n.socket())
	if !strings.Contains(out, testtools.FakeNVIDIAVersion) || !strings.Contains(line(out, "nvidia.com/gpu=0"), p.config.Metadata.Name) ||
		strings.Contains(line(out, "nvidia.com/gpu=1"), p.config.Metadata.Name) {
		t.Errorf("gpu ls =\n%s\nwant GPU 0 with pod %s", out, p.config.Metadata.Name)
	}
}

// TestGPUComesAndGoes: the log tells of a driver that is loaded after the daemon began, and who had a device that has gone.
func TestGPUComesAndGoes(t *testing.T) {
	t.Parallel()
	n := gpuNode(t, nil)
	from := 0 // where in the log
	said := func(words ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("a line with %q in the log", words), func() bool {
			for l := range strings.Lines(readFile(t, n.path("daemon.log"))[from:]) {
				if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(l, w) }) {
					return true
				}
			}
			return false
		})
	}
	said("NVIDIA driver", testtools.FakeNVIDIAVersion)
	said("devices found", "nvidia.com/gpu=GPU-00000000")
	proc := filepath.Join(n.gpuRoot, "proc/driver")
	nodes := 0
	node := func() { // nothing tells of a changed /proc that is no real one, so that is for a node in /dev to do
		nodes++
		from = len(readFile(t, n.path("daemon.log")))
		testtools.MakeNode(t, filepath.Join(n.gpuRoot, fmt.Sprintf("dev/other%d", nodes)), 1, 3)
	}
	if err := os.Rename(proc, proc+".unloaded"); err != nil {
		t.Fatal(err)
	}
	node()
	said("NVIDIA driver", "none")
	p := n.runPod(t)
	if _, err := p.CreateContainer(ctx(t), &pb.CreateContainerRequest{
		PodSandboxId: p.id, Config: p.containerConfig("early", sh("true"), cdi("nvidia.com/gpu=0")), SandboxConfig: p.config,
	}); err == nil {
		t.Error("a GPU without a driver: no error")
	}
	if err := os.Rename(proc+".unloaded", proc); err != nil {
		t.Fatal(err)
	}
	p.sleeping(t, cdi("nvidia.com/gpu=1")) // at once: a request does not wait for an event
	node()
	said("NVIDIA driver", testtools.FakeNVIDIAVersion)
	if err := os.RemoveAll(filepath.Join(proc, "nvidia/gpus/0000:65:00.0")); err != nil {
		t.Fatal(err)
	}
	node()
	said("a device has gone", "GPU-00000001", p.config.Metadata.Name)
}

// line is the line of text that begins with prefix.
func line(text, prefix string) string {
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, prefix) {
			return l
		}
	}
	return ""
}

// TestGPURequests is what the kubelet sends for device plugins, old and new, and for dynamic resource allocation.
func TestGPURequests(t *testing.T) {
	t.Parallel()
	n := gpuNode(t, nil)
	p := n.runPod(t)
	script := probe("10:200", "10:229")
	annotation := func(value string) edit {
		return func(c *pb.ContainerConfig) { c.Annotations = map[string]string{"cdi.k8s.io/plugin_0": value} }
	}
	for name, tc := range map[string]struct {
		edits []edit
		want  string
	}{
		"device plugin, devices and mounts": {[]edit{mount(&pb.Mount{HostPath: n.volume(t), ContainerPath: "/plugin", Readonly: true}), func(c *pb.ContainerConfig) {
			c.Devices = []*pb.Device{{HostPath: filepath.Join(n.gpuRoot, "dev/nvidia1"), ContainerPath: "/dev/nvidia1", Permissions: "rw"}}
			c.Envs = append(c.Envs, &pb.KeyValue{Key: "NVIDIA_VISIBLE_DEVICES", Value: []byte("all")}) // grants nothing
		}}, "10:200 EPERM\n10:229 yes\n"},
		"device plugin, annotation": {[]edit{annotation("nvidia.com/gpu=GPU-00000001-1111-2222-3333-444444444444")}, "10:200 EPERM\n10:229 yes\n"},
		"both ways at once":         {[]edit{annotation("nvidia.com/gpu=0"), cdi("nvidia.com/gpu=0")}, "10:200 yes\n10:229 EPERM\n"},
		"two devices":               {[]edit{cdi("nvidia.com/gpu=0", "nvidia.com/gpu=1")}, "10:200 yes\n10:229 yes\n"},
		"all":                       {[]edit{cdi("nvidia.com/gpu=all")}, "10:200 yes\n10:229 yes\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := p.output(t, script, tc.edits...); got != tc.want {
				t.Errorf("may open %q; want %q", got, tc.want)
			}
		})
	}
	t.Run("dynamic resource allocation", func(t *testing.T) {
		n.writeCDI(t, "claim.json", fmt.Sprintf(`{"cdiVersion": "1.1.0", "kind": "k8s.gpu.example.com/claim",
  "containerEdits": {"env": ["COMMON=1"]},
  "devices": [{"name": "claim-1", "containerEdits": {"env": ["GPU=one"], "additionalGids": [4242],
    "deviceNodes": [{"path": "/dev/claimed", "hostPath": %q, "permissions": "r"}],
    "mounts": [{"hostPath": %q, "containerPath": "/claim", "options": ["ro"]}]}}]}`,
			filepath.Join(n.gpuRoot, "dev/nvidia0"), n.volume(t)))
		got := p.output(t, "echo $COMMON $GPU; id -G; cat /claim/file; "+script+"; (: > /dev/claimed) 2>&1", cdi("k8s.gpu.example.com/claim=claim-1"), func(c *pb.ContainerConfig) {
			c.Command[2] += " || true"
		})
		for _, want := range []string{"1 one\n", "4242", "content\n", "10:200 yes\n10:229 EPERM\n", "not permitted"} {
			if !strings.Contains(got, want) {
				t.Errorf("output %q; want %q in it", got, want)
			}
		}
	})
	t.Run("runtime class", func(t *testing.T) {
		s, err := n.Status(ctx(t), &pb.StatusRequest{})
		if err != nil || !slices.ContainsFunc(s.RuntimeHandlers, func(h *pb.RuntimeHandler) bool { return h.Name == "nvidia" }) {
			t.Errorf("Status = %v, %v; want the handler nvidia", s.GetRuntimeHandlers(), err)
		}
		p := n.runPodAs(t, "nvidia")
		if got := p.status(t).RuntimeHandler; got != "nvidia" {
			t.Errorf("PodSandboxStatus: handler %q; want nvidia", got)
		}
		if got := p.output(t, script, cdi("nvidia.com/gpu=1")); got != "10:200 EPERM\n10:229 yes\n" {
			t.Errorf("may open %q", got)
		}
	})
	// NVIDIA's plugin with deviceListStrategy "volume-mounts" and passDeviceSpecs: a mount of /dev/null for each device, and nodes.
	t.Run("device plugin, volume mounts", func(t *testing.T) {
		host := func(name string) string { return filepath.Join(n.gpuRoot, "dev", name) }
		got := p.output(t, script+"; test -c /var/run/nvidia-container-devices/GPU-0 && echo $NVIDIA_VISIBLE_DEVICES; ls /dev/nvidia*", mount(
			&pb.Mount{HostPath: "/dev/null", ContainerPath: "/var/run/nvidia-container-devices/GPU-0"}), func(c *pb.ContainerConfig) {
			c.Envs = append(c.Envs, &pb.KeyValue{Key: "NVIDIA_VISIBLE_DEVICES", Value: []byte("/var/run/nvidia-container-devices")})
			c.Devices = []*pb.Device{
				{HostPath: host("nvidiactl"), ContainerPath: "/dev/nvidiactl", Permissions: "rw"},
				{HostPath: host("nvidia0"), ContainerPath: "/dev/nvidia0", Permissions: "rw"},
			}
		})
		if want := "10:200 yes\n10:229 EPERM\n/var/run/nvidia-container-devices\n/dev/nvidia0\n/dev/nvidiactl\n"; got != want {
			t.Errorf("output %q; want %q", got, want)
		}
	})
}

// TestTopology: the CPUs and the memory nodes that the kubelet's managers choose beside a device are those of the container,
// and can be changed while it runs.
func TestTopology(t *testing.T) {
	t.Parallel()
	if runtime.NumCPU() < 2 {
		t.Skip("needs two CPUs")
	}
	n := gpuNode(t, nil)
	p := n.runPod(t, hostNetwork)
	c := p.sleeping(t, cdi("nvidia.com/gpu=0"), func(c *pb.ContainerConfig) {
		c.Linux.Resources = &pb.LinuxContainerResources{CpusetCpus: "1", CpusetMems: "0"}
	})
	want := func(when, cpus, mems string) {
		t.Helper()
		const script = "sed -n 's/^[CM][pe][um]s_allowed_list:[[:space:]]*//p' "
		for _, of := range []string{"/proc/self/status", "/proc/1/status"} {
			if got := c.exec(t, script+of); got != cpus+"\n"+mems+"\n" {
				t.Errorf("%s: %s may use %q; want CPUs %s and memory nodes %s", when, of, got, cpus, mems)
			}
		}
	}
	want("at the start", "1", "0")
	for _, cpus := range []string{"0-1", "0"} {
		if _, err := n.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{
			ContainerId: c.id, Linux: &pb.LinuxContainerResources{CpusetCpus: cpus, CpusetMems: "0"},
		}); err != nil {
			t.Fatal(err)
		}
		want("after an update", cpus, "0")
	}
	if got := c.exec(t, probe("10:200", "10:229")); got != "10:200 yes\n10:229 EPERM\n" {
		t.Errorf("after updates it may open %q", got)
	}
	n.restart(t, syscall.SIGKILL)
	want("after the daemon was killed", "0", "0")
	_, err := p.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: p.containerConfig("far", sh("true"),
		func(c *pb.ContainerConfig) { c.Linux.Resources.CpusetMems = "63" })})
	if err == nil { // the node is looked at when the group is made
		resp, lerr := p.ListContainers(ctx(t), &pb.ListContainersRequest{Filter: &pb.ContainerFilter{PodSandboxId: p.id}})
		if lerr != nil {
			t.Fatal(lerr)
		}
		for _, l := range resp.Containers {
			if l.Metadata.Name == "far" {
				_, err = p.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: l.Id})
			}
		}
	}
	if err == nil || !strings.Contains(err.Error(), "cpuset.mems") || !strings.Contains(err.Error(), "63") {
		t.Errorf("a memory node that is not there: %v; want an error that names cpuset.mems and 63", err)
	}
}

// TestGPUErrors: what cannot be had is refused at once, and the error says why.
func TestGPUErrors(t *testing.T) {
	t.Parallel()
	n := gpuNode(t, nil)
	p := n.runPod(t)
	n.writeCDI(t, "a.json", `{"cdiVersion": "0.6.0", "kind": "v.com/c", "devices": [{"name": "x", "containerEdits": {"env": ["A=1"]}}, {"name": "nodev", "containerEdits": {"deviceNodes": [{"path": "/dev/not-there"}]}}]}`)
	n.writeCDI(t, "b.json", `{"cdiVersion": "0.6.0", "kind": "v.com/c", "devices": [{"name": "x", "containerEdits": {"env": ["A=2"]}}]}`)
	n.writeCDI(t, "broken.yaml", "kind: [")
	n.writeCDI(t, "e.json", `{"cdiVersion": "1.1.0", "kind": "v.com/e", "devices": [
  {"name": "hook", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/not/there"}]}},
  {"name": "hook2", "containerEdits": {"hooks": [{"hookName": "createRuntime", "path": "bin/true"}]}},
  {"name": "mount", "containerEdits": {"mounts": [{"hostPath": "/not/there", "containerPath": "/x"}]}},
  {"name": "mount2", "containerEdits": {"mounts": [{"hostPath": "relative", "containerPath": "/x"}]}},
  {"name": "rdt", "containerEdits": {"intelRdt": {"closID": "not-a-class"}}}]}`)
	regular := filepath.Join(n.volume(t), "file")
	for name, tc := range map[string]struct {
		edit edit
		want []string
	}{
		"conflict":       {cdi("v.com/c=x"), []string{"a.json", "b.json", "same priority"}},
		"missing node":   {cdi("v.com/c=nodev"), []string{"a.json", "/dev/not-there"}},
		"no such device": {cdi("v.com/c=y"), []string{"v.com/c=y", "a.json", "broken.yaml"}},
		"no such kind":   {cdi("w.com/c=y"), []string{"w.com/c=y", "cdi", "broken.yaml"}},
		"no such GPU":    {cdi("nvidia.com/gpu=7"), []string{"nvidia.com/gpu=7", "GPU-00000000"}},
		"hook missing":   {cdi("v.com/e=hook"), []string{"v.com/e=hook", "e.json", "createContainer hook", "/not/there"}},
		"hook relative":  {cdi("v.com/e=hook2"), []string{"e.json", "createRuntime hook", "bin/true", "not absolute"}},
		"mount missing":  {cdi("v.com/e=mount"), []string{"e.json", "/not/there"}},
		"mount relative": {cdi("v.com/e=mount2"), []string{"e.json", "relative", "not absolute"}},
		"RDT":            {cdi("v.com/e=rdt"), []string{"linux.intelRdt"}},
		"regular file":   {func(c *pb.ContainerConfig) { c.Devices = []*pb.Device{{HostPath: regular, ContainerPath: "/dev/x"}} }, []string{regular, "neither a device nor a directory"}},
		"missing device": {func(c *pb.ContainerConfig) {
			c.Devices = []*pb.Device{{HostPath: "/dev/not-there", ContainerPath: "/dev/x"}}
		}, []string{"/dev/not-there", "no such file"}},
		"bad permission": {func(c *pb.ContainerConfig) {
			c.Devices = []*pb.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rx"}}
		}, []string{"permissions", "rx"}},
		"bad annotation": {func(c *pb.ContainerConfig) { c.Annotations = map[string]string{"cdi.k8s.io/p": "not-a-name"} }, []string{"cdi.k8s.io/p", "not-a-name"}},
		"class unconfigured": {func(c *pb.ContainerConfig) {
			c.Annotations = map[string]string{"io.kubernetes.cri.blockio-class": "fast"}
		}, []string{"fast", "blockio_config_file"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := p.containerConfig("c-"+strings.ReplaceAll(name, " ", "-"), sh("true"), tc.edit)
			_, err := p.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
			if status.Code(err) != codes.InvalidArgument && !(name == "missing device" && err != nil) {
				t.Errorf("CreateContainer = %v; want InvalidArgument", err)
			}
			for _, want := range tc.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("CreateContainer = %v; want %q in it", err, want)
				}
			}
		})
	}
}
