package e2e

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/internal/testtools"
	"github.com/cri-shim/cri-shim/oci/criu"
)

// restoringNode is a node with a criu that suits the kernel, and with keys of the configuration over that.
func restoringNode(t *testing.T, config map[string]string) *node {
	t.Helper()
	program := testtools.CRIU(t)
	if _, err := (&criu.Tool{Program: program}).Check(t.Context()); err != nil {
		t.Skip(err)
	}
	all := map[string]string{"criu_program": quote(program)}
	for key, value := range config {
		all[key] = value
	}
	return newNode(t, all)
}

// countAndEnd counts, and ends by itself when it is told to.
const countAndEnd = `trap 'exit 7' TERM; i=0; rm -f /etc/group; mkdir -m 1777 /made
while :; do i=$((i+1)); echo $i >/written; echo line $i; sleep 0.05; done`

// lines are the numbers that a counting container has logged.
func (c *container) lines(t *testing.T) (out []int) {
	t.Helper()
	for line := range strings.Lines(c.log(t, "stdout")) {
		if n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "line "))); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// checkpointed is a counting container and an archive of it; the container is gone.
func (n *node) checkpointed(t *testing.T, archive string, edits ...edit) (last int) {
	t.Helper()
	p := n.runPod(t)
	c := p.run(t, sh(countAndEnd), edits...)
	c.goesOn(t)
	if _, err := n.CheckpointContainer(ctx(t), &pb.CheckpointContainerRequest{ContainerId: c.id, Location: archive}); err != nil {
		t.Fatal(err)
	}
	at := c.lines(t)
	if err := n.removePod(ctx(t), p.id); err != nil {
		t.Fatal(err)
	}
	return at[len(at)-1]
}

// wantGoesOn checks a container that has been restored and started.
func (c *container) wantGoesOn(t *testing.T, last int) {
	t.Helper()
	c.goesOn(t)
	eventually(t, "the log goes on", func() bool { return len(c.lines(t)) > 3 })
	if first := c.lines(t)[0]; first < 2 || first > last+2 {
		t.Errorf("it counts on from %d; want about %d", first, last)
	}
	if got := c.exec(t, "ls /etc/group 2>/dev/null; stat -c %a /made; hostname; cat /etc/hostname"); got != "1777\n"+c.config.Hostname+"\n"+c.config.Hostname+"\n" {
		t.Errorf("in the restored container: %q; want no /etc/group, /made with its mode, and the new pod's name", got)
	}
	c.stopIt(t, 20)
	if s := c.status(t); s.ExitCode != 7 {
		t.Errorf("the restored container ended with %d (%s %s); want 7, its own", s.ExitCode, s.Reason, s.Message)
	}
}

func TestRestoreFromArchive(t *testing.T) {
	dir := t.TempDir()
	n := restoringNode(t, map[string]string{"restore_archive_dirs": "[" + quote(dir) + "]"})
	archive := filepath.Join(dir, "checkpoint.tar")
	last := n.checkpointed(t, archive)
	p := n.runPod(t)
	c := p.create(t, nil, func(c *pb.ContainerConfig) { c.Image.Image = archive })
	if s := c.status(t); s.State != pb.ContainerState_CONTAINER_CREATED || s.ImageId == "" {
		t.Errorf("status = %v; want created, with the image of the first container", s)
	}
	c.startIt(t)
	// What was restored can be checkpointed again.
	again := filepath.Join(dir, "again.tar")
	c.goesOn(t)
	if _, err := n.CheckpointContainer(ctx(t), &pb.CheckpointContainerRequest{ContainerId: c.id, Location: again}); err != nil {
		t.Error(err)
	}
	c.wantGoesOn(t, last)
	lines := c.lines(t)
	p = n.runPod(t)
	c = p.create(t, nil, func(c *pb.ContainerConfig) { c.Image.Image = again }).startIt(t)
	c.wantGoesOn(t, lines[len(lines)-1])

	elsewhere := filepath.Join(t.TempDir(), "checkpoint.tar")
	if err := os.Link(archive, elsewhere); err != nil {
		t.Fatal(err)
	}
	config := p.containerConfig("elsewhere", nil, func(c *pb.ContainerConfig) { c.Image.Image = elsewhere })
	_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "restore_archive_dirs") {
		t.Errorf("an archive elsewhere: %v; want FailedPrecondition that names restore_archive_dirs", err)
	}
}

