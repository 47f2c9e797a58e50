package cri

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func goodPod() *pb.PodSandboxConfig {
	return &pb.PodSandboxConfig{
		Metadata:     &pb.PodSandboxMetadata{Name: "web-0", Uid: "3a1c", Namespace: "default", Attempt: 2},
		Hostname:     "web-0",
		LogDirectory: "/var/log/pods/default_web-0_3a1c",
		DnsConfig:    &pb.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"}},
		PortMappings: []*pb.PortMapping{{Protocol: pb.Protocol_SCTP, ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"}, {ContainerPort: 81}},
		Labels:       map[string]string{"app": "web"},
		Annotations:  map[string]string{"note": "a"},
		Linux: &pb.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/burstable/pod3a1c",
			Sysctls:      map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel/shmmax": "1", "net/ipv4/conf/eth0.1/forwarding": "1"},
			Resources:    &pb.LinuxContainerResources{CpuShares: 2, MemoryLimitInBytes: 1 << 20},
			SecurityContext: &pb.LinuxSandboxSecurityContext{
				NamespaceOptions: &pb.NamespaceOption{Pid: pb.NamespaceMode_CONTAINER, UsernsOptions: &pb.UserNamespace{
					Uids: []*pb.IDMapping{{HostId: 65536, Length: 65536}}, Gids: []*pb.IDMapping{{HostId: 65536, Length: 65536}},
				}},
				RunAsUser:          &pb.Int64Value{Value: 65535},
				RunAsGroup:         &pb.Int64Value{Value: 65535},
				SupplementalGroups: []int64{1, 2},
				Seccomp:            &pb.SecurityProfile{ProfileType: pb.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

func goodContainer() *pb.ContainerConfig {
	return &pb.ContainerConfig{
		Metadata:   &pb.ContainerMetadata{Name: "web", Attempt: 1},
		Image:      &pb.ImageSpec{Image: "sha256:" + strings.Repeat("ab", 32), UserSpecifiedImage: "example.org/web:1"},
		Command:    []string{"/web"},
		Args:       []string{"-v", ""},
		WorkingDir: "/srv",
		Envs:       []*pb.KeyValue{{Key: "A", Value: []byte("b=c")}, {Key: "EMPTY"}},
		Mounts: []*pb.Mount{
			{ContainerPath: "/data", HostPath: "/srv/data", Propagation: pb.MountPropagation_PROPAGATION_BIDIRECTIONAL, MountOptions: []string{"noexec"}},
			{ContainerPath: "/ro", HostPath: "/srv/ro", Readonly: true, RecursiveReadOnly: true,
				UidMappings: []*pb.IDMapping{{HostId: 1, Length: 2}}, GidMappings: []*pb.IDMapping{{HostId: 1, Length: 2}}},
			{ContainerPath: "/img", Image: &pb.ImageSpec{Image: "example.org/data:1"}, ImageSubPath: "a/b"},
		},
		Devices:    []*pb.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "rw"}},
		CDIDevices: []*pb.CDIDevice{{Name: "nvidia.com/gpu=0"}},
		LogPath:    "web/1.log",
		StopSignal: pb.Signal_SIGNAL_SIGRTMINPLUS3,
		Linux: &pb.LinuxContainerConfig{
			Resources: &pb.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
				OomScoreAdj: 999, CpusetCpus: "0-1,3", HugepageLimits: []*pb.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
				Unified: map[string]string{"memory.high": "1"},
			},
			SecurityContext: &pb.LinuxContainerSecurityContext{
				Capabilities: &pb.Capability{AddCapabilities: []string{"NET_ADMIN", "CAP_SYS_TIME"}, DropCapabilities: []string{"ALL"}},
				RunAsUser:    &pb.Int64Value{}, RunAsGroup: &pb.Int64Value{Value: 7},
				SupplementalGroupsPolicy: pb.SupplementalGroupsPolicy_Strict,
				MaskedPaths:              []string{"/proc/kcore"},
				ApparmorProfile:          "localhost/web",
				SeccompProfilePath:       "localhost//etc/web.json",
			},
		},
	}
}

func TestPodFromProto(t *testing.T) {
	got, err := podFromProto(goodPod(), "kata")
	if err != nil {
		t.Fatal(err)
	}
	user := int64(65535)
	ids := []workload.IDMapping{{HostID: 65536, Length: 65536}}
	want := &workload.Pod{
		Metadata:     workload.PodMetadata{Name: "web-0", UID: "3a1c", Namespace: "default", Attempt: 2},
		Handler:      "kata",
		Hostname:     "web-0",
		LogDirectory: "/var/log/pods/default_web-0_3a1c",
		DNS:          &workload.DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"}},
		PortMappings: []workload.PortMapping{{Protocol: "sctp", ContainerPort: 80, HostPort: 8080, HostIP: "127.0.0.1"}, {Protocol: "tcp", ContainerPort: 81}},
		Labels:       map[string]string{"app": "web"},
		Annotations:  map[string]string{"note": "a"},
		CgroupParent: "/kubepods/burstable/pod3a1c",
		Sysctls:      map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel/shmmax": "1", "net/ipv4/conf/eth0.1/forwarding": "1"},
		Resources:    &workload.Resources{CPUShares: 2, MemoryLimit: 1 << 20},
		Security: workload.PodSecurity{
			Namespaces: workload.Namespaces{Network: workload.ModePod, PID: workload.ModeContainer, IPC: workload.ModePod,
				User: &workload.UserNamespace{Mode: workload.ModePod, UIDs: ids, GIDs: ids}},
			RunAsUser: &user, RunAsGroup: &user, SupplementalGroups: []int64{1, 2}, GroupsPolicy: workload.GroupsMerge,
			Seccomp: &workload.Profile{Kind: workload.ProfileRuntimeDefault},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("podFromProto (-want +got):\n%s", d)
	}
}

func TestContainerFromProto(t *testing.T) {
	got, err := containerFromProto(goodContainer())
	if err != nil {
		t.Fatal(err)
	}
	root, group := int64(0), int64(7)
	ids := []workload.IDMapping{{HostID: 1, Length: 2}}
	want := &workload.Container{
		Metadata:   workload.ContainerMetadata{Name: "web", Attempt: 1},
		Image:      workload.ImageSpec{Image: "sha256:" + strings.Repeat("ab", 32), UserSpecified: "example.org/web:1"},
		Command:    []string{"/web"},
		Args:       []string{"-v", ""},
		WorkingDir: "/srv",
		Env:        []workload.EnvVar{{Key: "A", Value: "b=c"}, {Key: "EMPTY"}},
		Mounts: []workload.Mount{
			{ContainerPath: "/data", HostPath: "/srv/data", Propagation: workload.PropagationBidirectional, Options: []string{"noexec"}},
			{ContainerPath: "/ro", HostPath: "/srv/ro", Readonly: true, RecursiveReadonly: true, Propagation: workload.PropagationPrivate, UIDMappings: ids, GIDMappings: ids},
			{ContainerPath: "/img", Readonly: true, Propagation: workload.PropagationPrivate, Image: &workload.ImageSpec{Image: "example.org/data:1"}, ImageSubPath: "a/b"},
		},
		Devices:    []workload.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "rw"}},
		CDIDevices: []string{"nvidia.com/gpu=0"},
		LogPath:    "web/1.log",
		StopSignal: "SIGRTMIN+3",
		Resources: &workload.Resources{
			CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, MemoryLimit: 64 << 20, MemorySwapLimit: 64 << 20, OOMScoreAdj: 999,
			CPUSetCPUs: "0-1,3", HugepageLimits: []workload.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}, Unified: map[string]string{"memory.high": "1"},
		},
		Security: workload.Security{
			AddCapabilities: []string{"NET_ADMIN", "CAP_SYS_TIME"}, DropCapabilities: []string{"ALL"},
			Namespaces: workload.Namespaces{Network: workload.ModePod, PID: workload.ModePod, IPC: workload.ModePod},
			RunAsUser:  &root, RunAsGroup: &group, GroupsPolicy: workload.GroupsStrict, MaskedPaths: []string{"/proc/kcore"},
			Seccomp:  &workload.Profile{Kind: workload.ProfileLocalhost, Localhost: "/etc/web.json"},
			AppArmor: &workload.Profile{Kind: workload.ProfileLocalhost, Localhost: "web"},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("containerFromProto (-want +got):\n%s", d)
	}
}

// TestBadPods: each bad field is named by its path.
func TestBadPods(t *testing.T) {
	sc := func(c *pb.PodSandboxConfig) *pb.LinuxSandboxSecurityContext { return c.Linux.SecurityContext }
	ns := func(c *pb.PodSandboxConfig) *pb.NamespaceOption {
		sc(c).NamespaceOptions.UsernsOptions = nil
		return sc(c).NamespaceOptions
	}
	const security = "config.linux.security_context."
	for _, tt := range []struct {
		field string
		spoil func(c *pb.PodSandboxConfig)
	}{
		{"config.metadata: missing", func(c *pb.PodSandboxConfig) { c.Metadata = nil }},
		{"config.metadata.name: empty", func(c *pb.PodSandboxConfig) { c.Metadata.Name = "" }},
		{"config.metadata.uid: empty", func(c *pb.PodSandboxConfig) { c.Metadata.Uid = "" }},
		{"config.metadata.namespace: empty", func(c *pb.PodSandboxConfig) { c.Metadata.Namespace = "" }},
		{"config.metadata.name: \"a;b=c\"", func(c *pb.PodSandboxConfig) { c.Metadata.Name = "a;b=c" }},
		{"config.metadata.uid: \"../x\"", func(c *pb.PodSandboxConfig) { c.Metadata.Uid = "../x" }},
		{"config.metadata.name: 300 bytes", func(c *pb.PodSandboxConfig) { c.Metadata.Name = strings.Repeat("a", 300) }},
		{"config.hostname: ", func(c *pb.PodSandboxConfig) { c.Hostname = strings.Repeat("a", 65) }},
		{"config.hostname: ", func(c *pb.PodSandboxConfig) { c.Hostname = "a\n127.0.0.1 evil" }},
		{"config.hostname: contains a NUL", func(c *pb.PodSandboxConfig) { c.Hostname = "a\x00" }},
		{"config.log_directory: ", func(c *pb.PodSandboxConfig) { c.LogDirectory = "var/log" }},
		{"config.dns_config.servers[0]: ", func(c *pb.PodSandboxConfig) { c.DnsConfig.Servers = []string{"dns.example"} }},
		{"config.dns_config.searches[0]: ", func(c *pb.PodSandboxConfig) { c.DnsConfig.Searches = []string{"a\nnameserver 1.2.3.4"} }},
		{"config.dns_config.options[1]: ", func(c *pb.PodSandboxConfig) { c.DnsConfig.Options = []string{"a", ""} }},
		{"config.port_mappings[0].host_port: ", func(c *pb.PodSandboxConfig) { c.PortMappings[0].HostPort = 65536 }},
		{"config.port_mappings[0].host_port: ", func(c *pb.PodSandboxConfig) { c.PortMappings[0].HostPort = -1 }},
		{"config.port_mappings[0].container_port: ", func(c *pb.PodSandboxConfig) { c.PortMappings[0].ContainerPort = 0 }},
		{"config.port_mappings[1].container_port: ", func(c *pb.PodSandboxConfig) { c.PortMappings[1].ContainerPort = 70000 }},
		{"config.port_mappings[0].host_ip: ", func(c *pb.PodSandboxConfig) { c.PortMappings[0].HostIp = "localhost" }},
		{"config.port_mappings[0].protocol: unknown value 9", func(c *pb.PodSandboxConfig) { c.PortMappings[0].Protocol = 9 }},
		{"config.port_mappings[1].host_port: ", func(c *pb.PodSandboxConfig) {
			c.PortMappings[1] = proto.Clone(c.PortMappings[0]).(*pb.PortMapping)
		}},
		{"config.labels: ", func(c *pb.PodSandboxConfig) { c.Labels["a"] = strings.Repeat("b", 5000) }},
		{"config.labels: empty", func(c *pb.PodSandboxConfig) { c.Labels[""] = "b" }},
		{`config.labels["a"]: contains a NUL`, func(c *pb.PodSandboxConfig) { c.Labels["a"] = "b\x00" }},
		{"config.labels: contains a NUL", func(c *pb.PodSandboxConfig) { c.Labels["a\x00"] = "b" }},
		{"config.annotations: ", func(c *pb.PodSandboxConfig) { c.Annotations["a"] = strings.Repeat("b", 2<<20) }},
		{"config.windows: ", func(c *pb.PodSandboxConfig) { c.Windows = &pb.WindowsPodSandboxConfig{} }},
		{"config.linux.cgroup_parent: ", func(c *pb.PodSandboxConfig) { c.Linux.CgroupParent = "/kubepods/../../x" }},
		{"config.linux.cgroup_parent: ", func(c *pb.PodSandboxConfig) { c.Linux.CgroupParent = "/kubepods/" + strings.Repeat("x", 256) }},
		{"config.linux.cgroup_parent: ", func(c *pb.PodSandboxConfig) { c.Linux.CgroupParent = strings.Repeat("/x", 1025) }},
		{"config.linux.sysctls[vm.swappiness]: ", func(c *pb.PodSandboxConfig) { c.Linux.Sysctls["vm.swappiness"] = "1" }},
		{"config.linux.sysctls[net/../kernel/core_pattern]: ", func(c *pb.PodSandboxConfig) { c.Linux.Sysctls["net/../kernel/core_pattern"] = "|x" }},
		{"config.linux.sysctls[net.core.somaxconn]: ", func(c *pb.PodSandboxConfig) {
			ns(c).Network = pb.NamespaceMode_NODE
			c.Linux.Sysctls = map[string]string{"net.core.somaxconn": "1"}
		}},
		{"config.linux.sysctls[kernel.sem]: ", func(c *pb.PodSandboxConfig) {
			ns(c).Ipc = pb.NamespaceMode_NODE
			c.Linux.Sysctls = map[string]string{"kernel.sem": "1\t2"}
		}},
		{"config.linux.resources.memory_limit_in_bytes: ", func(c *pb.PodSandboxConfig) { c.Linux.Resources.MemoryLimitInBytes = -2 }},
		{security + "run_as_group: ", func(c *pb.PodSandboxConfig) { sc(c).RunAsUser = nil }},
		{security + "run_as_user: ", func(c *pb.PodSandboxConfig) { sc(c).RunAsUser.Value = -1 }},
		{security + "run_as_user: ", func(c *pb.PodSandboxConfig) { sc(c).RunAsUser.Value = 1<<32 - 1 }},
		{security + "supplemental_groups[1]: ", func(c *pb.PodSandboxConfig) { sc(c).SupplementalGroups[1] = -5 }},
		{security + "supplemental_groups_policy: unknown value 4", func(c *pb.PodSandboxConfig) { sc(c).SupplementalGroupsPolicy = 4 }},
		{security + "namespace_options.network: ", func(c *pb.PodSandboxConfig) { ns(c).Network = pb.NamespaceMode_CONTAINER }},
		{security + "namespace_options.pid: ", func(c *pb.PodSandboxConfig) { ns(c).Pid = pb.NamespaceMode_TARGET }},
		{security + "namespace_options.ipc: ", func(c *pb.PodSandboxConfig) { ns(c).Ipc = pb.NamespaceMode_TARGET }},
		{security + "namespace_options.pid: unknown value 17", func(c *pb.PodSandboxConfig) { ns(c).Pid = 17 }},
		{security + "namespace_options.target_id: ", func(c *pb.PodSandboxConfig) { ns(c).TargetId = "abc" }},
		{security + "namespace_options.network: NODE cannot", func(c *pb.PodSandboxConfig) { sc(c).NamespaceOptions.Network = pb.NamespaceMode_NODE }},
		{security + "namespace_options.userns_options.mode: ", func(c *pb.PodSandboxConfig) {
			sc(c).NamespaceOptions.UsernsOptions.Mode = pb.NamespaceMode_CONTAINER
		}},
		{security + "namespace_options.userns_options.uids: ", func(c *pb.PodSandboxConfig) { sc(c).NamespaceOptions.UsernsOptions.Uids = nil }},
		{security + "namespace_options.userns_options.uids: mappings with", func(c *pb.PodSandboxConfig) {
			sc(c).NamespaceOptions.UsernsOptions.Mode = pb.NamespaceMode_NODE
		}},
		{security + "namespace_options.userns_options.gids[0].length: 0", func(c *pb.PodSandboxConfig) {
			sc(c).NamespaceOptions.UsernsOptions.Gids[0].Length = 0
		}},
		{security + "namespace_options.userns_options.gids[0].length: ", func(c *pb.PodSandboxConfig) {
			sc(c).NamespaceOptions.UsernsOptions.Gids[0].HostId = 1<<32 - 1
		}},
		{security + "namespace_options.userns_options.uids[1]: overlaps", func(c *pb.PodSandboxConfig) {
			u := sc(c).NamespaceOptions.UsernsOptions
			u.Uids = append(u.Uids, &pb.IDMapping{HostId: 131071, ContainerId: 70000, Length: 1})
		}},
		{security + "seccomp.localhost_ref: empty", func(c *pb.PodSandboxConfig) { sc(c).Seccomp.ProfileType = pb.SecurityProfile_Localhost }},
		{security + "seccomp.localhost_ref: set with", func(c *pb.PodSandboxConfig) { sc(c).Seccomp.LocalhostRef = "/x" }},
		{security + "seccomp: \"x.json\"", func(c *pb.PodSandboxConfig) {
			sc(c).Seccomp = &pb.SecurityProfile{ProfileType: pb.SecurityProfile_Localhost, LocalhostRef: "x.json"}
		}},
	} {
		c := goodPod()
		tt.spoil(c)
		_, err := podFromProto(c, "")
		wantInvalid(t, tt.field, err)
	}
	_, err := podFromProto(nil, "")
	wantInvalid(t, "config: missing", err)
}

func TestBadContainers(t *testing.T) {
	sc := func(c *pb.ContainerConfig) *pb.LinuxContainerSecurityContext { return c.Linux.SecurityContext }
	res := func(c *pb.ContainerConfig) *pb.LinuxContainerResources { return c.Linux.Resources }
	const security = "config.linux.security_context."
	for _, tt := range []struct {
		field string
		spoil func(c *pb.ContainerConfig)
	}{
		{"config.metadata: missing", func(c *pb.ContainerConfig) { c.Metadata = nil }},
		{"config.metadata.name: empty", func(c *pb.ContainerConfig) { c.Metadata.Name = "" }},
		{"config.image.image: empty", func(c *pb.ContainerConfig) { c.Image = nil }},
		{"config.image.image: ", func(c *pb.ContainerConfig) { c.Image.Image = "a b" }},
		{"config.command[0]: contains a NUL", func(c *pb.ContainerConfig) { c.Command[0] = "a\x00b" }},
		{"config.working_dir: ", func(c *pb.ContainerConfig) { c.WorkingDir = "srv" }},
		{"config.envs[0].key: empty", func(c *pb.ContainerConfig) { c.Envs[0].Key = "" }},
		{"config.envs[0].key: ", func(c *pb.ContainerConfig) { c.Envs[0].Key = "A=B" }},
		{"config.envs[0].value: contains a NUL", func(c *pb.ContainerConfig) { c.Envs[0].Value = []byte{'a', 0} }},
		{"config.mounts[0].container_path: empty", func(c *pb.ContainerConfig) { c.Mounts[0].ContainerPath = "" }},
		{"config.mounts[0].container_path: ", func(c *pb.ContainerConfig) { c.Mounts[0].ContainerPath = "data" }},
		{"config.mounts[0].host_path: empty", func(c *pb.ContainerConfig) { c.Mounts[0].HostPath = "" }},
		{"config.mounts[0].host_path: ", func(c *pb.ContainerConfig) { c.Mounts[0].HostPath = "./data" }},
		{"config.mounts[0].propagation: unknown value 3", func(c *pb.ContainerConfig) { c.Mounts[0].Propagation = 3 }},
		{"config.mounts[0].mount_options[0]: ", func(c *pb.ContainerConfig) { c.Mounts[0].MountOptions = []string{"lowerdir=/etc"} }},
		{"config.mounts[1].recursive_read_only: set without", func(c *pb.ContainerConfig) { c.Mounts[1].Readonly = false }},
		{"config.mounts[1].recursive_read_only: set with", func(c *pb.ContainerConfig) {
			c.Mounts[1].Propagation = pb.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}},
		{"config.mounts[1].uidMappings: ", func(c *pb.ContainerConfig) { c.Mounts[1].UidMappings = nil }},
		{"config.mounts[1].gidMappings[0].length: 0", func(c *pb.ContainerConfig) { c.Mounts[1].GidMappings[0].Length = 0 }},
		{"config.mounts[2].host_path: set together", func(c *pb.ContainerConfig) { c.Mounts[2].HostPath = "/srv" }},
		{"config.mounts[2].image_sub_path: ", func(c *pb.ContainerConfig) { c.Mounts[2].ImageSubPath = "a/../../b" }},
		{"config.mounts[2].image.image: empty", func(c *pb.ContainerConfig) { c.Mounts[2].Image.Image = "" }},
		{"config.devices[0].host_path: ", func(c *pb.ContainerConfig) { c.Devices[0].HostPath = "fuse" }},
		{"config.devices[0].container_path: empty", func(c *pb.ContainerConfig) { c.Devices[0].ContainerPath = "" }},
		{"config.devices[0].permissions: ", func(c *pb.ContainerConfig) { c.Devices[0].Permissions = "rwx" }},
		{"config.CDI_devices[0].name: ", func(c *pb.ContainerConfig) { c.CDIDevices[0].Name = "gpu0" }},
		{"config.log_path: ", func(c *pb.ContainerConfig) { c.LogPath = "../../etc/cron.d/x" }},
		{"config.log_path: ", func(c *pb.ContainerConfig) { c.LogPath = "/etc/x" }},
		{"config.log_path: ", func(c *pb.ContainerConfig) { c.LogPath = "a/.." }},
		{"config.stop_signal: unknown value 66", func(c *pb.ContainerConfig) { c.StopSignal = 66 }},
		{"config.stop_signal: unknown value -1", func(c *pb.ContainerConfig) { c.StopSignal = -1 }},
		{"config.windows: ", func(c *pb.ContainerConfig) { c.Windows = &pb.WindowsContainerConfig{} }},
		{"config.linux.resources.cpu_period: ", func(c *pb.ContainerConfig) { res(c).CpuPeriod = 999 }},
		{"config.linux.resources.cpu_quota: ", func(c *pb.ContainerConfig) { res(c).CpuQuota = -2 }},
		{"config.linux.resources.cpu_quota: ", func(c *pb.ContainerConfig) { res(c).CpuQuota = 10 }},
		{"config.linux.resources.cpu_shares: ", func(c *pb.ContainerConfig) { res(c).CpuShares = -1 }},
		{"config.linux.resources.memory_swap_limit_in_bytes: ", func(c *pb.ContainerConfig) { res(c).MemorySwapLimitInBytes = 1 << 20 }},
		{"config.linux.resources.oom_score_adj: ", func(c *pb.ContainerConfig) { res(c).OomScoreAdj = 1001 }},
		{"config.linux.resources.cpuset_cpus: ", func(c *pb.ContainerConfig) { res(c).CpusetCpus = "3-1" }},
		{"config.linux.resources.cpuset_mems: ", func(c *pb.ContainerConfig) { res(c).CpusetMems = "0," }},
		{"config.linux.resources.hugepage_limits[0].page_size: ", func(c *pb.ContainerConfig) { res(c).HugepageLimits[0].PageSize = "../2MB" }},
		{"config.linux.resources.unified: ", func(c *pb.ContainerConfig) { res(c).Unified["../x.y"] = "1" }},
		{security + "run_as_group: ", func(c *pb.ContainerConfig) { sc(c).RunAsUser = nil }},
		{security + "run_as_username: ", func(c *pb.ContainerConfig) { sc(c).RunAsUsername = "www" }},
		{security + "capabilities.add_capabilities[0]: ", func(c *pb.ContainerConfig) { sc(c).Capabilities.AddCapabilities[0] = "NET_ADMIM" }},
		{security + "capabilities.drop_capabilities[0]: ", func(c *pb.ContainerConfig) { sc(c).Capabilities.DropCapabilities[0] = "" }},
		{security + "namespace_options.target_id: empty", func(c *pb.ContainerConfig) {
			sc(c).NamespaceOptions = &pb.NamespaceOption{Pid: pb.NamespaceMode_TARGET}
		}},
		{security + "masked_paths[0]: ", func(c *pb.ContainerConfig) { sc(c).MaskedPaths[0] = "proc" }},
		{security + "readonly_paths[0]: ", func(c *pb.ContainerConfig) { sc(c).ReadonlyPaths = []string{""} }},
		{security + "seccomp_profile_path: ", func(c *pb.ContainerConfig) { sc(c).SeccompProfilePath = "localhost/x.json" }},
		{security + "seccomp_profile_path: ", func(c *pb.ContainerConfig) { sc(c).SeccompProfilePath = "x" }},
		{security + "apparmor_profile: ", func(c *pb.ContainerConfig) { sc(c).ApparmorProfile = "localhost/" }},
		{security + "apparmor.profile_type: unknown value 8", func(c *pb.ContainerConfig) { sc(c).Apparmor = &pb.SecurityProfile{ProfileType: 8} }},
	} {
		c := goodContainer()
		tt.spoil(c)
		_, err := containerFromProto(c)
		wantInvalid(t, tt.field, err)
	}
	_, err := containerFromProto(nil)
	wantInvalid(t, "config: missing", err)
}

func wantInvalid(t *testing.T, field string, err error) {
	t.Helper()
	if !errors.Is(err, sandbox.ErrInvalid) || !strings.HasPrefix(err.Error(), "invalid: ") || !strings.Contains(err.Error(), field) {
		t.Errorf("error = %v; want an invalid %q", err, field)
	}
}

// TestAllComplaints: a client hears of all bad fields at once, within bounds.
func TestAllComplaints(t *testing.T) {
	c := goodContainer()
	c.Metadata.Name, c.WorkingDir = "", "x"
	_, err := containerFromProto(c)
	wantInvalid(t, "config.metadata.name: empty; config.working_dir: ", err)
	for range 20 {
		c.Command = append(c.Command, "\x00")
	}
	_, err = containerFromProto(c)
	wantInvalid(t, "; and 14 more", err)
}

// TestMinimal: what people write by hand for crictl is enough.
func TestMinimal(t *testing.T) {
	if _, err := podFromProto(&pb.PodSandboxConfig{Metadata: &pb.PodSandboxMetadata{Name: "a", Uid: "b", Namespace: "c"}}, ""); err != nil {
		t.Errorf("podFromProto(metadata only) = %v; want nil", err)
	}
	c, err := containerFromProto(&pb.ContainerConfig{Metadata: &pb.ContainerMetadata{Name: "a"}, Image: &pb.ImageSpec{Image: "busybox"}})
	if err != nil {
		t.Fatalf("containerFromProto(metadata and image) = %v; want nil", err)
	}
	if c.Resources != nil || c.Security.Seccomp != nil || c.Security.AppArmor != nil || c.StopSignal != "" {
		t.Errorf("containerFromProto invented something: %+v", c)
	}
}

// TestSubPathWithoutImage: the kubelet sets it for every volume with a subPath, which host_path has already.
func TestSubPathWithoutImage(t *testing.T) {
	in := goodContainer()
	in.Mounts[0].ImageSubPath = "data"
	c, err := containerFromProto(in)
	if err != nil || c.Mounts[0].ImageSubPath != "" || c.Mounts[0].HostPath != in.Mounts[0].HostPath {
		t.Errorf("containerFromProto() = %+v, %v; want the mount without a sub path", c.Mounts, err)
	}
}

// TestRoundTrip: what a status echoes is what was asked for.
func TestRoundTrip(t *testing.T) {
	in := goodContainer()
	cfg, err := containerFromProto(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Mounts[2].Readonly = true // as the CRI says of all image mounts
	if d := cmp.Diff(in.Mounts, mountsToProto(cfg.Mounts), protocmp.Transform()); d != "" {
		t.Errorf("mounts (-want +got):\n%s", d)
	}
	if d := cmp.Diff(in.Linux.Resources, resourcesToProto(cfg.Resources), protocmp.Transform()); d != "" {
		t.Errorf("resources (-want +got):\n%s", d)
	}
	pod, err := podFromProto(goodPod(), "")
	if err != nil {
		t.Fatal(err)
	}
	want := goodPod().Linux.SecurityContext.NamespaceOptions
	if d := cmp.Diff(want, namespacesToProto(pod.Security.Namespaces), protocmp.Transform()); d != "" {
		t.Errorf("namespaces (-want +got):\n%s", d)
	}
}

// TestSignals: each signal of the CRI has a name that leads back to it.
func TestSignals(t *testing.T) {
	for n, name := range pb.Signal_name {
		want := pb.Signal(n)
		if got := signalToProto(signalName(want)); got != want {
			t.Errorf("signalToProto(signalName(%s)) = %s; want the same", name, got)
		}
	}
	for text, want := range map[string]pb.Signal{
		"15": pb.Signal_SIGNAL_SIGTERM, "KILL": pb.Signal_SIGNAL_SIGKILL, "sigint": pb.Signal_SIGNAL_SIGINT,
		"37": pb.Signal_SIGNAL_SIGRTMINPLUS3, "34": pb.Signal_SIGNAL_SIGRTMIN, "64": pb.Signal_SIGNAL_SIGRTMAX,
		"50": pb.Signal_SIGNAL_SIGRTMAXMINUS14, "SIGRTMIN+0": pb.Signal_SIGNAL_SIGRTMIN,
		"99": 0, "": 0, "SIGNONE": 0,
	} {
		if got := signalToProto(text); got != want {
			t.Errorf("signalToProto(%q) = %s; want %s", text, got, want)
		}
	}
}

// FuzzConvert: no bytes that decode make a conversion panic, and what is accepted can be told.
func FuzzConvert(f *testing.F) {
	for _, m := range []proto.Message{
		&pb.RunPodSandboxRequest{Config: goodPod(), RuntimeHandler: "x"}, &pb.CreateContainerRequest{Config: goodContainer(), SandboxConfig: goodPod()},
		&pb.RunPodSandboxRequest{}, &pb.PullImageRequest{Image: &pb.ImageSpec{Image: "a"}, Auth: &pb.AuthConfig{Auth: "YTpi"}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	images := &imageService{handlers: handlerSet(nil)}
	f.Fuzz(func(t *testing.T, b []byte) {
		var run pb.RunPodSandboxRequest
		if proto.Unmarshal(b, &run) == nil {
			if p, err := podFromProto(run.GetConfig(), run.GetRuntimeHandler()); err == nil {
				podToProto(&sandbox.Pod{Config: *p})
				podStatusToProto(&sandbox.Pod{Config: *p})
			} else if !errors.Is(err, sandbox.ErrInvalid) {
				t.Errorf("podFromProto: %v; want invalid", err)
			}
		}
		var create pb.CreateContainerRequest
		if proto.Unmarshal(b, &create) == nil {
			if c, err := containerFromProto(create.GetConfig()); err == nil {
				containerStatusToProto(&sandbox.Container{Config: *c, StopSignal: c.StopSignal})
			} else if !errors.Is(err, sandbox.ErrInvalid) {
				t.Errorf("containerFromProto: %v; want invalid", err)
			}
		}
		var pull pb.PullImageRequest
		if proto.Unmarshal(b, &pull) == nil {
			images.imageFromProto(pull.GetImage())
			credentialsFromProto(pull.GetAuth())
		}
	})
}
