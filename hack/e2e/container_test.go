package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// unified says whether the node has cgroup v2 alone.
func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

func TestContainerLife(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	c := p.create(t, sh("sleep 0.2; exit 42"), func(c *pb.ContainerConfig) {
		c.Labels, c.Annotations = map[string]string{"l": "1"}, map[string]string{"a": "2"}
	})
	if s := c.status(t); s.State != pb.ContainerState_CONTAINER_CREATED || s.CreatedAt == 0 || s.StartedAt != 0 ||
		s.Labels["l"] != "1" || s.Annotations["a"] != "2" || s.LogPath != c.logPath {
		t.Errorf("after CreateContainer: %v; want created, as it was asked for", s)
	}
	c.startIt(t)
	if s := c.status(t); s.State != pb.ContainerState_CONTAINER_RUNNING || s.StartedAt < s.CreatedAt || s.ImageId == "" || s.ImageRef == "" {
		t.Errorf("after StartContainer: %v; want running, with its image", s)
	}
	_, err := c.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: c.id})
	if err == nil {
		t.Error("StartContainer() of a running container: no error")
	}
	if s := c.wait(t); s.ExitCode != 42 || s.Reason != "Error" || s.FinishedAt < s.StartedAt {
		t.Errorf("after its end: %v; want 42, Error and when", s)
	}
	c.stopIt(t, 10) // has ended already
	for range 2 {
		if _, err := c.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: c.id}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.ContainerStatus(ctx(t), &pb.ContainerStatusRequest{ContainerId: c.id})
	if status.Code(err) != codes.NotFound {
		t.Errorf("ContainerStatus() of a removed container = %v; want NotFound", err)
	}
	if s := p.run(t, sh("true")).wait(t); s.ExitCode != 0 || s.Reason != "Completed" {
		t.Errorf("true: %v; want 0, Completed", s)
	}
}

// TestRemoveRunning: RemoveContainer kills what runs.
func TestRemoveRunning(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	c := p.run(t, []string{"/bin/sleep", "1000019"})
	if _, err := c.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	if left := processesOf("sleep\x001000019"); len(left) > 0 {
		t.Errorf("processes %v are left of a removed container", left)
	}
}