// archiveLayer is an archive as the one layer of an image, as buildah makes it of `add archive.tar /`.
func archiveLayer(t *testing.T, archive string) registry.Layer {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var headers []tar.Header
	var bodies []string
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return registry.Entries(headers, bodies)
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		headers, bodies = append(headers, *h), append(bodies, string(body))
	}
}

// pushCheckpoint makes an image of an archive.
func (n *node) pushCheckpoint(t *testing.T, repo string, layer registry.Layer) string {
	t.Helper()
	_, err := images.AddImage(repo, "1", registry.Image{
		Layers: []registry.Layer{layer}, Config: ocispec.ImageConfig{},
		Annotations: map[string]string{"io.kubernetes.cri-o.annotations.checkpoint.name": "counter"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return images.Host() + "/" + repo + ":1"
}

// With crictl, as an administrator does it: checkpoint, pull the image made of it, create, start, logs.
func TestRestoreFromImage(t *testing.T) {
	n := restoringNode(t, map[string]string{"restore_from_images": "true"})
	p := n.runPod(t)
	first := p.run(t, sh(countAndEnd))
	first.goesOn(t)
	archive := filepath.Join(t.TempDir(), "checkpoint.tar")
	n.crictl(t, "checkpoint", "--export="+archive, first.id)
	at := first.lines(t)
	image := n.pushCheckpoint(t, "e2e/checkpoint", archiveLayer(t, archive))
	n.crictl(t, "pull", image)
	if err := n.removePod(ctx(t), p.id); err != nil {
		t.Fatal(err)
	}

	p = n.runPod(t)
	config := p.containerConfig("restored", nil, func(c *pb.ContainerConfig) {
		c.Image.Image, c.Labels = image, map[string]string{"a": "b"}
	})
	id := strings.TrimSpace(n.crictl(t, "create", p.id, writeConfig(t, "c.json", config), writeConfig(t, "pod.json", p.config)))
	n.crictl(t, "rmi", image) // what was needed of it is in the container
	n.restart(t, stopSignal)
	n.crictl(t, "start", id)
	c := &container{pod: p, id: id, logPath: filepath.Join(p.config.LogDirectory, config.LogPath)}
	if s := c.status(t); s.Labels["a"] != "b" || s.Metadata.Name != "restored" || s.State != pb.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status = %v; want the new name and labels, running", s)
	}
	if out := n.crictl(t, "logs", "--tail=2", id); !strings.HasPrefix(out, "line ") {
		t.Errorf("crictl logs = %q; want its lines", out)
	}
	pids, err := os.ReadFile(n.groupOf(p, c) + "/cgroup.procs")
	if err != nil || len(strings.Fields(string(pids))) == 0 {
		t.Errorf("processes of the container's group: %q, %v; want what was restored", pids, err)
	}
	n.restart(t, stopSignal) // while it runs
	c.wantGoesOn(t, at[len(at)-1])
	if entries, err := os.ReadDir(n.path("state", "bundles")); err != nil || len(entries) > 0 {
		t.Errorf("bundles: %v, %v; want none", entries, err)
	}
	if _, err := os.Stat(n.path("root", "layers", id, "restore")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("criu's images are still there: %v", err)
	}
}

// Images with checkpoints are refused unless the administrator wants them, and what is no checkpoint is.
func TestRestoreRefused(t *testing.T) {
	n := restoringNode(t, nil)
	image := n.pushCheckpoint(t, "e2e/refused", registry.Files(map[string]string{"config.dump": "{}"}))
	if _, err := n.pull(t, image, nil); err != nil {
		t.Fatal(err)
	}
	p := n.runPod(t)
	create := func(image string) error {
		config := p.containerConfig("refused", nil, func(c *pb.ContainerConfig) { c.Image.Image = image })
		_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		return err
	}
	if err := create(image); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "restore_from_images") {
		t.Errorf("an image with a checkpoint: %v; want FailedPrecondition that names restore_from_images", err)
	}
	n.config["restore_from_images"] = "true"
	n.restart(t, stopSignal)
	if err := create(image); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "spec.dump") {
		t.Errorf("an image without a specification: %v; want FailedPrecondition that says so", err)
	}
	spec := `{"ociVersion":"1.0.2","process":{"args":["/bin/sh"],"cwd":"/"},"linux":{}}`
	image = n.pushCheckpoint(t, "e2e/stranger", registry.Files(map[string]string{
		"config.dump": `{"id":"x","rootfsImage":"example.invalid/not/here:1"}`, "spec.dump": spec,
	}))
	if _, err := n.pull(t, image, nil); err != nil {
		t.Fatal(err)
	}
	if err := create(image); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "example.invalid/not/here:1") {
		t.Errorf("a checkpoint of an image that is not here: %v; want FailedPrecondition that names it", err)
	}
}

