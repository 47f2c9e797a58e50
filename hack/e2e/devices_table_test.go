package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// deviceKind is a way to ask for devices, and what may be done then.
type deviceKind struct {
	name   string
	pod    func(*pb.PodSandboxConfig)
	edit   edit
	want   map[string]string // rights (of r and w) by the path in the container
	others bool              // may open what it has not asked for
}

// rightsScript says of each path what it may be opened for, whether or not a driver is there, and of a device that nobody
// asked for whether it may be opened, by a node made on the spot. A user namespace cannot make one.
const rightsScript = `try() { if err=$( (eval ": $1") 2>&1 ); then echo yes; else case "$err" in
  *"not permitted"*) echo no;; *"No such file"*|*"denied"*) echo "$err";; *) echo yes;; esac; fi; }
for p in %s; do
  r=$(try "< $p"); w=$(try "> $p"); echo "$p $r $w"
done
rm -f /dev/other; if mknod /dev/other c 10 229 2>/dev/null; then echo "other $(try '< /dev/other') -"; rm -f /dev/other; fi`

// check compares what the script says.
func (k *deviceKind) check(output string) error {
	got := map[string]string{}
	for l := range strings.Lines(output) {
		f := strings.Fields(l)
		if len(f) != 3 || f[1] != "yes" && f[1] != "no" {
			return fmt.Errorf("%q", strings.TrimSpace(l))
		}
		may := ""
		if f[1] == "yes" {
			may = "r"
		}
		if f[2] == "yes" {
			may += "w"
		}
		got[f[0]] = may
	}
	for p, want := range k.want {
		if may, ok := got[p]; may != want || !ok {
			return fmt.Errorf("%s may be opened for %q; want %q", p, may, want)
		}
	}
	if other, made := got["other"]; made && (other == "r") != k.others {
		return fmt.Errorf("a device that was not asked for: %q", other)
	}
	return nil
}

// deviceKinds makes the nodes that are asked for. Their numbers are of no driver's: opening one that is allowed ends in ENXIO.
func deviceKinds(t *testing.T, n *node) []*deviceKind {
	t.Helper()
	dev := filepath.Join(n.gpuRoot, "dev")
	// As the node's /dev is: the root of a user namespace is nobody outside.
	if err := os.Chmod(filepath.Dir(n.gpuRoot), 0o711); err != nil {
		t.Fatal(err)
	}
	for name, minor := range map[string]uint32{"own/a": 1, "own/b": 2, "one": 3, "claimed": 4, "vfio/vfio": 5, "vfio/9": 6} {
		testtools.MakeNode(t, filepath.Join(dev, name), 240, minor)
	}
	block, link := filepath.Join(dev, "block"), filepath.Join(dev, "link")
	if err := syscall.Mknod(block, syscall.S_IFBLK|0o666, 240<<8|7); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("one", link); err != nil {
		t.Fatal(err)
	}
	n.writeCDI(t, "claim.json", fmt.Sprintf(`{"cdiVersion": "0.6.0", "kind": "t.com/c", "devices": [{"name": "x", "containerEdits": {
  "deviceNodes": [{"path": "/dev/x", "hostPath": %q, "permissions": "r"}]}}]}`, filepath.Join(dev, "claimed")))
	device := func(host, at, permissions string) edit {
		return func(c *pb.ContainerConfig) {
			c.Devices = append(c.Devices, &pb.Device{HostPath: host, ContainerPath: at, Permissions: permissions})
		}
	}
	one := filepath.Join(dev, "one")
	kinds := []*deviceKind{
		{name: "none", want: map[string]string{"/dev/null": "rw"}},
		{name: "device rw", edit: device(one, "/dev/x", "rw"), want: map[string]string{"/dev/x": "rw", "/dev/null": "rw"}},
		{name: "device r", edit: device(one, "/dev/x", "r"), want: map[string]string{"/dev/x": "r"}},
		{name: "device w", edit: device(one, "/dev/x", "w"), want: map[string]string{"/dev/x": "w"}},
		{name: "device m", edit: device(one, "/dev/x", "m"), want: map[string]string{"/dev/x": ""}},
		{name: "directory", edit: device(filepath.Join(dev, "own"), "/dev/own", "rw"), want: map[string]string{"/dev/own/a": "rw", "/dev/own/b": "rw"}},
		{name: "link", edit: device(link, "/dev/x", "rwm"), want: map[string]string{"/dev/x": "rw"}},
		{name: "block device", edit: device(block, "/dev/x", "rw"), want: map[string]string{"/dev/x": "rw"}},
		{name: "CDI file", edit: cdi("t.com/c=x"), want: map[string]string{"/dev/x": "r"}},
		{name: "NVIDIA GPU", edit: cdi("nvidia.com/gpu=0"), want: map[string]string{"/dev/nvidia0": "rw", "/dev/nvidiactl": "rw", "/dev/nvidia-uvm": "rw"}},
		{name: "NVIDIA MIG", edit: cdi("nvidia.com/gpu=2:0"), want: map[string]string{"/dev/nvidia-caps/nvidia-cap21": "rw", "/dev/nvidia-caps/nvidia-cap22": "rw"}},
		{name: "VFIO group", edit: cdi("cri-shim.io/vfio=9"), want: map[string]string{"/dev/vfio/9": "rw", "/dev/vfio/vfio": "rw"}},
		{
			name: "privileged", others: true, edit: func(c *pb.ContainerConfig) { c.Linux.SecurityContext.Privileged = true },
			pod:  func(c *pb.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true },
			want: map[string]string{"/dev/null": "rw", "/dev/zero": "rw"},
		},
	}
	if resp, err := n.Status(ctx(t), &pb.StatusRequest{}); err != nil || !resp.RuntimeHandlers[0].Features.UserNamespaces {
		t.Logf("no row for user namespaces: %v", err)
		return kinds
	}
	return append(kinds, &deviceKind{
		name: "own users", pod: ownUsers(pb.NamespaceMode_CONTAINER), edit: device(one, "/dev/x", "r"), want: map[string]string{"/dev/x": "r"},
	}, &deviceKind{
		name: "own users, CDI", pod: ownUsers(pb.NamespaceMode_CONTAINER), edit: cdi("cri-shim.io/vfio=9"), want: map[string]string{"/dev/vfio/9": "rw"},
	})
}

