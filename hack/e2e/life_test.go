package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestAttempts: a container is made again as the kubelet does it, under the same name with the next attempt.
func TestAttempts(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	var made []string
	for attempt := range uint32(3) {
		config := p.containerConfig("again", sh("exit 3"), func(c *pb.ContainerConfig) {
			c.Metadata.Attempt, c.LogPath = attempt, fmt.Sprintf("again/%d.log", attempt)
		})
		create := func() (string, error) {
			resp, err := p.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
			return resp.GetContainerId(), err
		}
		id, err := create()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := create(); err != nil || again != id {
			t.Errorf("CreateContainer() again = %s, %v; want %s", again, err, id)
		}
		config.Labels = map[string]string{"other": "1"}
		if _, err := create(); status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), id) {
			t.Errorf("CreateContainer() with another configuration = %v; want AlreadyExists, which names %s", err, id)
		}
		c := &container{pod: p, id: id, logPath: filepath.Join(p.config.LogDirectory, config.LogPath)}
		if s := c.startIt(t).wait(t); s.Metadata.Attempt != attempt || s.ExitCode != 3 || s.LogPath != c.logPath {
			t.Errorf("attempt %d: %v; want it to exit with 3, its log at %s", attempt, s, c.logPath)
		}
		if _, err := p.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: id}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("StartContainer() of an ended container = %v; want FailedPrecondition", err)
		}
		made = append(made, id)
	}
	list, err := p.ListContainers(ctx(t), &pb.ListContainersRequest{Filter: &pb.ContainerFilter{PodSandboxId: p.id}})
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, c := range list.Containers {
		listed = append(listed, c.Id)
	}
	slices.Reverse(listed)
	if !slices.Equal(listed, made) {
		t.Errorf("ListContainers() = %v; want %v, the newest first", listed, made)
	}
}

// TestTerminationMessage: the kubelet mounts a file of its own at the termination message path; it is written whatever the
// root file system and the user are.
func TestTerminationMessage(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	for name, at := range map[string]string{"default": "/dev/termination-log", "other": "/var/log/why"} {
		file := filepath.Join(n.volume(t), name)
		if err := os.WriteFile(file, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, 0o666); err != nil { // whatever the umask
			t.Fatal(err)
		}
		p.output(t, "echo because > "+at, mount(&pb.Mount{HostPath: file, ContainerPath: at}), func(c *pb.ContainerConfig) {
			c.Linux.SecurityContext.ReadonlyRootfs = true
			c.Linux.SecurityContext.RunAsUser = &pb.Int64Value{Value: 1000}
		})
		if text, err := os.ReadFile(file); err != nil || string(text) != "because\n" {
			t.Errorf("%s: the message = %q, %v; want because", at, text, err)
		}
	}
}

// TestStopSignals: those of the image by number and beyond the standard ones.
func TestStopSignals(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	for signal, number := range map[string]int{"SIGRTMIN+3": 37, "37": 37, "INT": 2, "sigquit": 3} {
		repo := "e2e/stop-" + strings.ToLower(strings.ReplaceAll(signal, "+", "-"))
		name := n.pushImage(t, repo, ocispec.ImageConfig{StopSignal: signal})
		c := p.run(t, sh(fmt.Sprintf("trap 'exit 5' %d; echo ready; while :; do sleep 0.05; done", number)), func(c *pb.ContainerConfig) { c.Image.Image = name })
		eventually(t, "ready", func() bool { return strings.Contains(c.rawLog(t), "ready") })
		c.stopIt(t, 30)
		if s := c.status(t); s.ExitCode != 5 {
			t.Errorf("%s: exit code %d; want 5, from the trap of signal %d", signal, s.ExitCode, number)
		}
	}
}

func TestLogPaths(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	quiet := p.run(t, sh("echo nobody keeps this; exit 4"), func(c *pb.ContainerConfig) { c.LogPath = "" })
	if s := quiet.wait(t); s.ExitCode != 4 || s.LogPath != "" {
		t.Errorf("without a log path: %v; want exit code 4 and no log", s)
	}
	deep := p.create(t, sh("echo here"), func(c *pb.ContainerConfig) { c.LogPath = "a/b/../c/0.log" })
	deep.startIt(t).wait(t)
	if got := deep.log(t, "stdout"); got != "here\n" || deep.status(t).LogPath != filepath.Join(p.config.LogDirectory, "a/c/0.log") {
		t.Errorf("log path in folders: %q at %s; want here, at a/c/0.log", got, deep.status(t).LogPath)
	}
}

