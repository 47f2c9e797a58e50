package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCVE_2025_47291: the containers of a pod with a user namespace, and what is executed in them, are in the pod's control group,
// and so within its limits.
func TestCVE_2025_47291(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	n.userNamespaces(t)
	p := n.runPod(t, ownUsers(pb.NamespaceMode_CONTAINER))
	c := p.sleeping(t)
	procs, _ := filepath.Glob("/sys/fs/cgroup/*" + p.config.Linux.CgroupParent + "/*/cgroup.procs")
	if unified() {
		procs, _ = filepath.Glob("/sys/fs/cgroup" + p.config.Linux.CgroupParent + "/*/cgroup.procs")
	}
	if len(procs) == 0 {
		t.Fatalf("no control group below the pod's %s", p.config.Linux.CgroupParent)
	}
	pids, err := os.ReadFile(procs[0])
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(pids))
	text, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if ids, err := os.ReadFile("/proc/" + pid + "/uid_map"); err != nil || !strings.Contains(string(ids), "300000") {
		t.Fatalf("process %s has the IDs %q, %v; want it in the pod's user namespace", pid, ids, err)
	}
	inside := 0
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if f[1] == "" && !unified() || strings.HasPrefix(f[1], "name=") {
			continue
		}
		if !strings.Contains(f[2], p.config.Linux.CgroupParent+"/") {
			t.Errorf("%s is not below the pod's %s", line, p.config.Linux.CgroupParent)
		}
		inside++
	}
	if inside == 0 {
		t.Errorf("no control group in %q", text)
	}
	// The namespace of control groups has the container's as its root.
	if got := c.exec(t, "cat /proc/self/cgroup | grep -v ':name=' | grep -v ':/$'; true"); got != "" {
		t.Errorf("an exec is in the groups %q; want the container's", got)
	}
}