func TestListContainers(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	running := p.sleeping(t, func(c *pb.ContainerConfig) { c.Labels = map[string]string{"which": "running"} })
	exited := p.run(t, sh("exit 1"))
	exited.wait(t)
	for name, tc := range map[string]struct {
		filter *pb.ContainerFilter
		want   []string
	}{
		"pod":     {&pb.ContainerFilter{}, []string{running.id, exited.id}},
		"id":      {&pb.ContainerFilter{Id: exited.id}, []string{exited.id}},
		"running": {&pb.ContainerFilter{State: &pb.ContainerStateValue{State: pb.ContainerState_CONTAINER_RUNNING}}, []string{running.id}},
		"exited":  {&pb.ContainerFilter{State: &pb.ContainerStateValue{State: pb.ContainerState_CONTAINER_EXITED}}, []string{exited.id}},
		"label":   {&pb.ContainerFilter{LabelSelector: map[string]string{"which": "running"}}, []string{running.id}},
		"none":    {&pb.ContainerFilter{LabelSelector: map[string]string{"which": "other"}}, nil},
	} {
		tc.filter.PodSandboxId = p.id
		list, err := p.ListContainers(ctx(t), &pb.ListContainersRequest{Filter: tc.filter})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, c := range list.Containers {
			got[c.Id] = true
		}
		if len(got) != len(tc.want) {
			t.Errorf("ListContainers(%s) = %v; want %v", name, list.Containers, tc.want)
		}
		for _, id := range tc.want {
			if !got[id] {
				t.Errorf("ListContainers(%s) = %v; want %s in it", name, list.Containers, id)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	limits := func(c *pb.ContainerConfig) {
		c.Linux.Resources = &pb.LinuxContainerResources{
			MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, CpusetCpus: "0", OomScoreAdj: 500,
		}
	}
	files, want := "memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus",
		"67108864\n50000\n100000\n512\n0\n"
	if unified() {
		// 512 shares are a weight of 20, or of 59 where the runtime follows the newer conversion.
		files, want = "memory.max cpu.max cpuset.cpus", "67108864\n50000 100000\n0\n"
	}
	if got := p.output(t, "cd /sys/fs/cgroup && cat "+files, limits); got != want {
		t.Errorf("%s = %q; want %q", files, got, want)
	}
	if got := p.output(t, "cat /proc/self/oom_score_adj; nproc", limits); got != "500\n1\n" {
		t.Errorf("oom_score_adj and nproc = %q; want 500 and 1", got)
	}
	if got := p.output(t, "echo x > /sys/fs/cgroup/cgroup.procs 2>/dev/null || mkdir /sys/fs/cgroup/*/own 2>/dev/null || echo denied"); got != "denied\n" {
		t.Errorf("writing to /sys/fs/cgroup: %q; want it denied", got)
	}
}

// A fork bomb stays within its container.
func TestPidsLimit(t *testing.T) {
	t.Parallel()
	p := newNode(t, map[string]string{"pids_limit": "8"}).runPod(t)
	file := "pids/pids.max"
	if unified() {
		file = "pids.max"
	}
	c := p.run(t, sh("cat /sys/fs/cgroup/"+file+"; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; echo not reached"))
	status := c.wait(t)
	if log := c.rawLog(t); status.ExitCode == 0 || !strings.Contains(log, "stdout F 8\n") ||
		!strings.Contains(log, "fork") || strings.Contains(log, "not reached") {
		t.Errorf("ten processes where eight are allowed: exit code %d, log %q; want an error of fork", status.ExitCode, log)
	}
}

func TestOOM(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	c := p.run(t, []string{"/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"}, func(c *pb.ContainerConfig) {
		c.Linux.Resources = &pb.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}
	})
	if s := c.wait(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("after using more than the limit: %d %s %s; want 137 OOMKilled", s.ExitCode, s.Reason, s.Message)
	}
	// A limit in bytes where somebody forgot the unit.
	tiny := p.create(t, sh("true"), func(c *pb.ContainerConfig) {
		c.Linux.Resources = &pb.LinuxContainerResources{MemoryLimitInBytes: 64, MemorySwapLimitInBytes: 64}
	})
	const want = "out of memory: the container's memory limit is too low"
	if _, err := p.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: tiny.id}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("StartContainer with a limit of 64 bytes = %v; want %q", err, want)
	}
}

func TestExitBySignal(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t, namespaces(func(o *pb.NamespaceOption) { o.Pid = pb.NamespaceMode_POD }))
	// Nobody is PID 1 here, so that signals have their default effect.
	for sig, want := range map[string]int32{"SEGV": 139, "KILL": 137, "USR1": 138} {
		if s := p.run(t, sh("kill -"+sig+" $$; sleep 10")).wait(t); s.ExitCode != want {
			t.Errorf("killed by SIG%s: exit code %d; want %d", sig, s.ExitCode, want)
		}
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	const trap = "trap 'echo %s; exit 3' %[1]s; echo ready; while :; do sleep 0.05; done"
	ready := func(c *container) *container {
		eventually(t, "ready", func() bool { return strings.Contains(c.rawLog(t), "ready") })
		return c
	}
	t.Run("grace", func(t *testing.T) {
		c := ready(p.run(t, sh(fmt.Sprintf(trap, "TERM"))))
		begin := time.Now()
		c.stopIt(t, 30)
		if s := c.status(t); s.ExitCode != 3 || time.Since(begin) > 10*time.Second {
			t.Errorf("exit code %d after %s; want 3 as soon as the process ends", s.ExitCode, time.Since(begin))
		}
	})
	t.Run("kill after grace", func(t *testing.T) {
		c := ready(p.run(t, sh("trap '' TERM; echo ready; while :; do sleep 1; done")))
		begin := time.Now()
		c.stopIt(t, 1)
		if s, took := c.status(t), time.Since(begin); s.ExitCode != 137 || took < time.Second {
			t.Errorf("exit code %d after %s; want 137 after 1 s", s.ExitCode, took)
		}
	})
	t.Run("kill", func(t *testing.T) {
		c := ready(p.run(t, sh(fmt.Sprintf(trap, "TERM"))))
		c.stopIt(t, 0)
		if s := c.status(t); s.ExitCode != 137 {
			t.Errorf("exit code %d; want 137", s.ExitCode)
		}
	})
	t.Run("signal of the CRI", func(t *testing.T) {
		c := ready(p.run(t, sh(fmt.Sprintf(trap, "USR1")), func(c *pb.ContainerConfig) { c.StopSignal = pb.Signal_SIGNAL_SIGUSR1 }))
		c.stopIt(t, 30)
		if s := c.status(t); s.ExitCode != 3 || s.StopSignal != pb.Signal_SIGNAL_SIGUSR1 {
			t.Errorf("exit code %d, stop signal %s; want 3, SIGUSR1", s.ExitCode, s.StopSignal)
		}
	})
	t.Run("signal of the image", func(t *testing.T) {
		name := n.pushImage(t, "e2e/stopsignal", ocispec.ImageConfig{StopSignal: "SIGUSR2"})
		c := ready(p.run(t, sh(fmt.Sprintf(trap, "USR2")), func(c *pb.ContainerConfig) { c.Image.Image = name }))
		c.stopIt(t, 30)
		if s := c.status(t); s.ExitCode != 3 {
			t.Errorf("exit code %d; want 3", s.ExitCode)
		}
	})
	t.Run("shorter grace overrides", func(t *testing.T) {
		c := ready(p.run(t, sh("trap '' TERM; echo ready; while :; do sleep 1; done")))
		long := make(chan error, 1)
		context := ctx(t)
		go func() {
			_, err := c.StopContainer(context, &pb.StopContainerRequest{ContainerId: c.id, Timeout: 50})
			long <- err
		}()
		begin := time.Now()
		c.stopIt(t, 0)
		if err := <-long; err != nil || time.Since(begin) > 20*time.Second {
			t.Errorf("the call with the longer grace: %v after %s; want it to end with the container", err, time.Since(begin))
		}
	})
}

