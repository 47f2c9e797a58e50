package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestInvalidPods: a request that makes no sense is refused with the field's name.
func TestInvalidPods(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	options := func(c *pb.PodSandboxConfig) *pb.NamespaceOption { return c.Linux.SecurityContext.NamespaceOptions }
	for field, edit := range map[string]func(*pb.PodSandboxConfig){
		"metadata":               func(c *pb.PodSandboxConfig) { c.Metadata = nil },
		"metadata.name":          func(c *pb.PodSandboxConfig) { c.Metadata.Name = "" },
		"metadata.namespace":     func(c *pb.PodSandboxConfig) { c.Metadata.Namespace = "../x" },
		"metadata.uid":           func(c *pb.PodSandboxConfig) { c.Metadata.Uid = "" },
		"hostname":               func(c *pb.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) },
		"log_directory":          func(c *pb.PodSandboxConfig) { c.LogDirectory = "relative" },
		"dns_config.servers[0]":  func(c *pb.PodSandboxConfig) { c.DnsConfig = &pb.DNSConfig{Servers: []string{"not an address"}} },
		"dns_config.searches[1]": func(c *pb.PodSandboxConfig) { c.DnsConfig = &pb.DNSConfig{Searches: []string{"ok", "a\nb"}} },
		"port_mappings[0]":       func(c *pb.PodSandboxConfig) { c.PortMappings = []*pb.PortMapping{{HostPort: 70000, ContainerPort: 1}} },
		"port_mappings[0].host_ip": func(c *pb.PodSandboxConfig) {
			c.PortMappings = []*pb.PortMapping{{HostPort: 7000, ContainerPort: 1, HostIp: "x"}}
		},
		"linux.cgroup_parent":           func(c *pb.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" },
		"linux.sysctls[kernel.panic]":   func(c *pb.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.panic": "1"} },
		"linux.sysctls[net.x]":          func(c *pb.PodSandboxConfig) { hostNetwork(c); c.Linux.Sysctls = map[string]string{"net.x": "1"} },
		"namespace_options.pid":         func(c *pb.PodSandboxConfig) { options(c).Pid = pb.NamespaceMode_TARGET },
		"namespace_options.network":     func(c *pb.PodSandboxConfig) { options(c).Network = pb.NamespaceMode_CONTAINER },
		"namespace_options.ipc":         func(c *pb.PodSandboxConfig) { options(c).Ipc = 99 },
		"security_context.run_as_group": func(c *pb.PodSandboxConfig) { c.Linux.SecurityContext.RunAsGroup = &pb.Int64Value{Value: 1} },
		"annotations":                   func(c *pb.PodSandboxConfig) { c.Annotations = map[string]string{"a": strings.Repeat("x", 2<<20)} },
		"NUL":                           func(c *pb.PodSandboxConfig) { c.Labels = map[string]string{"a": "x\x00y"} },
	} {
		config := n.podConfig(edit)
		n.remember("invalid "+field+strings.Repeat(" ", 64), config)
		_, err := n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{Config: config})
		wantInvalid(t, "RunPodSandbox", field, err)
	}
	_, err := n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{})
	wantInvalid(t, "RunPodSandbox", "config", err)
	_, err = n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{Config: n.podConfig(), RuntimeHandler: "no-such-handler"})
	wantInvalid(t, "RunPodSandbox", "no-such-handler", err)
	list, err := n.ListPodSandbox(ctx(t), &pb.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		if _, known := n.pods[p.Id]; !known && p.Metadata.Name == "" {
			t.Errorf("an invalid request left %v", p)
		}
	}
}

func wantInvalid(t *testing.T, call, field string, err error) {
	t.Helper()
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field) {
		t.Errorf("%s with a bad %s = %v; want InvalidArgument that names it", call, field, err)
	}
}

