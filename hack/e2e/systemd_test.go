package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// systemdNode is a node whose cgroups systemd makes.
func systemdNode(t *testing.T) *node {
	t.Helper()
	if _, err := os.Stat("/run/systemd/private"); err != nil {
		t.Skip("needs systemd as PID 1")
	}
	if !unified() {
		t.Skip("needs cgroup v2 alone")
	}
	return newNode(t, map[string]string{"cgroup_driver": `"systemd"`})
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// inSlice gives a pod a parent as a kubelet with the systemd driver does.
func inSlice(t *testing.T) func(*pb.PodSandboxConfig) {
	return func(c *pb.PodSandboxConfig) {
		c.Linux.CgroupParent = "crishime2e-" + c.Metadata.Name + ".slice"
		t.Cleanup(func() {
			_ = exec.Command("systemctl", "stop", c.Linux.CgroupParent).Run() // the kubelet's to remove
		})
	}
}

func TestSystemdDriver(t *testing.T) {
	n := systemdNode(t)
	t.Cleanup(func() { _ = exec.Command("systemctl", "stop", "crishime2e.slice").Run() }) // after the pods' own
	config, err := n.RuntimeConfig(ctx(t), &pb.RuntimeConfigRequest{})
	if err != nil || config.Linux.CgroupDriver != pb.CgroupDriver_SYSTEMD {
		t.Errorf("RuntimeConfig() = %v, %v; want SYSTEMD", config, err)
	}
	_, err = n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{Config: n.podConfig()})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "cgroup_parent") {
		t.Errorf("a parent that is no slice: %v; want InvalidArgument that names cgroup_parent", err)
	}
	p := n.runPod(t, hostNetwork, inSlice(t))
	t.Run("where", func(t *testing.T) {
		c := p.sleeping(t)
		host, err := os.ReadFile("/proc/" + strings.TrimSpace(containerPID(t, c)) + "/cgroup")
		want := "0::/crishime2e.slice/" + p.config.Linux.CgroupParent + "/cri-shim-" + c.id + ".scope/container\n"
		if err != nil || string(host) != want {
			t.Errorf("cgroup = %q, %v; want %q", host, err, want)
		}
		if got := c.exec(t, "cat /proc/self/cgroup"); got != "0::/\n" {
			t.Errorf("exec: cgroup = %q; want the container's own", got)
		}
		unit := "cri-shim-" + c.id + ".scope"
		if got := systemctl(t, "is-active", unit); got != "active" {
			t.Errorf("systemctl is-active %s = %q", unit, got)
		}
		// The parked process must not be seen, nor stay.
		procs, err := os.ReadFile("/sys/fs/cgroup/crishime2e.slice/" + p.config.Linux.CgroupParent + "/" + unit + "/container/cgroup.procs")
		if err != nil || strings.Count(string(procs), "\n") != 1 {
			t.Errorf("cgroup.procs = %q, %v; want one process", procs, err)
		}
		c.stopIt(t, 0)
		if got := systemctl(t, "list-units", "--all", "--no-legend", "--plain", unit); got != "" {
			t.Errorf("after the stop: %s", got)
		}
	})
	t.Run("update", func(t *testing.T) { testUpdate(t, n, p) })
	t.Run("OOM", func(t *testing.T) {
		for range 3 {
			c := p.run(t, []string{"/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"}, func(c *pb.ContainerConfig) {
				c.Linux.Resources = &pb.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}
			})
			if s := c.wait(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
				t.Errorf("after using more than the limit: %d %s %s; want 137 OOMKilled", s.ExitCode, s.Reason, s.Message)
			}
		}
		c := p.sleeping(t)
		c.exec(t, "kill -9 1 2>/dev/null; true") // from inside, PID 1 is immune
		c.stopIt(t, 0)
		if s := c.status(t); s.Reason == "OOMKilled" {
			t.Errorf("killed by the runtime: %s; want another reason", s.Reason)
		}
	})
	t.Run("no parent", func(t *testing.T) {
		own := n.runPod(t, hostNetwork, func(c *pb.PodSandboxConfig) { c.Linux.CgroupParent = "" })
		own.sleeping(t)
		slice := "crishim-" + own.id + ".slice"
		// systemd keeps the slice of all such pods.
		t.Cleanup(func() { _ = exec.Command("systemctl", "stop", "crishim.slice").Run() })
		if got := systemctl(t, "is-active", slice); got != "active" {
			t.Errorf("systemctl is-active %s = %q", slice, got)
		}
		if err := n.removePod(ctx(t), own.id); err != nil {
			t.Fatal(err)
		}
		if got := systemctl(t, "list-units", "--all", "--no-legend", "--plain", slice); got != "" {
			t.Errorf("after RemovePodSandbox: %s", got)
		}
	})
	t.Run("shared PID namespace", func(t *testing.T) {
		shared := n.runPod(t, hostNetwork, inSlice(t), namespaces(func(o *pb.NamespaceOption) { o.Pid = pb.NamespaceMode_POD }))
		shared.sleeping(t)
		if got := systemctl(t, "is-active", "cri-shim-init-"+shared.id+".scope"); got != "active" {
			t.Errorf("systemctl is-active of the pod's init = %q", got)
		}
		begun := time.Now()
		if err := n.removePod(ctx(t), shared.id); err != nil {
			t.Fatal(err)
		}
		t.Logf("StopPodSandbox and RemovePodSandbox took %v", time.Since(begun))
		if got := systemctl(t, "list-units", "--all", "--no-legend", "--plain", "cri-shim-*.scope"); strings.Contains(got, shared.id) {
			t.Errorf("after RemovePodSandbox: %s", got)
		}
	})
	t.Run("failed launch", func(t *testing.T) {
		c := p.create(t, []string{"/no/such/program"})
		if _, err := c.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: c.id}); err == nil {
			t.Error("StartContainer() of a program that is not there: no error")
		}
		if got := systemctl(t, "list-units", "--all", "--no-legend", "--plain", "cri-shim-"+c.id+".scope"); got != "" {
			t.Errorf("after a failed start: %s", got)
		}
	})
}

// containerPID is the container's first process as the host sees it.
func containerPID(t *testing.T, c *container) string {
	t.Helper()
	scope := "/sys/fs/cgroup/crishime2e.slice/" + c.config.Linux.CgroupParent + "/cri-shim-" + c.id + ".scope/container/cgroup.procs"
	procs, err := os.ReadFile(scope)
	if err != nil {
		t.Fatal(err)
	}
	return string(procs)
}