// A pod of two containers, one with a terminal, goes on in another pod.
func TestRestorePod(t *testing.T) {
	n := restoringNode(t, nil)
	for name, mode := range map[string]pb.NamespaceMode{"own processes": pb.NamespaceMode_CONTAINER, "shared processes": pb.NamespaceMode_POD} {
		t.Run(name, func(t *testing.T) {
			shared := func(c *pb.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = mode }
			p := n.runPod(t, shared)
			volume := t.TempDir()
			mount := func(c *pb.ContainerConfig) {
				c.Mounts = []*pb.Mount{{ContainerPath: "/volume", HostPath: volume}}
			}
			counter := p.containerConfig("counter", sh(countAndEnd), mount)
			counter.Envs = []*pb.KeyValue{{Key: "A", Value: []byte("b")}}
			terminal := p.containerConfig("terminal", sh(countAndEnd), func(c *pb.ContainerConfig) { c.Tty, c.Stdin = true, true })
			configs := []*pb.ContainerConfig{counter, terminal}
			var ids []string
			for _, config := range configs {
				c := p.createConfig(t, config)
				c.startIt(t).goesOn(t)
				ids = append(ids, c.id)
			}
			dir := t.TempDir()
			bounded, cancel := context.WithTimeout(t.Context(), callTimeout)
			defer cancel()
			if _, err := n.CheckpointPod(bounded, &pb.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: dir, ContainerIds: ids}); err != nil {
				t.Fatal(err)
			}
			last := len((&container{pod: p, id: ids[0], logPath: filepath.Join(p.config.LogDirectory, counter.LogPath)}).lines(t))
			if err := n.removePod(ctx(t), p.id); err != nil {
				t.Fatal(err)
			}

			req := &pb.RestorePodRequest{CheckpointPath: dir, Config: n.podConfig(shared), ContainerConfigs: configs}
			n.remember("restored to "+req.Config.Metadata.Name, req.Config)
			n.wantRestoreRefused(t, req)
			before := n.traces()
			resp, err := n.RestorePod(bounded, req)
			if err != nil {
				t.Fatalf("%v\nbefore: %v", err, before)
			}
			again, err := n.RestorePod(bounded, req)
			if err != nil || again.PodSandboxId != resp.PodSandboxId {
				t.Errorf("a second call = %v, %v; want the same pod", again, err)
			}
			p = &pod{node: n, id: resp.PodSandboxId, config: req.Config}
			n.remember(p.id, p.config)
			t.Cleanup(func() {
				if err := n.removePod(context.Background(), p.id); err != nil {
					t.Error(err)
				}
			})
			if len(resp.RestoredContainers) != 2 {
				t.Fatalf("restored: %v; want two containers", resp.RestoredContainers)
			}
			for i, r := range resp.RestoredContainers {
				c := &container{pod: p, id: r.ContainerId, logPath: filepath.Join(p.config.LogDirectory, configs[i].LogPath)}
				if s := c.status(t); s.Metadata.Name != r.Name || r.Name != configs[i].Metadata.Name || s.State != pb.ContainerState_CONTAINER_CREATED {
					t.Errorf("%s: %v; want it created", r.Name, s)
				}
				c.startIt(t)
				c.wantGoesOn(t, last)
			}
		})
	}
}

