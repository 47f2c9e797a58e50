package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hookProgram notes what a hook was told, in which namespaces it runs and in which order. As a createContainer hook it
// does what NVIDIA's do: it finds the container's root by the bundle's config.json and writes there.
const hookProgram = `#!/bin/sh
kind=$1 dir=$2
cat > "$dir/$kind.json"
for ns in mnt net pid user; do readlink /proc/self/ns/$ns; done > "$dir/$kind.ns"
echo "$MARK $LEAKED" > "$dir/$kind.env"
echo $kind >> "$dir/order"
bundle=$(sed -n 's/.*"bundle":"\([^"]*\)".*/\1/p' "$dir/$kind.json")
test -r "$bundle/config.json" || { echo "cannot read $bundle/config.json" >&2; exit 4; }
if [ $kind = createContainer ]; then
  root=$(sed -n 's/.*"root":{"path":"\([^"]*\)".*/\1/p' "$bundle/config.json")
  test -x "$root/bin/busybox" || { echo "no root in $bundle: $root" >&2; exit 3; }
  echo from the hook > "$root/etc/hooked"
fi
`

// hookNode is a node with a CDI device h.com/c=x that has a hook of every kind, and the folder that they write to.
func hookNode(t *testing.T) (*node, string) {
	t.Helper()
	n := gpuNode(t, nil)
	dir := n.path("hooks-out")
	program := n.path("hook")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir, n.dir, n.path("state")} { // as /run/cri-shim is; of another user in a user namespace
		mode := os.FileMode(0o711)
		if p == dir {
			mode = 0o777
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(program, []byte(hookProgram), 0o755); err != nil {
		t.Fatal(err)
	}
	var hooks []string
	for _, kind := range []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"} {
		hooks = append(hooks, fmt.Sprintf(`{"hookName": %q, "path": %q, "args": ["hook", %[1]q, %[3]q], "env": ["PATH=/usr/bin:/bin", "MARK=mine"], "timeout": 60}`,
			kind, program, dir))
	}
	hooks = append(hooks, `{"hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", "cat > /start.json; readlink /proc/self/ns/mnt > /start.ns; cat /etc/hooked >> /start.ns"]}`)
	n.writeCDI(t, "hooks.json", `{"cdiVersion": "0.6.0", "kind": "h.com/c", "devices": [{"name": "x", "containerEdits": {"hooks": [`+strings.Join(hooks, ", ")+`]}}]}`)
	return n, dir
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestCDIHooks: each hook of a CDI file runs at its time, in the namespaces that the runtime specification gives it, with
// the state on its standard input and with its own environment alone.
func TestCDIHooks(t *testing.T) {
	t.Parallel()
	n, dir := hookNode(t)
	p := n.runPod(t)
	leak := func(c *pb.ContainerConfig) {
		c.Envs = append(c.Envs, &pb.KeyValue{Key: "LEAKED", Value: []byte("the container's")})
	}
	c := p.create(t, []string{"/bin/sleep", "1000000"}, cdi("h.com/c=x"), leak)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("after CreateContainer: %v, %v; want no hook to have run", left, err)
	}
	c.startIt(t)
	host := namespacesOf(t, "self")
	for kind, want := range map[string]struct {
		status specs.ContainerState
		hosts  string // namespaces that are the host's
	}{
		"prestart": {specs.StateCreating, "mnt net pid user"}, "createRuntime": {specs.StateCreating, "mnt net pid user"},
		"createContainer": {specs.StateCreating, "user"}, "poststart": {specs.StateRunning, "mnt net pid user"},
	} {
		var state specs.State
		if err := json.Unmarshal([]byte(readFile(t, filepath.Join(dir, kind+".json"))), &state); err != nil {
			t.Errorf("%s: state: %v", kind, err)
		}
		if state.ID != c.id || state.Status != want.status || state.Version != specs.Version || state.Pid == 0 || state.Bundle == "" ||
			state.Annotations["io.kubernetes.cri.container-type"] != "container" {
			t.Errorf("%s was told %+v; want %s, container %s, its process, bundle and annotations", kind, state, want.status, c.id)
		}
		var hosts []string
		for i, ns := range strings.Fields(readFile(t, filepath.Join(dir, kind+".ns"))) {
			if ns == host[i] {
				hosts = append(hosts, strings.Split(ns, ":")[0])
			}
		}
		if got := strings.Join(hosts, " "); got != want.hosts {
			t.Errorf("%s runs in the host's namespaces %q; want %q", kind, got, want.hosts)
		}
		if got := readFile(t, filepath.Join(dir, kind+".env")); got != "mine \n" {
			t.Errorf("%s: environment %q; want its own alone", kind, got)
		}
	}
	got := c.exec(t, "cat /start.json /start.ns; readlink /proc/self/ns/mnt")
	if lines := strings.Split(got, "\n"); len(lines) < 3 || !strings.Contains(got, `"status":"created"`) || !strings.Contains(got, c.id) ||
		strings.Count(got, lines[len(lines)-2]) != 2 || !strings.Contains(got, "from the hook") {
		t.Errorf("the startContainer hook left %q; want its state, the container's mount namespace, and what the hook before it wrote", got)
	}
	if got := readFile(t, filepath.Join(dir, "order")); got != "prestart\ncreateRuntime\ncreateContainer\npoststart\n" {
		t.Errorf("the hooks ran in the order %q", got)
	}
	n.restart(t, 9)
	if _, err := c.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, filepath.Join(dir, "poststop.json")); !strings.Contains(got, `"status":"stopped"`) || !strings.Contains(got, c.id) {
		t.Errorf("after RemoveContainer, the daemon having been killed: poststop was told %q", got)
	}
	if left, _ := filepath.Glob(n.path("state", "hooks", "*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// namespacesOf are the links of a process's namespaces, in the order of hookProgram.
func namespacesOf(t *testing.T, pid string) []string {
	t.Helper()
	var out []string
	for _, ns := range []string{"mnt", "net", "pid", "user"} {
		link, err := os.Readlink("/proc/" + pid + "/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, link)
	}
	return out
}

// TestCDIHooksUserNamespace: with users of its own, what runs inside the container's namespaces has no rights outside, and
// finds its bundle all the same.
func TestCDIHooksUserNamespace(t *testing.T) {
	t.Parallel()
	n, dir := hookNode(t)
	n.userNamespaces(t)
	p := n.runPod(t, ownUsers(pb.NamespaceMode_CONTAINER))
	c := p.sleeping(t, cdi("h.com/c=x"))
	host := namespacesOf(t, "self")
	if got := strings.Fields(readFile(t, filepath.Join(dir, "createContainer.ns"))); got[3] == host[3] {
		t.Errorf("the createContainer hook is in the host's user namespace %s", got[3])
	}
	if got := strings.Fields(readFile(t, filepath.Join(dir, "createRuntime.ns"))); got[3] != host[3] {
		t.Errorf("the createRuntime hook is in user namespace %s; want the daemon's", got[3])
	}
	if got := c.exec(t, "cat /etc/hooked; stat -c %u /etc/hooked"); got != "from the hook\n0\n" {
		t.Errorf("what the hook wrote = %q", got)
	}
}

// TestCDIHookFails: the start fails, the error has the hook and its words, and nothing runs.
func TestCDIHookFails(t *testing.T) {
	t.Parallel()
	n := gpuNode(t, nil)
	p := n.runPod(t)
	for _, kind := range []string{"createRuntime", "createContainer", "startContainer", "poststart"} {
		n.writeCDI(t, kind+".json", fmt.Sprintf(`{"cdiVersion": "0.6.0", "kind": "h.com/%s", "devices": [{"name": "x", "containerEdits": {"hooks": [`+
			`{"hookName": %[1]q, "path": "/bin/sh", "args": ["sh", "-c", "echo no luck >&2; exit 3"]}]}}]}`, kind))
		c := p.create(t, []string{"/bin/sleep", "1000023"}, cdi("h.com/"+kind+"=x"))
		_, err := c.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: c.id})
		if err == nil || !strings.Contains(err.Error(), kind) || !strings.Contains(err.Error(), "/bin/sh") || !strings.Contains(err.Error(), "no luck") {
			t.Errorf("StartContainer with a failing %s hook = %v; want an error that names it and says why", kind, err)
		}
		if s := c.status(t); s.State == pb.ContainerState_CONTAINER_RUNNING {
			t.Errorf("after a failing %s hook the container runs", kind)
		}
	}
	if left := processesOf("sleep\x001000023"); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

// TestNVIDIAHooks runs the hooks of NVIDIA's toolkit, as nvidia-ctk writes them into a CDI file, with a library that only
// the loader's cache makes known.
func TestNVIDIAHooks(t *testing.T) {
	t.Parallel()
	hook, err := exec.LookPath("nvidia-cdi-hook")
	if err != nil {
		t.Skip("needs nvidia-cdi-hook of NVIDIA's container toolkit")
	}
	n := gpuNode(t, nil)
	// The hook only renews a cache that is there.
	image := n.glibcImage(t, "etc/ld.so.cache", "etc/ld.so.conf")
	lib := filepath.Join(n.volume(t), "libcuda.so.570")
	compile(t, fakeCUDA, lib, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
	n.writeCDI(t, "nvidia.json", fmt.Sprintf(`{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{"name": "0", "containerEdits": {
  "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": %[1]q}]}}],
  "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"],
    "mounts": [{"hostPath": %[2]q, "containerPath": "/opt/driver/libcuda.so.570", "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}],
    "hooks": [
      {"hookName": "createContainer", "path": %[3]q, "args": ["nvidia-cdi-hook", "create-symlinks", "--link", "libcuda.so.1::/opt/driver/libcuda.so"]},
      {"hookName": "createContainer", "path": %[3]q, "args": ["nvidia-cdi-hook", "update-ldcache", "--folder", "/opt/driver"]}]}}`,
		filepath.Join(n.gpuRoot, "dev/nvidia0"), lib, hook))
	p := n.runPod(t)
	if got, want := p.output(t, "/bin/cuda && readlink /opt/driver/libcuda.so", func(c *pb.ContainerConfig) { c.Image.Image = image }, cdi("nvidia.com/gpu=0")),
		cudaSays+"libcuda.so.1\n"; got != want {
		t.Errorf("the program says %q; want %q", got, want)
	}
}
