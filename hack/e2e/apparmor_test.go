package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAppArmor(t *testing.T) {
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || b[0] != 'Y' {
		t.Skip("needs a kernel with AppArmor")
	}
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		t.Skip("needs apparmor_parser")
	}
	const own = "cri-shim-e2e"
	load := func(flag string) {
		t.Helper()
		cmd := exec.Command(parser, "-K", flag)
		cmd.Stdin = strings.NewReader("profile " + own + " flags=(attach_disconnected) { file, network, capability, signal, deny /tmp/denied w, }")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("apparmor_parser %s: %v: %s", flag, err, out)
		}
	}
	load("-r")
	defer load("-R")
	n := newNode(t, nil)
	p := n.runPod(t, hostNetwork, func(c *pb.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	confined := func(kind pb.SecurityProfile_ProfileType, name string) edit {
		return func(c *pb.ContainerConfig) {
			c.Linux.SecurityContext.Apparmor = &pb.SecurityProfile{ProfileType: kind, LocalhostRef: name}
		}
	}
	const current = "cat /proc/self/attr/current"
	for _, tc := range []struct {
		name string
		edit edit
		want string
	}{
		{"nothing said", func(*pb.ContainerConfig) {}, "cri-shim-default (enforce)"},
		{"runtime default", confined(pb.SecurityProfile_RuntimeDefault, ""), "cri-shim-default (enforce)"},
		{"unconfined", confined(pb.SecurityProfile_Unconfined, ""), "unconfined"},
		{"localhost", confined(pb.SecurityProfile_Localhost, own), own + " (enforce)"},
		{"localhost, old form", confined(pb.SecurityProfile_Localhost, "localhost/"+own), own + " (enforce)"},
		{"privileged", func(c *pb.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }, "unconfined"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := strings.TrimSpace(p.output(t, current, tc.edit)); got != tc.want {
				t.Errorf("container: %q; want %q", got, tc.want)
			}
			if got := strings.TrimSpace(p.sleeping(t, tc.edit).exec(t, current)); got != tc.want {
				t.Errorf("exec: %q; want %q", got, tc.want)
			}
		})
	}
	t.Run("enforced", func(t *testing.T) {
		admin := func(c *pb.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &pb.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
			c.Linux.SecurityContext.Seccomp = &pb.SecurityProfile{ProfileType: pb.SecurityProfile_Unconfined}
		}
		script := "mount -t tmpfs none /tmp 2>/dev/null && echo mounted || echo denied"
		if got := p.output(t, script, admin); got != "denied\n" {
			t.Errorf("mount under the default profile: %q; want it denied", got)
		}
		if got := p.output(t, script, admin, confined(pb.SecurityProfile_Unconfined, "")); got != "mounted\n" {
			t.Errorf("mount without a profile: %q; want it done", got)
		}
		if got := p.output(t, "echo x 2>/dev/null > /tmp/denied && echo written || echo denied", confined(pb.SecurityProfile_Localhost, own)); got != "denied\n" {
			t.Errorf("a file that the named profile denies: %q", got)
		}
	})
	t.Run("pod init", func(t *testing.T) {
		shared := n.runPod(t, func(c *pb.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &pb.NamespaceOption{Network: pb.NamespaceMode_NODE, Pid: pb.NamespaceMode_POD}
		})
		got := shared.sleeping(t).exec(t, "cat /proc/1/attr/current; kill -0 1 && echo signalled")
		if want := "cri-shim-default (enforce)\nsignalled\n"; got != want {
			t.Errorf("a container that looks at the init of its pod: %q; want %q", got, want)
		}
		free := n.runPod(t, func(c *pb.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &pb.NamespaceOption{Network: pb.NamespaceMode_NODE, Pid: pb.NamespaceMode_POD}
			c.Linux.SecurityContext.Apparmor = &pb.SecurityProfile{ProfileType: pb.SecurityProfile_Unconfined}
		})
		if got := free.sleeping(t, confined(pb.SecurityProfile_Unconfined, "")).exec(t, "cat /proc/1/attr/current"); got != "unconfined\n" {
			t.Errorf("the init of an unconfined pod: %q", got)
		}
	})
	t.Run("missing", func(t *testing.T) {
		config := p.containerConfig("missing", sh("true"), confined(pb.SecurityProfile_Localhost, "no-such-profile"))
		_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "no-such-profile") {
			t.Errorf("CreateContainer = %v; want InvalidArgument that names the profile", err)
		}
	})
}
