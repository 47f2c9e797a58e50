package oci

import (
	"strings"
	"testing"
	"time"
)

// TestCVE_2022_29162 (and CVE-2022-24769, CVE-2022-27650): neither a container's process nor an exec's has inheritable
// capabilities, which a file of the image with capabilities of its own would turn into permitted ones for any user.
func TestCVE_2022_29162(t *testing.T) {
	n := newNode(t, Config{})
	p := n.params("b=/bin/busybox; $b grep CapInh /proc/self/status; until $b test -e /tmp/done; do $b usleep 1000; done")
	p.Container.Security.AddCapabilities = []string{"NET_ADMIN"}
	c := n.prepare(p)
	r := n.start(c)
	timer := time.AfterFunc(20*time.Second, func() { r.process.Kill() })
	defer timer.Stop()
	e, err := n.runtime.Exec(t.Context(), ExecParams{
		ContainerID: p.ContainerID, CgroupPath: p.CgroupPath, Spec: c.Spec, PID: r.process.Pid, LatePID: true,
		Command: []string{"/bin/sh", "-c", "/bin/busybox grep CapInh /proc/self/status; /bin/busybox touch /tmp/done"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	x := n.start(e)
	if err := x.wait(); err != nil {
		t.Fatal(err, x.failures)
	}
	if err := r.wait(); err != nil {
		t.Fatal(err, r.failures)
	}
	for what, out := range map[string]string{"container": r.out.String(), "exec": x.out.String()} {
		if got := strings.Fields(out); len(got) != 2 || got[1] != "0000000000000000" {
			t.Errorf("inheritable set of the %s = %q; want none", what, out)
		}
	}
}
