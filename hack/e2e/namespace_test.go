package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespaces edits the namespaces of a pod; its containers inherit them.
func namespaces(edit func(*pb.NamespaceOption)) func(*pb.PodSandboxConfig) {
	return func(c *pb.PodSandboxConfig) { edit(c.Linux.SecurityContext.NamespaceOptions) }
}

func TestHostPID(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t, namespaces(func(o *pb.NamespaceOption) { o.Pid = pb.NamespaceMode_NODE }))
	if got, want := p.output(t, "readlink /proc/self/ns/pid"), namespace(t, "pid"); got != want {
		t.Errorf("PID namespace = %q; want the node's, %q", got, want)
	}
	// All of the container's processes go with it, although no PID namespace takes them.
	c := p.run(t, sh("sleep 1000017 & sleep 1000017"))
	eventually(t, "two sleeps", func() bool { return len(processesOf("sleep\x001000017")) == 2 })
	c.stopIt(t, 0)
	eventually(t, "no sleep", func() bool { return len(processesOf("sleep\x001000017")) == 0 })
}

// processesOf lists the processes with this in their command line; a zero byte ends an argument.
func processesOf(text string) (pids []string) {
	for _, e := range entries("/proc") {
		line, err := os.ReadFile("/proc/" + e + "/cmdline")
		if err == nil && strings.Contains(string(line), text) && !strings.Contains(string(line), "-c\x00") {
			pids = append(pids, e)
		}
	}
	return pids
}

func TestHostIPC(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t, namespaces(func(o *pb.NamespaceOption) { o.Ipc = pb.NamespaceMode_NODE }))
	if got, want := p.output(t, "readlink /proc/self/ns/ipc"), namespace(t, "ipc"); got != want {
		t.Errorf("IPC namespace = %q; want the node's, %q", got, want)
	}
	p = n.runPod(t)
	if got, foreign := p.output(t, "readlink /proc/self/ns/ipc"), namespace(t, "ipc"); got == foreign {
		t.Errorf("IPC namespace = %q; want the pod's own", got)
	}
}

// TestPodNamespaces: the containers of a pod share network, IPC, UTS and /dev/shm, and have mounts and PIDs each.
func TestPodNamespaces(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	const links = "for i in net ipc uts pid mnt cgroup; do readlink /proc/self/ns/$i; done"
	a, b := p.sleeping(t), p.sleeping(t)
	first := strings.Split(a.exec(t, links+"; echo here > /dev/shm/note"), "\n")
	second := strings.Split(b.exec(t, links), "\n")
	for i, kind := range []string{"net", "ipc", "uts", "pid", "mnt", "cgroup"} {
		if same := first[i] == second[i]; same != (i < 3) {
			t.Errorf("%s namespaces %s and %s: same is %v; want %v", kind, first[i], second[i], same, i < 3)
		}
		if first[i]+"\n" == namespace(t, kind) {
			t.Errorf("%s namespace is the node's", kind)
		}
	}
	if got := p.output(t, "cat /dev/shm/note"); got != "here\n" {
		t.Errorf("/dev/shm/note in another container = %q; want here", got)
	}
}

func TestSharedPID(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t, namespaces(func(o *pb.NamespaceOption) { o.Pid = pb.NamespaceMode_POD }))
	first := p.run(t, sh("trap 'exit 3' TERM; while :; do sleep 0.05; done"))
	second := p.sleeping(t)
	if a, b := first.exec(t, "readlink /proc/self/ns/pid"), second.exec(t, "readlink /proc/self/ns/pid"); a != b {
		t.Errorf("PID namespaces %q and %q; want one", a, b)
	}
	if got := first.exec(t, "ps -o pid,args"); !strings.Contains(got, "sleep 1000000") {
		t.Errorf("ps = %q; want the other container's sleep", got)
	}
	if got := first.exec(t, "echo $$"); got == "1\n" {
		t.Error("a container's process is PID 1 of the pod")
	}
	// Orphans are reaped by the pod's init.
	first.exec(t, "(sleep 0.01 &) ; sleep 0.1; ! ps -o stat,args | grep '^Z'")
	first.stopIt(t, 10)
	if s := first.status(t); s.ExitCode != 3 {
		t.Errorf("exit code after SIGTERM = %d; want 3", s.ExitCode)
	}
	if s := second.status(t); s.State != pb.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other container is %v; want running", s.State)
	}
	second.stopIt(t, 0)
	if s := second.status(t); s.ExitCode != 137 {
		t.Errorf("exit code after SIGKILL = %d; want 137", s.ExitCode)
	}
}

// TestSharedPIDKillsAll: what a container started goes with it, although the pod's PID namespace stays.
func TestSharedPIDKillsAll(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t, namespaces(func(o *pb.NamespaceOption) { o.Pid = pb.NamespaceMode_POD }))
	keeper := p.sleeping(t)
	c := p.run(t, sh("sleep 1000018 & sleep 1000018 & exit 0"))
	c.wait(t)
	eventually(t, "what the container started ends with it", func() bool {
		return !strings.Contains(keeper.exec(t, "ps -o args"), "1000018")
	})
}

// TestTargetPID: a debugging container sees the processes of the one it targets.
func TestTargetPID(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	target := p.sleeping(t)
	got := p.output(t, "readlink /proc/self/ns/pid; cat /proc/1/comm; ls /proc/1/root/bin/busybox", func(c *pb.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &pb.NamespaceOption{Pid: pb.NamespaceMode_TARGET, TargetId: target.id}
		c.Linux.SecurityContext.Capabilities = &pb.Capability{AddCapabilities: []string{"SYS_PTRACE"}}
	})
	want := fmt.Sprintf("%ssleep\n/proc/1/root/bin/busybox\n", target.exec(t, "readlink /proc/self/ns/pid"))
	if got != want {
		t.Errorf("in the target's PID namespace: %q; want %q", got, want)
	}
}