// TestImageRules: what the image says and what the client does, as the CRI's command and args have it.
func TestImageRules(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	name := n.pushImage(t, "e2e/rules", ocispec.ImageConfig{
		Entrypoint: []string{"/bin/echo", "entry"}, Cmd: []string{"cmd"}, User: "1234:77", Env: []string{"PATH=/bin", "EMPTY="},
	})
	p := n.runPod(t)
	useImage := func(c *pb.ContainerConfig) { c.Image.Image = name }
	for _, tc := range []struct {
		name          string
		command, args []string
		want          string
	}{
		{"neither", nil, nil, "entry cmd\n"},
		{"args replace cmd", nil, []string{"args"}, "entry args\n"},
		{"command drops both", []string{"/bin/echo", "command"}, nil, "command\n"},
		{"both", []string{"/bin/echo", "command"}, []string{"args"}, "command args\n"},
		{"found on the image's path", []string{"echo", "path"}, nil, "path\n"},
	} {
		c := p.run(t, tc.command, useImage, func(c *pb.ContainerConfig) { c.Args = tc.args })
		c.wait(t)
		if got := c.log(t, "stdout"); got != tc.want {
			t.Errorf("%s: %q; want %q", tc.name, got, tc.want)
		}
	}
	// A user by number need not be in /etc/passwd, its home is / then, and a directory that is missing is made.
	if got, want := p.output(t, "echo $(id -u):$(id -g) $HOME ${EMPTY-unset}; pwd", useImage, func(c *pb.ContainerConfig) { c.WorkingDir = "/made/on/demand" }),
		"1234:77 /\n/made/on/demand\n"; got != want {
		t.Errorf("user, home and working directory = %q; want %q", got, want)
	}
	// The client's user wins, and takes the image's group with it.
	if got := p.output(t, "echo $(id -u):$(id -g)", useImage, func(c *pb.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &pb.Int64Value{Value: 1000}
	}); got != "1000:1000\n" {
		t.Errorf("run_as_user = %q; want 1000 and its group in /etc/passwd", got)
	}
}

// TestReportedGroups: the status has the groups that the process really has, by either policy.
func TestReportedGroups(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	for policy, want := range map[pb.SupplementalGroupsPolicy][]int64{
		pb.SupplementalGroupsPolicy_Merge: {1000, 2000, 5000}, pb.SupplementalGroupsPolicy_Strict: {1000, 5000},
	} {
		c := p.sleeping(t, func(c *pb.ContainerConfig) {
			s := c.Linux.SecurityContext
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = &pb.Int64Value{Value: 1000}, []int64{5000}, policy
		})
		got := slices.Sorted(slices.Values(c.status(t).User.GetLinux().GetSupplementalGroups()))
		real := strings.Fields(c.exec(t, "id -G"))
		var reals []int64
		for _, field := range real {
			var n int64
			fmt.Sscan(field, &n)
			reals = append(reals, n)
		}
		slices.Sort(reals)
		if !slices.Equal(got, want) || !slices.Equal(reals, want) {
			t.Errorf("%s: status says %v, the process has %v; want %v", policy, got, reals, want)
		}
	}
}

// TestPathOverrides: masked and read-only paths are the client's alone (procMount: Unmasked sends none).
func TestPathOverrides(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	paths := func(masked, readonly []string) edit {
		return func(c *pb.ContainerConfig) {
			c.Linux.SecurityContext.MaskedPaths, c.Linux.SecurityContext.ReadonlyPaths = masked, readonly
		}
	}
	const script = "test $(wc -c < /proc/timer_list) -gt 0 && echo open; echo mine 2>/dev/null > /proc/sys/kernel/domainname && echo writable; true"
	if got := p.output(t, script, paths(nil, nil)); got != "open\nwritable\n" {
		t.Errorf("without paths: %q; want nothing masked or read-only", got)
	}
	got := p.output(t, "cat /etc/passwd | wc -l; ls /bin/.. >/dev/null; ls /home | wc -l; touch /tmp/x 2>/dev/null || echo denied; ls /no/such 2>/dev/null || echo nowhere",
		paths([]string{"/etc/passwd", "/home", "/no/such"}, []string{"/tmp", "/no/such/either"}))
	if got != "0\n0\ndenied\nnowhere\n" {
		t.Errorf("own paths: %q; want a file and a folder masked, one read-only, and those that are not there passed over", got)
	}
}

func TestMountOptions(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	dir := n.volume(t)
	got := n.runPod(t).output(t, "grep ' /v ' /proc/mounts", mount(&pb.Mount{
		HostPath: dir, ContainerPath: "/v", MountOptions: []string{"nosuid", "nodev", "noexec", "noatime"},
	}))
	for _, option := range []string{"nosuid", "nodev", "noexec", "noatime", "rw"} {
		if !slices.Contains(strings.FieldsFunc(got, func(r rune) bool { return r == ',' || r == ' ' }), option) {
			t.Errorf("the mount is %q; want %s", got, option)
		}
	}
}