// createConfig creates a container of a configuration.
func (p *pod) createConfig(t *testing.T, config *pb.ContainerConfig) *container {
	t.Helper()
	resp, err := p.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		t.Fatal(err)
	}
	return &container{pod: p, id: resp.ContainerId, logPath: filepath.Join(p.config.LogDirectory, config.LogPath)}
}

// wantRestoreRefused makes requests that do not fit the checkpoint, of which nothing may be left.
func (n *node) wantRestoreRefused(t *testing.T, good *pb.RestorePodRequest) {
	t.Helper()
	bounded, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	for name, tc := range map[string]struct {
		change func(*pb.RestorePodRequest)
		says   string
		code   codes.Code
	}{
		"an option":           {func(r *pb.RestorePodRequest) { r.Options = map[string]string{"a": "b"} }, "options[a]", codes.InvalidArgument},
		"an unknown handler":  {func(r *pb.RestorePodRequest) { r.RuntimeHandler = "nobody" }, "runtime_handler", codes.InvalidArgument},
		"a relative path":     {func(r *pb.RestorePodRequest) { r.CheckpointPath = "x" }, "checkpoint_path", codes.InvalidArgument},
		"no such path":        {func(r *pb.RestorePodRequest) { r.CheckpointPath = "/nonexistent" }, "checkpoint_path", codes.InvalidArgument},
		"no containers":       {func(r *pb.RestorePodRequest) { r.ContainerConfigs = nil }, "container_configs", codes.InvalidArgument},
		"one container":       {func(r *pb.RestorePodRequest) { r.ContainerConfigs = r.ContainerConfigs[:1] }, "terminal", codes.InvalidArgument},
		"twice the same":      {func(r *pb.RestorePodRequest) { r.ContainerConfigs[1] = r.ContainerConfigs[0] }, "twice", codes.InvalidArgument},
		"another name":        {func(r *pb.RestorePodRequest) { r.ContainerConfigs[0].Metadata.Name = "other" }, "other", codes.InvalidArgument},
		"another command":     {func(r *pb.RestorePodRequest) { r.ContainerConfigs[0].Command = sh("true") }, "config.command", codes.InvalidArgument},
		"another environment": {func(r *pb.RestorePodRequest) { r.ContainerConfigs[0].Envs[0].Value = []byte("c") }, "config.envs: A", codes.InvalidArgument},
		"another folder":      {func(r *pb.RestorePodRequest) { r.ContainerConfigs[0].WorkingDir = "/tmp" }, "config.working_dir", codes.InvalidArgument},
		"another image":       {func(r *pb.RestorePodRequest) { r.ContainerConfigs[0].Image.Image = web() }, "image", codes.InvalidArgument},
		"an image not here":   {func(r *pb.RestorePodRequest) { r.ContainerConfigs[0].Image.Image = "a/b:c" }, "a/b:c", codes.NotFound},
		"one mount less":      {func(r *pb.RestorePodRequest) { r.ContainerConfigs[0].Mounts = nil }, "/volume is missing", codes.InvalidArgument},
		"a read-only mount":   {func(r *pb.RestorePodRequest) { r.ContainerConfigs[0].Mounts[0].Readonly = true }, "/volume: ro", codes.InvalidArgument},
		"no terminal":         {func(r *pb.RestorePodRequest) { r.ContainerConfigs[1].Tty = false }, "config.tty", codes.InvalidArgument},
		"more rights": {func(r *pb.RestorePodRequest) {
			r.ContainerConfigs[0].Linux.SecurityContext.Capabilities = &pb.Capability{AddCapabilities: []string{"NET_ADMIN"}}
		}, "capabilities", codes.InvalidArgument},
		"fewer masks": {func(r *pb.RestorePodRequest) { r.ContainerConfigs[0].Linux.SecurityContext.MaskedPaths = nil }, "masked_paths", codes.InvalidArgument},
		"the node's IPC": {func(r *pb.RestorePodRequest) {
			r.Config.Linux.SecurityContext.NamespaceOptions.Ipc = pb.NamespaceMode_NODE
		}, "ipc", codes.InvalidArgument},
	} {
		req := proto.CloneOf(good)
		tc.change(req)
		_, err := n.RestorePod(bounded, req)
		if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v; want %s and %q", name, err, tc.code, tc.says)
		}
	}
	if _, err := n.RestorePod(context.Background(), good); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("without a deadline: %v; want InvalidArgument", err)
	}
	brief, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := n.RestorePod(brief, good); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("with a short deadline: %v; want DeadlineExceeded", err)
	}
	eventually(t, "nothing is left of what was refused", func() bool {
		list, err := n.ListPodSandbox(ctx(t), &pb.ListPodSandboxRequest{})
		return err == nil && len(list.Items) == 0
	})
}

