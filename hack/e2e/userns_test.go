package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// userNamespaces skips where the node's kernel or file system cannot give a pod its own.
func (n *node) userNamespaces(t *testing.T) {
	t.Helper()
	resp, err := n.Status(ctx(t), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.RuntimeHandlers[0].Features.UserNamespaces {
		t.Skip("needs user namespaces, and idmapped mounts on the temporary folder's file system")
	}
}

var ids = []*pb.IDMapping{{HostId: 300000, ContainerId: 0, Length: 65536}}

func ownUsers(pid pb.NamespaceMode) func(*pb.PodSandboxConfig) {
	return namespaces(func(o *pb.NamespaceOption) {
		o.Pid = pid
		o.UsernsOptions = &pb.UserNamespace{Mode: pb.NamespaceMode_POD, Uids: ids, Gids: ids}
	})
}

func TestUserNamespace(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	n.userNamespaces(t)
	dir := n.volume(t)
	if err := os.Chmod(dir, 0o700); err != nil { // nobody but the node's root gets in by its path
		t.Fatal(err)
	}
	p := n.runPod(t, ownUsers(pb.NamespaceMode_CONTAINER), func(c *pb.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"kernel.shmmni": "4097", "net.ipv4.ip_unprivileged_port_start": "0"}
	})
	volume := mount(&pb.Mount{HostPath: dir, ContainerPath: "/v", UidMappings: ids, GidMappings: ids})
	got := p.output(t, `echo $(cat /proc/self/uid_map) $(id -u) $(stat -c %u:%g /bin/busybox /v/file)
echo made > /v/made; touch /in-root && stat -c %u /in-root
cat /proc/sys/kernel/shmmni; echo x >> /etc/hosts; grep -c localhost /etc/hosts; test -r /etc/resolv.conf && hostname
touch /dev/shm/a && echo shm; echo log >/dev/stderr; ls /sys/class/net | grep -c eth0`, volume)
	want := "0 300000 65536 0 0:0 0:0\n0\n4097\n2\n" + p.config.Hostname + "\nshm\n1\n"
	if got != want {
		t.Errorf("in a user namespace: %q; want %q", got, want)
	}
	for _, name := range []string{"file", "made"} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s on the node: %v, %v; want it to be root's", name, fi, err)
		}
	}
	// Containers of the pod share the user namespace, which owns the others.
	a, b := p.sleeping(t), p.sleeping(t)
	const links = "for i in user net ipc uts; do readlink /proc/self/ns/$i; done"
	if x, y := a.exec(t, links), b.exec(t, links); x != y {
		t.Errorf("namespaces of two containers: %q and %q; want the same", x, y)
	}
	if got := a.exec(t, "ip link set lo down && ip link set lo up && hostname other 2>&1; echo $(id -u) $(cat /proc/self/uid_map)"); !strings.HasSuffix(got, "0 0 300000 65536\n") {
		t.Errorf("exec: %q; want it as root of the user namespace", got)
	}
}

func TestUserNamespaceSharedPID(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	n.userNamespaces(t)
	p := n.runPod(t, ownUsers(pb.NamespaceMode_POD))
	c := p.sleeping(t)
	ends := p.create(t, sh("exit 5"))
	check := func(when string) {
		t.Helper()
		// Not by /proc/1/ns/user: an AppArmor profile keeps containers from looking at what it does not confine.
		got := c.exec(t, "cat /proc/self/uid_map /proc/1/uid_map")
		f := strings.Fields(got)
		if len(f) != 6 || f[1] != "300000" || !slices.Equal(f[:3], f[3:]) {
			t.Errorf("%s: %q; want the mapping, and the pod's init in the same user namespace", when, got)
		}
	}
	check("at first")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		n.restart(t, sig)
		check(fmt.Sprint("after a restart by ", sig))
	}
	if s := ends.startIt(t).wait(t); s.ExitCode != 5 {
		t.Errorf("a container that an earlier daemon created: %v; want exit code 5", s)
	}
}

func TestUserNamespaceRefused(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	n.userNamespaces(t)
	p := n.runPod(t, ownUsers(pb.NamespaceMode_CONTAINER))
	c := p.create(t, sh("true"), mount(&pb.Mount{HostPath: "/proc/sys", ContainerPath: "/v", UidMappings: ids, GidMappings: ids}))
	_, err := n.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: c.id})
	if err == nil || !strings.Contains(err.Error(), "/proc/sys") || !strings.Contains(err.Error(), "/proc: proc") {
		t.Errorf("StartContainer = %v; want an error that names /proc/sys and its file system", err)
	}
	config := p.containerConfig("other", sh("true"), func(c *pb.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &pb.NamespaceOption{UsernsOptions: &pb.UserNamespace{Mode: pb.NamespaceMode_NODE}}
	})
	_, err = n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err == nil || !strings.Contains(err.Error(), "userns_options") {
		t.Errorf("CreateContainer in another user namespace = %v; want it refused", err)
	}
}