// pushImage makes an image of busybox and one file, with a configuration, and pulls it.
func (n *node) pushImage(t *testing.T, repo string, config ocispec.ImageConfig, files ...registry.Layer) string {
	t.Helper()
	l, err := registry.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	if config.Env == nil {
		config.Env = []string{"PATH=/bin"}
	}
	image := registry.Image{Layers: append([]registry.Layer{l}, files...), Config: config}
	if _, err := images.AddImage(repo, "1", image); err != nil {
		t.Fatal(err)
	}
	name := images.Host() + "/" + repo + ":1"
	if _, err := n.pull(t, name, nil); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestImageDefaults(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	name := n.pushImage(t, "e2e/defaults", ocispec.ImageConfig{
		Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"echo from-cmd"},
		Env: []string{"PATH=/bin", "A=image", "B=image"}, WorkingDir: "/mnt/work", User: "app:extra",
	})
	p := n.runPod(t)
	useImage := func(c *pb.ContainerConfig) { c.Image.Image = name }
	c := p.run(t, nil, useImage)
	c.wait(t)
	if got := c.log(t, "stdout"); got != "from-cmd\n" {
		t.Errorf("entrypoint and cmd say %q; want from-cmd", got)
	}
	c = p.run(t, nil, useImage, func(c *pb.ContainerConfig) {
		c.Args = []string{"echo $A $B $C; pwd; id"}
		c.Envs = []*pb.KeyValue{{Key: "B", Value: []byte("cri")}, {Key: "C", Value: []byte("a b")}}
	})
	c.wait(t)
	if got, want := c.log(t, "stdout"), "image cri a b\n/mnt/work\nuid=1000(app) gid=2000(extra) groups=2000(extra)\n"; got != want {
		t.Errorf("entrypoint with args says %q; want %q", got, want)
	}
	got := p.output(t, "pwd", useImage, func(c *pb.ContainerConfig) { c.WorkingDir = "/home/app" })
	if got != "/home/app\n" {
		t.Errorf("working_dir = %q; want /home/app", got)
	}
}