// rewrite copies an archive with one entry changed.
func rewrite(t *testing.T, from, to, entry string, change func([]byte) []byte) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	w, changed := tar.NewWriter(out), false
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == entry {
			body, changed = change(body), true
			h.Size = int64(len(body))
		}
		err = w.WriteHeader(h)
		if err == nil {
			_, err = w.Write(body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), out.Close()); err != nil || !changed {
		t.Fatalf("%s: changed %v, %v", entry, changed, err)
	}
}

// An archive that says less of its processes than they have: rights and mounts that the new container is not to have.
// Nothing of them is executed.
func TestRestoreVerifies(t *testing.T) {
	dir := t.TempDir()
	n := restoringNode(t, map[string]string{"restore_archive_dirs": "[" + quote(dir) + "]"})
	for name, tc := range map[string]struct {
		edit   edit              // of the container that is checkpointed
		forget func(*specs.Spec) // of what the archive says of it
		says   string
	}{
		"capabilities": {
			func(c *pb.ContainerConfig) {
				c.Linux.SecurityContext.Capabilities = &pb.Capability{AddCapabilities: []string{"NET_ADMIN"}}
			},
			func(s *specs.Spec) {
				for _, set := range []*[]string{&s.Process.Capabilities.Bounding, &s.Process.Capabilities.Effective, &s.Process.Capabilities.Permitted} {
					*set = slices.DeleteFunc(*set, func(c string) bool { return c == "CAP_NET_ADMIN" })
				}
			}, "capabilities 0x1000",
		},
		"seccomp": {
			func(c *pb.ContainerConfig) {
				c.Linux.SecurityContext.Seccomp = &pb.SecurityProfile{ProfileType: pb.SecurityProfile_Unconfined}
			},
			func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno} }, "no seccomp filter",
		},
		"masks": {
			func(c *pb.ContainerConfig) { c.Linux.SecurityContext.MaskedPaths = []string{"/proc/kcore"} },
			func(s *specs.Spec) {
				s.Linux.MaskedPaths = []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"}
			}, "masked path /proc/keys",
		},
		"a writable root": {
			func(*pb.ContainerConfig) {},
			func(s *specs.Spec) {
				s.Root.Readonly = true
				for i := range s.Mounts {
					if strings.HasPrefix(s.Mounts[i].Destination, "/etc/") {
						s.Mounts[i].Options = append(s.Mounts[i].Options, "ro")
					}
				}
			}, "root / is writable",
		},
	} {
		archive, tampered := filepath.Join(dir, "checkpoint.tar"), filepath.Join(dir, "tampered.tar")
		shared := t.TempDir()
		mount := func(c *pb.ContainerConfig) {
			c.Mounts = []*pb.Mount{{ContainerPath: "/shared", HostPath: shared}}
		}
		first := n.runPod(t)
		c := first.run(t, sh("while :; do echo x >>/shared/ran; echo x >/written; sleep 0.05; done"), mount, tc.edit)
		eventually(t, "it runs", func() bool { _, err := os.Stat(filepath.Join(shared, "ran")); return err == nil })
		if _, err := n.CheckpointContainer(ctx(t), &pb.CheckpointContainerRequest{ContainerId: c.id, Location: archive}); err != nil {
			t.Fatal(err)
		}
		if err := n.removePod(ctx(t), first.id); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(shared, "ran")); err != nil {
			t.Fatal(err)
		}
		rewrite(t, archive, tampered, "spec.dump", func(text []byte) []byte {
			var spec specs.Spec
			if err := json.Unmarshal(text, &spec); err != nil {
				t.Fatal(err)
			}
			tc.forget(&spec)
			text, err := json.Marshal(&spec)
			if err != nil {
				t.Fatal(err)
			}
			return text
		})
		p := n.runPod(t)
		c = p.create(t, nil, mount, func(c *pb.ContainerConfig) {
			c.Image.Image = tampered
			c.Linux.SecurityContext.ReadonlyRootfs = name == "a writable root"
		})
		_, err := n.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: c.id})
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: start = %v; want an error that says %q", name, err, tc.says)
		}
		if s := c.status(t); s.State != pb.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" {
			t.Errorf("%s: %v; want exited, StartError", name, s)
		}
		if _, err := os.Stat(filepath.Join(shared, "ran")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the restored process has run", name)
		}
		if _, err := os.Stat(n.groupOf(p, c)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: its control group is still there: %v", name, err)
		}
	}
}

