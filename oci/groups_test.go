package oci

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci/cgroup"
)

func TestCgroupPath(t *testing.T) {
	groups, err := cgroup.Detect()
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	defer groups.Close()
	for _, tc := range []struct {
		systemd           bool
		parent, want, pod string
	}{
		{false, "", "/cri-shim/p/c", "/cri-shim/p"},
		{false, "/kubepods/pod1", "/kubepods/pod1/c", "/kubepods/pod1"},
		{false, "kubepods//pod1/", "/kubepods/pod1/c", "/kubepods/pod1"},
		{true, "", "crishim-p.slice:cri-shim:c", "crishim-p.slice"},
		{true, "kubepods-pod1.slice", "kubepods-pod1.slice:cri-shim:c", "kubepods-pod1.slice"},
		{false, "kubepods-pod1.slice", "kubepods-pod1.slice:cri-shim:c", "kubepods-pod1.slice"}, // of before the driver was changed
		{true, "/kubepods/pod1", "/kubepods/pod1/c", "/kubepods/pod1"},
	} {
		r := &Runtime{cfg: Config{SystemdCgroup: tc.systemd}, cgroups: groups}
		pod := &workload.Pod{CgroupParent: tc.parent}
		if got := r.CgroupPath(pod, "p", "c"); got != tc.want {
			t.Errorf("CgroupPath(%q), systemd %t = %q; want %q", tc.parent, tc.systemd, got, tc.want)
		}
		if got := r.PodCgroup(pod, "p"); got != tc.pod {
			t.Errorf("PodCgroup(%q), systemd %t = %q; want %q", tc.parent, tc.systemd, got, tc.pod)
		}
	}
}

func TestCheckCgroupParent(t *testing.T) {
	for _, tc := range []struct {
		systemd      bool
		parent, want string
	}{
		{false, "", ""},
		{true, "", ""},
		{false, "/kubepods/pod1", ""},
		{false, "/system.slice/x.slice", ""}, // a path, whoever made it
		{true, "kubepods-pod1.slice", ""},
		{true, "/kubepods.slice/kubepods-pod1.slice", "cgroup_driver is systemd"},
		{false, "kubepods-pod1.slice", "cgroup_driver is cgroupfs"},
		{true, "/kubepods/pod1", "cgroup_driver is systemd"},
		{true, "a.slice:b:c", "cgroup_driver is systemd"},
		{true, "a--b.slice", "cgroup_driver is systemd"},
	} {
		r := &Runtime{cfg: Config{SystemdCgroup: tc.systemd}}
		err := r.CheckCgroupParent(tc.parent)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("CheckCgroupParent(%q), systemd %t = %v; want %q", tc.parent, tc.systemd, err, tc.want)
		}
	}
}

// A pod of before cgroup_driver was changed keeps its group.
func TestCgroupPathOfAnotherDriver(t *testing.T) {
	n := newNode(t, Config{})
	pod, id := &workload.Pod{}, "driver-"+strconv.Itoa(os.Getpid())
	old := n.runtime.PodCgroup(pod, id)
	if err := n.runtime.UpdatePod(t.Context(), pod, id, &workload.Resources{}); err != nil {
		t.Fatal(err)
	}
	systemd := &Runtime{cfg: Config{SystemdCgroup: true}, cgroups: n.runtime.cgroups}
	if got := systemd.PodCgroup(pod, id); got != old {
		t.Errorf("PodCgroup after the change of driver = %q; want %q", got, old)
	}
	if err := systemd.Remove(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if got, want := systemd.PodCgroup(pod, id), "crishim-"+id+".slice"; got != want {
		t.Errorf("PodCgroup of a new pod = %q; want %q", got, want)
	}
}

func TestPauseResume(t *testing.T) {
	n := newNode(t, Config{})
	path := n.runtime.CgroupPath(&workload.Pod{}, "pause-"+strconv.Itoa(os.Getpid()), "c")
	g, err := n.runtime.cgroups.Create(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "while :; do echo x; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.runtime.Remove(context.Background(), path); err != nil { // kills it
			t.Error(err)
		}
		_ = cmd.Wait()
		if err := n.runtime.Remove(context.Background(), filepath.Dir(path)); err != nil {
			t.Error(err)
		}
	})
	if err := g.AddProc(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	read := func() int {
		t.Helper()
		f := out.(*os.File)
		if err := f.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, _ := io.Copy(io.Discard, io.LimitReader(f, 1<<20))
		return int(n)
	}
	if err := n.runtime.Pause(t.Context(), path); err != nil {
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	read() // what was in the pipe
	if n := read(); n != 0 {
		t.Errorf("a paused process has written %d bytes", n)
	}
	if err := n.runtime.Resume(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if n := read(); n == 0 {
		t.Error("a resumed process writes nothing")
	}
}