// TestDeviceTable: a container may open exactly what it asked for, however it asked, when it begins, in an exec, after its
// limits were changed, after daemon-reload of systemd and after the daemon was killed. It prints the table of this machine.
func TestDeviceTable(t *testing.T) {
	for _, driver := range []string{"cgroupfs", "systemd"} {
		t.Run(driver, func(t *testing.T) {
			var config map[string]string
			var parent func(*pb.PodSandboxConfig)
			if driver == "systemd" {
				if _, err := os.Stat("/run/systemd/private"); err != nil || !unified() {
					t.Skip("needs systemd as PID 1, and cgroup v2 alone")
				}
				config, parent = map[string]string{"cgroup_driver": `"systemd"`}, inSlice(t)
				t.Cleanup(func() { _ = exec.Command("systemctl", "stop", "crishime2e.slice").Run() })
			}
			deviceTable(t, gpuNode(t, config), driver, parent)
		})
	}
}

func deviceTable(t *testing.T, n *node, driver string, parent func(*pb.PodSandboxConfig)) {
	kinds := deviceKinds(t, n)
	scripts := make([]string, len(kinds))
	containers := make([]*container, len(kinds))
	cells := make([][]string, len(kinds))
	note := func(i int, err error, when string) {
		t.Helper()
		if err != nil {
			t.Errorf("%s, %s: %v", kinds[i].name, when, err)
		}
		cells[i] = append(cells[i], map[bool]string{true: "yes", false: "NO"}[err == nil])
	}
	all := func(when string) {
		t.Helper()
		for i, c := range containers {
			note(i, kinds[i].check(c.exec(t, scripts[i])), when)
		}
	}
	for i, k := range kinds {
		var edits []func(*pb.PodSandboxConfig)
		if k.pod == nil {
			edits = append(edits, hostNetwork)
		}
		for _, f := range []func(*pb.PodSandboxConfig){k.pod, parent} {
			if f != nil {
				edits = append(edits, f)
			}
		}
		var paths []string
		for p := range k.want {
			paths = append(paths, p)
		}
		slices.Sort(paths)
		scripts[i] = fmt.Sprintf(rightsScript, strings.Join(paths, " "))
		var own []edit
		if k.edit != nil {
			own = append(own, k.edit)
		}
		c := n.runPod(t, edits...).run(t, sh(scripts[i]+"\necho end; exec sleep 1000000"), own...)
		eventually(t, k.name+": the end of what it says", func() bool { return strings.Contains(c.log(t, "stdout"), "end\n") })
		note(i, k.check(strings.TrimSuffix(c.log(t, "stdout"), "end\n")), "create")
		containers[i] = c
	}
	all("exec")
	update := func() {
		t.Helper()
		for _, c := range containers {
			if _, err := n.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: &pb.LinuxContainerResources{
				CpuShares: 512, CpuPeriod: 100000, CpuQuota: 90000, MemoryLimitInBytes: 256 << 20,
			}}); err != nil {
				t.Errorf("UpdateContainerResources: %v", err)
			}
		}
	}
	update()
	all("update")
	if _, err := os.Stat("/run/systemd/private"); err == nil {
		systemctl(t, "daemon-reload")
		all("daemon-reload")
	} else {
		for i := range cells {
			cells[i] = append(cells[i], "no systemd")
		}
	}
	n.restart(t, syscall.SIGKILL)
	all("restart")
	update()
	all("update after the restart")

	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	version := map[bool]string{true: "v2", false: "v1"}[unified()]
	fmt.Fprintf(w, "cgroup %s, %s\tcreate\texec\tupdate\tdaemon-reload\trestart\tupdate then\n", version, driver)
	for i, k := range kinds {
		fmt.Fprintln(w, k.name+"\t"+strings.Join(cells[i], "\t"))
	}
	if err := w.Flush(); err != nil {
		t.Error(err)
	}
	t.Logf("opens exactly what was asked for:\n%s", b.String())
}
