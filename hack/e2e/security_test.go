package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func privileged(c *pb.ContainerConfig) {
	s := c.Linux.SecurityContext
	s.Privileged, s.Seccomp, s.MaskedPaths, s.ReadonlyPaths = true, nil, nil, nil
}

func privilegedPod(c *pb.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }

// statusField is a line of /proc/PID/status.
func statusField(text, field string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// defaultCapabilities are those that Docker gives, and with it all others.
const defaultCapabilities = "00000000a80425fb"

func TestCapabilities(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	capabilities := func(c *pb.Capability) edit {
		return func(config *pb.ContainerConfig) { config.Linux.SecurityContext.Capabilities = c }
	}
	const none = "0000000000000000"
	for name, tc := range map[string]struct {
		edit                          edit
		effective, bounding, ambients string
	}{
		"default":  {func(*pb.ContainerConfig) {}, defaultCapabilities, defaultCapabilities, none},
		"added":    {capabilities(&pb.Capability{AddCapabilities: []string{"NET_ADMIN"}}), "00000000a80435fb", "00000000a80435fb", none},
		"dropped":  {capabilities(&pb.Capability{DropCapabilities: []string{"ALL"}}), none, none, none},
		"only one": {capabilities(&pb.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"CHOWN"}}), "0000000000000001", "0000000000000001", none},
		"not root": {asApp, none, defaultCapabilities, none},
		"ambient": {func(c *pb.ContainerConfig) {
			asApp(c)
			c.Linux.SecurityContext.Capabilities = &pb.Capability{
				DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}, AddCapabilities: []string{"NET_BIND_SERVICE"},
			}
		}, "0000000000000400", "0000000000000400", "0000000000000400"},
	} {
		text := p.output(t, "cat /proc/self/status", tc.edit)
		for field, want := range map[string]string{"CapEff": tc.effective, "CapBnd": tc.bounding, "CapAmb": tc.ambients, "CapInh": tc.ambients} {
			if got := statusField(text, field); got != want {
				t.Errorf("%s: %s = %s; want %s", name, field, got, want)
			}
		}
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	text := n.runPod(t, privilegedPod).output(t, "cat /proc/self/status", privileged)
	for _, field := range []string{"CapEff", "CapBnd"} {
		if got, want := statusField(text, field), statusField(string(own), field); got != want {
			t.Errorf("privileged: %s = %s; want the daemon's, %s", field, got, want)
		}
	}
}

func TestNoNewPrivs(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	for _, want := range []string{"0", "1"} {
		got := statusField(p.output(t, "cat /proc/self/status", func(c *pb.ContainerConfig) {
			c.Linux.SecurityContext.NoNewPrivs = want == "1"
		}), "NoNewPrivs")
		if got != want {
			t.Errorf("NoNewPrivs = %s; want %s", got, want)
		}
	}
}

func TestSeccomp(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	seccomp := func(profile *pb.SecurityProfile) edit {
		return func(c *pb.ContainerConfig) { c.Linux.SecurityContext.Seccomp = profile }
	}
	file := n.path("no-mkdir.json")
	profile := `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30}]}`
	if err := os.WriteFile(file, []byte(profile), 0o644); err != nil {
		t.Fatal(err)
	}
	const script = "grep ^Seccomp: /proc/self/status; unshare -U true 2>/dev/null && echo may-unshare; mkdir /tmp/d && echo may-mkdir; true"
	for name, tc := range map[string]struct {
		profile *pb.SecurityProfile
		want    string
	}{
		"default":    {&pb.SecurityProfile{ProfileType: pb.SecurityProfile_RuntimeDefault}, "Seccomp:\t2\nmay-mkdir\n"},
		"unconfined": {&pb.SecurityProfile{ProfileType: pb.SecurityProfile_Unconfined}, "Seccomp:\t0\nmay-unshare\nmay-mkdir\n"},
		"not said":   {nil, "Seccomp:\t0\nmay-unshare\nmay-mkdir\n"},
		"localhost":  {&pb.SecurityProfile{ProfileType: pb.SecurityProfile_Localhost, LocalhostRef: file}, "Seccomp:\t2\nmay-unshare\n"},
	} {
		if got := p.output(t, script, seccomp(tc.profile)); got != tc.want {
			t.Errorf("%s: %q; want %q", name, got, tc.want)
		}
	}
	c := p.sleeping(t, seccomp(&pb.SecurityProfile{ProfileType: pb.SecurityProfile_Localhost, LocalhostRef: file}))
	if got := c.exec(t, "mkdir /tmp/d 2>&1 || true"); !strings.Contains(got, "Read-only file system") {
		t.Errorf("in an exec, mkdir = %q; want the profile's errno", got)
	}
	config := p.containerConfig("missing", sh("true"), seccomp(&pb.SecurityProfile{ProfileType: pb.SecurityProfile_Localhost, LocalhostRef: "/no/such.json"}))
	if err := p.createAndStart(t, config); err == nil || !strings.Contains(err.Error(), "/no/such.json") {
		t.Errorf("a profile that is not there: %v; want an error that names it", err)
	}
}