// The daemon dies in the middle of a restore: the next one says so, and nothing is left.
func TestRestoreInterrupted(t *testing.T) {
	dir := t.TempDir()
	n := restoringNode(t, map[string]string{"restore_archive_dirs": "[" + quote(dir) + "]"})
	archive := filepath.Join(dir, "checkpoint.tar")
	n.checkpointed(t, archive)
	// A criu that takes its time where a file says so.
	slow, program := filepath.Join(t.TempDir(), "slow"), filepath.Join(t.TempDir(), "criu")
	script := "#!/bin/sh\n[ \"$1\" != swrk ] || [ ! -e " + slow + " ] || sleep 5\nexec " + testtools.CRIU(t) + " \"$@\"\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n.config["criu_program"] = quote(program)
	n.restart(t, stopSignal)
	p := n.runPod(t)
	c := p.create(t, nil, func(c *pb.ContainerConfig) { c.Image.Image = archive })
	other := p.create(t, nil, func(c *pb.ContainerConfig) { c.Image.Image = archive })
	if err := os.WriteFile(slow, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := n.StartContainer(brief, &pb.StartContainerRequest{ContainerId: c.id})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("start with a short deadline = %v; want DeadlineExceeded", err)
	}
	n.restart(t, syscall.SIGKILL)
	if err := os.Remove(slow); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the interrupted restore has an end", func() bool { return c.status(t).State == pb.ContainerState_CONTAINER_EXITED })
	if s := c.status(t); s.Reason != "StartError" {
		t.Errorf("after the interruption: %v; want StartError", s)
	}
	other.startIt(t)
	other.goesOn(t)
}

// checkpointctl reads what is written here.
func TestCheckpointctl(t *testing.T) {
	n := restoringNode(t, nil)
	checkpointctl := testtools.Checkpointctl(t)
	p := n.runPod(t)
	c := p.run(t, sh(countAndEnd))
	c.goesOn(t)
	archive := filepath.Join(t.TempDir(), "checkpoint.tar")
	if _, err := n.CheckpointContainer(ctx(t), &pb.CheckpointContainerRequest{ContainerId: c.id, Location: archive}); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(checkpointctl, args...).CombinedOutput()
		if err != nil {
			t.Errorf("checkpointctl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for _, want := range []string{c.status(t).Metadata.Name, busybox(), c.id[:12]} {
		if out := run("show", archive); !strings.Contains(out, want) {
			t.Errorf("checkpointctl show: %s\nwant %q in it", out, want)
		}
	}
	for _, want := range []string{"Process tree", "sh -c", "Overview of mounts", "/etc/hosts"} {
		if out := run("inspect", "--all", archive); !strings.Contains(out, want) {
			t.Errorf("checkpointctl inspect --all: %s\nwant %q in it", out, want)
		}
	}
	var inspected []map[string]any
	if out := run("inspect", "--format=json", archive); json.Unmarshal([]byte(out), &inspected) != nil || len(inspected) != 1 {
		t.Errorf("checkpointctl inspect --format=json: %s", out)
	}
}

// groupOf is the folder of a container's control group.
func (n *node) groupOf(p *pod, c *container) string {
	if unified() {
		return "/sys/fs/cgroup" + n.pods[p.id] + "/" + c.id
	}
	return "/sys/fs/cgroup/memory" + n.pods[p.id] + "/" + c.id
}
