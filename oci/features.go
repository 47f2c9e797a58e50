package oci

import (
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci/seccomp"
)

// Features is the runtime specification's features document (features.md): what this build understands, and of seccomp's
// flags what the running kernel takes. The lists are read from the tables by which Compile works.
func Features() *features.Features {
	yes, no := true, false
	return &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions:  knownMountOptions(),
		Linux: &features.Linux{
			Namespaces:   namespaceNames(),
			Capabilities: capList(1<<len(capNames) - 1),
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &no, Rdma: &yes},
			Seccomp:      seccomp.Features(),
			Apparmor:     &features.Apparmor{Enabled: &yes},
			Selinux:      &features.Selinux{Enabled: &yes},
			IntelRdt:     &features.IntelRdt{Enabled: &yes, Schemata: &yes, Monitoring: &yes},
			MemoryPolicy: &features.MemoryPolicy{
				Modes: slices.Sorted(maps.Keys(sys.MempolicyModes)), Flags: slices.Sorted(maps.Keys(sys.MempolicyFlags)),
			},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &yes},
		},
	}
}

// knownMountOptions are those that Compile honours itself, sorted.
func knownMountOptions() []string {
	return slices.Sorted(maps.Keys(mountOptions))
}

func namespaceNames() []string {
	var out []string
	for t := range namespaceFlags {
		out = append(out, string(t))
	}
	slices.Sort(out)
	return out
}