// TestSwapLimit: memory_swap_limit_in_bytes is of memory and swap together.
func TestSwapLimit(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	file, want := "memory/memory.memsw.limit_in_bytes", fmt.Sprint(96<<20)
	if unified() {
		file, want = "memory.swap.max", fmt.Sprint(32<<20)
	}
	c := p.sleeping(t, func(c *pb.ContainerConfig) {
		c.Linux.Resources = &pb.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20}
	})
	got := strings.TrimSpace(c.exec(t, "cat /sys/fs/cgroup/"+file+" 2>/dev/null || echo none"))
	if got == "none" {
		t.Skipf("needs accounting of swap: no %s", file)
	}
	if got != want {
		t.Errorf("%s = %s; want %s", file, got, want)
	}
}

// TestHugepageLimits: the kubelet sends a limit for each page size, 0 where the pod has none of them. That is nothing where
// the node has no such controller; another limit cannot be kept there and is refused.
func TestHugepageLimits(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	limit := func(bytes uint64) edit {
		return func(c *pb.ContainerConfig) {
			c.Linux.Resources.HugepageLimits = []*pb.HugepageLimit{{PageSize: "2MB", Limit: bytes}}
		}
	}
	p.output(t, "true", limit(0))
	file := "hugetlb/hugetlb.2MB.limit_in_bytes"
	if unified() {
		file = "hugetlb.2MB.max"
	}
	if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
		t.Skip("needs huge pages of 2 MB")
	}
	config := p.containerConfig("huge", sh("cat /sys/fs/cgroup/"+file), limit(4<<20))
	if !strings.Contains(p.output(t, "cat /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.controllers 2>/dev/null; true"), "hugetlb") {
		if err := p.createAndStart(t, config); err == nil || !strings.Contains(err.Error(), "hugetlb") {
			t.Errorf("a limit of huge pages without the controller: %v; want an error that names it", err)
		}
		return
	}
	if got := p.output(t, "cat /sys/fs/cgroup/"+file, limit(4<<20)); got != fmt.Sprintln(4<<20) {
		t.Errorf("%s = %q; want %d", file, got, 4<<20)
	}
}

// TestUnified: on cgroup v1 there is nothing that it could mean.
func TestUnified(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	config := p.containerConfig("unified", sh("cat /sys/fs/cgroup/memory.high"), func(c *pb.ContainerConfig) {
		c.Linux.Resources.Unified = map[string]string{"memory.high": "33554432"}
	})
	if unified() {
		if got := p.output(t, "cat /sys/fs/cgroup/memory.high", func(c *pb.ContainerConfig) { c.Linux.Resources = config.Linux.Resources }); got != "33554432\n" {
			t.Errorf("memory.high = %q; want what unified says", got)
		}
		return
	}
	if err := p.createAndStart(t, config); err == nil || !strings.Contains(err.Error(), "memory.high") {
		t.Errorf("unified on cgroup v1: %v; want an error that names the file", err)
	}
}

// TestNeverUnknown: no container and no pod has a state that says nothing, whatever happens to those who know of it.
func TestNeverUnknown(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.runPod(t)
	created, running, ended := p.create(t, sh("true")), p.sleeping(t), p.run(t, sh("exit 9"))
	ended.wait(t)
	dying := p.run(t, sh("sleep 0.2; exit 6"))
	want := map[string]pb.ContainerState{
		created.id: pb.ContainerState_CONTAINER_CREATED, running.id: pb.ContainerState_CONTAINER_RUNNING,
		ended.id: pb.ContainerState_CONTAINER_EXITED, dying.id: pb.ContainerState_CONTAINER_EXITED,
	}
	for range 3 {
		n.restart(t, syscall.SIGKILL)
		dying.wait(t)
		list, err := n.ListContainers(ctx(t), &pb.ListContainersRequest{})
		if err != nil || len(list.Containers) != len(want) {
			t.Fatalf("ListContainers() = %v, %v; want %d", list, err, len(want))
		}
		for _, c := range list.Containers {
			if c.State != want[c.Id] {
				t.Errorf("%s is %v; want %v", c.Id, c.State, want[c.Id])
			}
		}
		if s := dying.status(t); s.ExitCode != 6 || s.Reason != "Error" {
			t.Errorf("what ended while the daemon was killed: %v; want 6, Error", s)
		}
		if s := p.status(t); s.State != pb.PodSandboxState_SANDBOX_READY {
			t.Errorf("the pod is %v; want ready", s.State)
		}
	}
}