func TestInvalidContainers(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	security := func(c *pb.ContainerConfig) *pb.LinuxContainerSecurityContext { return c.Linux.SecurityContext }
	for field, edit := range map[string]edit{
		"metadata":                   func(c *pb.ContainerConfig) { c.Metadata = nil },
		"metadata.name":              func(c *pb.ContainerConfig) { c.Metadata.Name = "a/b" },
		"image":                      func(c *pb.ContainerConfig) { c.Image = nil },
		"working_dir":                func(c *pb.ContainerConfig) { c.WorkingDir = "relative" },
		"envs[0].key":                func(c *pb.ContainerConfig) { c.Envs = []*pb.KeyValue{{Key: "a=b"}} },
		"log_path":                   func(c *pb.ContainerConfig) { c.LogPath = "../../escape" },
		"mounts[0].container_path":   mount(&pb.Mount{HostPath: "/", ContainerPath: "relative"}),
		"mounts[0].host_path":        mount(&pb.Mount{HostPath: "", ContainerPath: "/x"}),
		"mounts[0].propagation":      mount(&pb.Mount{HostPath: "/", ContainerPath: "/x", Propagation: 77}),
		"mounts[0].mount_options[0]": mount(&pb.Mount{HostPath: "/", ContainerPath: "/x", MountOptions: []string{"bogus"}}),
		"recursive_read_only":        mount(&pb.Mount{HostPath: "/", ContainerPath: "/x", RecursiveReadOnly: true}),
		"devices[0].permissions": func(c *pb.ContainerConfig) {
			c.Devices = []*pb.Device{{HostPath: "/dev/null", ContainerPath: "/dev/n", Permissions: "q"}}
		},
		"CDI_devices[0].name":   func(c *pb.ContainerConfig) { c.CDIDevices = []*pb.CDIDevice{{Name: "x"}} },
		"memory_limit_in_bytes": func(c *pb.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = -5 },
		"cpu_period":            func(c *pb.ContainerConfig) { c.Linux.Resources.CpuPeriod = 1 },
		"cpu_quota":             func(c *pb.ContainerConfig) { c.Linux.Resources.CpuQuota = -9 },
		"cpuset_cpus":           func(c *pb.ContainerConfig) { c.Linux.Resources.CpusetCpus = "3-1" },
		"oom_score_adj":         func(c *pb.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 5000 },
		"add_capabilities[0]": func(c *pb.ContainerConfig) {
			security(c).Capabilities = &pb.Capability{AddCapabilities: []string{"FLY"}}
		},
		"run_as_user":            func(c *pb.ContainerConfig) { security(c).RunAsUser = &pb.Int64Value{Value: -1} },
		"run_as_group":           func(c *pb.ContainerConfig) { security(c).RunAsGroup = &pb.Int64Value{Value: 1} },
		"supplemental_groups[0]": func(c *pb.ContainerConfig) { security(c).SupplementalGroups = []int64{1 << 40} },
		"namespace_options.target_id": func(c *pb.ContainerConfig) {
			security(c).NamespaceOptions = &pb.NamespaceOption{Pid: pb.NamespaceMode_TARGET}
		},
		"masked_paths[0]": func(c *pb.ContainerConfig) { security(c).MaskedPaths = []string{"proc"} },
		"seccomp": func(c *pb.ContainerConfig) {
			security(c).Seccomp = &pb.SecurityProfile{ProfileType: pb.SecurityProfile_Localhost}
		},
		"windows": func(c *pb.ContainerConfig) { c.Windows = &pb.WindowsContainerConfig{} },
	} {
		config := p.containerConfig("c", sh("true"), edit)
		_, err := p.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		wantInvalid(t, "CreateContainer", field, err)
	}
	_, err := p.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: p.id})
	wantInvalid(t, "CreateContainer", "config", err)
	list, err := p.ListContainers(ctx(t), &pb.ListContainersRequest{Filter: &pb.ContainerFilter{PodSandboxId: p.id}})
	if err != nil || len(list.Containers) > 0 {
		t.Errorf("after invalid requests: %v, %v; want no container", list, err)
	}
}

func TestInvalidCalls(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	for field, call := range map[string]func() error{
		"pod_sandbox_id": func() error {
			_, err := n.StopPodSandbox(ctx(t), &pb.StopPodSandboxRequest{})
			return err
		},
		"container_id": func() error {
			_, err := n.StartContainer(ctx(t), &pb.StartContainerRequest{})
			return err
		},
		"timeout": func() error {
			_, err := n.StopContainer(ctx(t), &pb.StopContainerRequest{ContainerId: "x", Timeout: -1})
			return err
		},
		"cmd": func() error {
			_, err := n.ExecSync(ctx(t), &pb.ExecSyncRequest{ContainerId: "x"})
			return err
		},
		"image.image": func() error {
			_, err := n.PullImage(ctx(t), &pb.PullImageRequest{})
			return err
		},
		"UPPER CASE": func() error {
			_, err := n.PullImage(ctx(t), &pb.PullImageRequest{Image: &pb.ImageSpec{Image: "UPPER CASE"}})
			return err
		},
		"auth.auth": func() error {
			_, err := n.PullImage(ctx(t), &pb.PullImageRequest{Image: &pb.ImageSpec{Image: busybox()}, Auth: &pb.AuthConfig{Auth: "%%"}})
			return err
		},
	} {
		wantInvalid(t, "call", field, call())
	}
}