func TestMaskedAndReadonlyPaths(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	if got := p.output(t, "wc -c < /proc/timer_list; ls /sys/firmware | wc -l; head -c 1 /proc/kcore | wc -c"); got != "0\n0\n0\n" {
		t.Errorf("masked paths have %q; want nothing", got)
	}
	if got := p.output(t, "echo x > /proc/sys/kernel/domainname || echo denied; echo h > /proc/sysrq-trigger || echo denied; mount -o remount,rw /proc/sys || echo denied"); got != "denied\ndenied\ndenied\n" {
		t.Errorf("writing to read-only paths: %q; want it denied", got)
	}
	if got := n.runPod(t, privilegedPod).output(t, "test $(wc -c < /proc/timer_list) -gt 0 && echo more; echo mine > /proc/sys/kernel/domainname; cat /proc/sys/kernel/domainname", privileged); got != "more\nmine\n" {
		t.Errorf("privileged: %q; want nothing masked or read-only", got)
	}
}

func TestReadonlyRootfs(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	script := "touch /x 2>/dev/null && echo root; touch /dev/shm/x && echo shm; touch /etc/resolv.conf 2>/dev/null; true"
	if got := p.output(t, script, func(c *pb.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true }); got != "shm\n" {
		t.Errorf("with a read-only rootfs these could be written: %q; want shm alone", got)
	}
	if got := p.output(t, script); got != "root\nshm\n" {
		t.Errorf("with a writable rootfs these could be written: %q; want root and shm", got)
	}
}

func TestDevices(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	got := p.output(t, "stat -c '%F %t %T' /dev/mine; echo x > /dev/mine && cat /dev/mine; ls /dev | tr '\\n' ' '", func(c *pb.ContainerConfig) {
		c.Devices = []*pb.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mine", Permissions: "rwm"}}
	})
	if want := "character special file 1 3\ncore fd full mine mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "; strings.TrimRight(got, "\n") != want {
		t.Errorf("/dev = %q; want %q", got, want)
	}
	// A node can be made, as with Docker, but not opened: 1:11 is /dev/kmsg.
	const script = "mknod /tmp/kmsg c 1 11 && (head -c 1 /tmp/kmsg >/dev/null 2>&1 || dd if=/tmp/kmsg of=/dev/null bs=8192 count=1 2>&1 | grep -o 'not permitted')"
	if got := p.output(t, script); got != "not permitted\n" {
		t.Errorf("opening a device that was not given: %q; want it not permitted", got)
	}
	got = n.runPod(t, privilegedPod).output(t, fmt.Sprintf("test -c /dev/kmsg -o ! -e %s && mknod /tmp/zero c 1 5 && head -c 3 /tmp/zero | wc -c", "/dev/kmsg"), privileged)
	if got != "3\n" {
		t.Errorf("privileged: %q; want all devices", got)
	}
}

func TestPrivilegedNeedsItsPod(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	err := p.createAndStart(t, p.containerConfig("c", sh("true"), privileged))
	if err == nil || !strings.Contains(err.Error(), "privileged") {
		t.Errorf("a privileged container in a pod that is not: %v; want an error that says so", err)
	}
}