func TestUsers(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	id := func(v int64) *pb.Int64Value { return &pb.Int64Value{Value: v} }
	for name, tc := range map[string]struct {
		edit func(*pb.LinuxContainerSecurityContext)
		want string
	}{
		"root":     {func(*pb.LinuxContainerSecurityContext) {}, "0 0 0"},
		"uid":      {func(s *pb.LinuxContainerSecurityContext) { s.RunAsUser = id(1000) }, "1000 1000 1000 2000"},
		"unknown":  {func(s *pb.LinuxContainerSecurityContext) { s.RunAsUser = id(4321) }, "4321 0 0"},
		"username": {func(s *pb.LinuxContainerSecurityContext) { s.RunAsUsername = "app" }, "1000 1000 1000 2000"},
		"group":    {func(s *pb.LinuxContainerSecurityContext) { s.RunAsUser, s.RunAsGroup = id(1000), id(77) }, "1000 77 77 2000"},
		"merged groups": {func(s *pb.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = id(1000), []int64{5000}
		}, "1000 1000 1000 2000 5000"},
		"strict groups": {func(s *pb.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = id(1000), []int64{5000}
			s.SupplementalGroupsPolicy = pb.SupplementalGroupsPolicy_Strict
		}, "1000 1000 1000 5000"},
	} {
		c := p.run(t, sh("echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n)"), func(c *pb.ContainerConfig) {
			tc.edit(c.Linux.SecurityContext)
		})
		s := c.wait(t)
		if got := strings.TrimSpace(c.log(t, "stdout")); got != tc.want {
			t.Errorf("%s: user, group and groups = %q; want %q", name, got, tc.want)
		}
		if u := s.User.GetLinux(); u == nil || !strings.HasPrefix(tc.want, fmt.Sprintf("%d %d ", u.Uid, u.Gid)) {
			t.Errorf("%s: status says user %v; want %s", name, u, tc.want)
		}
	}
	name := "nobody-knows"
	c := p.containerConfig("nobody", sh("true"), func(c *pb.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = name })
	if err := p.createAndStart(t, c); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("with a user that is not in /etc/passwd: %v; want an error that names it", err)
	}
}

// createAndStart returns the error of whichever fails.
func (p *pod) createAndStart(t *testing.T, config *pb.ContainerConfig) error {
	t.Helper()
	resp, err := p.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		return err
	}
	_, err = p.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: resp.ContainerId})
	return err
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	for name, tc := range map[string]struct {
		command []string
		edit    edit
		want    string
	}{
		"no such program":   {[]string{"/bin/nothing-here"}, nil, "/bin/nothing-here"},
		"not on the path":   {[]string{"nothing-here"}, nil, "nothing-here"},
		"not executable":    {[]string{"/etc/passwd"}, nil, "/etc/passwd"},
		"no such image":     {sh("true"), func(c *pb.ContainerConfig) { c.Image.Image = "registry.test/never:pulled" }, "never:pulled"},
		"no such host path": {sh("true"), mount(&pb.Mount{HostPath: "/no/such/path", ContainerPath: "/x"}), "/no/such/path"},
		"no such device": {sh("true"), func(c *pb.ContainerConfig) {
			c.Devices = []*pb.Device{{HostPath: "/dev/nothing-here", ContainerPath: "/dev/x", Permissions: "rwm"}}
		}, "/dev/nothing-here"},
		"no such CDI device": {sh("true"), func(c *pb.ContainerConfig) { c.CDIDevices = []*pb.CDIDevice{{Name: "vendor.test/class=none"}} }, "vendor.test/class=none"},
	} {
		config := p.containerConfig(strings.ReplaceAll(name, " ", "-"), tc.command)
		if tc.edit != nil {
			tc.edit(config)
		}
		if err := p.createAndStart(t, config); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want an error with %q", name, err, tc.want)
		}
	}
}

func TestTTYAndStdin(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	c := p.run(t, sh("test -t 0 && test -t 1 && test -t 2 && tty"), func(c *pb.ContainerConfig) { c.Tty = true })
	if s := c.wait(t); s.ExitCode != 0 || !strings.Contains(c.rawLog(t), " stdout F /dev/") {
		t.Errorf("with tty: %d, %q; want terminals", s.ExitCode, c.rawLog(t))
	}
	if got := p.output(t, "test -t 0 || readlink /proc/self/fd/0; read x || echo end; ls /proc/self/fd | wc -l"); got != "/dev/null\nend\n4\n" {
		t.Errorf("without stdin: %q; want /dev/null, its end, and no descriptors but 0-2 and that of ls", got)
	}
	c = p.run(t, sh("read x || echo end"), func(c *pb.ContainerConfig) { c.Stdin = true })
	time.Sleep(100 * time.Millisecond)
	if s := c.status(t); s.State != pb.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a container with stdin that nobody has attached to is %v; want it to wait", s.State)
	}
	c.stopIt(t, 0)
}
