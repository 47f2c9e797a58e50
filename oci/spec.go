package oci

import (
	"context"
	"fmt"
	"maps"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// PIDMode says whose PID namespace a container uses.
type PIDMode int

// PID modes.
const (
	PIDOwn  PIDMode = iota // a new one
	PIDHost                // the node's
	PIDJoin                // the one at Namespaces.PIDPath: the pod's, or another container's (CRI mode TARGET)
)

// Namespaces are where the pod's namespaces are pinned.
type Namespaces struct {
	Net, IPC, UTS string // paths; "" is the host's
	User          string // path; "" is none
	PID           PIDMode
	PIDPath       string // with PIDJoin
}

// SeccompSource makes profiles for a process with the bounding capabilities caps ("CAP_CHOWN"). What it returns is
// shared and never changed.
type SeccompSource interface {
	Default(caps []string) (*specs.LinuxSeccomp, error)
	Localhost(path string, caps []string) (*specs.LinuxSeccomp, error)
}

// Image is what an image's configuration says about a process (image-spec, "config"). It is not image-spec's own type:
// that brings regular expressions which every start of cri-shim-oci would compile.
type Image struct {
	User, WorkingDir     string
	Env, Entrypoint, Cmd []string
}

// Params is everything that decides what a container looks like.
type Params struct {
	Pod         *workload.Pod
	PodID       string
	ContainerID string
	Container   *workload.Container
	Image       Image

	// Root is the mounted root file system: a directory of it is enough. With RootPath empty it is a detached
	// mount that is handed to the init; else RootPath is what the specification names and the init binds.
	Root     *os.File
	RootPath string

	Namespaces Namespaces
	CgroupPath string // the group's name, see Runtime.CgroupPath

	// Host files made for the pod, mounted unless the client mounts something there itself. "" leaves one out.
	ResolvConf, Hosts, Hostname string
	// ShmPath is the pod's shared /dev/shm; "" is a tmpfs of this container alone. A pod with the host's IPC
	// namespace gets the host's /dev/shm.
	ShmPath string
	// ExtraMounts are mounts that the client did not ask for (volumes of the image); one of the client's at
	// the same place wins.
	ExtraMounts []workload.Mount
	// ImageVolume returns the host path of an image volume (Mount.Image).
	ImageVolume func(m *workload.Mount) (string, error)

	// Bundle is the folder that hooks are told of; whoever launches the container puts config.json there.
	Bundle string

	// NoSecurityContext: the client sent no security context at all. The kubelet always does, with the paths to
	// mask; for another client an absent context means the runtime's defaults, not an unmasked /proc.
	NoSecurityContext bool

	// MountFiles are detached mounts by destination (cleaned), see Options.MountFiles.
	MountFiles map[string]*os.File

	// Edit changes what was built (CDI devices, NRI). Spec.Linux.Seccomp is shared with other
	// containers: it may be replaced, not changed. It may look at host paths, within PathTimeout.
	Edit func(*Built) error

	checkOnly bool // there is no image to look users up in
}

// Host is what Build must know about the node. DetectHost fills in what can be detected.
type Host struct {
	Capabilities uint64 // bounding set of this process, a bit for each capability number
	// OOMScoreFloor is the lowest oom_score_adj that can be given to a container. It is -1000 with CAP_SYS_RESOURCE,
	// else this process's own.
	OOMScoreFloor int
	Swap          bool // the kernel accounts for swap
	Hugetlb       bool // there is a hugetlb controller
	AppArmor      bool
	SELinux       bool
	Seccomp       SeccompSource
	// AppArmorDefault is the loaded profile for runtime/default; "" is none.
	AppArmorDefault string
	// Rlimits for every container; those not named are inherited.
	Rlimits []specs.POSIXRlimit
	// PidsLimit of a container where the pod sets none; 0 is no limit.
	PidsLimit int64
	// PathTimeout bounds the look at a host path, which may be on a dead network file system; 0 is 10 seconds.
	PathTimeout time.Duration
}

// Built is a specification and what was found out on the way.
type Built struct {
	Spec *specs.Spec
	User workload.User
	// Relabel are host paths that the client wants relabelled for the container (SELinux).
	Relabel []string
	// Warnings say what the CRI asked for and the node cannot give, where the CRI allows going on.
	Warnings []string
	// HostNodes are the host's device nodes by the path in the container, see Options.HostNodes.
	HostNodes map[string]string
	// Files are for the root file system, see Options.RootFiles.
	Files map[string][]byte
}

// builder carries the parts that several steps look at.
type builder struct {
	*Params
	host  *Host
	ctr   *workload.Container
	sec   *workload.Security
	spec  *specs.Spec
	built *Built

	homeDir     string // of the resolved user
	deviceRules []specs.LinuxDeviceCgroup
}

// Build makes the specification of a container (CRI CreateContainer). ctx bounds the looks at host paths.
func Build(ctx context.Context, h *Host, p *Params) (*Built, error) {
	b := &builder{Params: p, host: h, ctr: p.Container, sec: &p.Container.Security}
	b.spec = &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: p.RootPath, Readonly: b.sec.ReadonlyRootfs},
		Process: &specs.Process{Terminal: b.ctr.TTY, NoNewPrivileges: b.sec.NoNewPrivs, Rlimits: h.Rlimits},
		Linux:   &specs.Linux{CgroupsPath: p.CgroupPath},
	}
	b.built = &Built{Spec: b.spec}
	if b.sec.Privileged && !p.Pod.Security.Privileged {
		// CRI LinuxSandboxSecurityContext.privileged: MUST be true for a privileged container.
		return nil, fieldf("security.privileged", "the pod sandbox was not made for privileged containers")
	}
	steps := []func() error{
		b.args, b.user, b.env, b.capabilities, b.namespaces,
		func() error { return b.mounts(ctx) },
		func() error { return b.devices(ctx) },
		b.resources, b.paths, b.seccomp, b.apparmor, b.selinux,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	b.annotations()
	if p.Edit != nil {
		if err := b.bounded(ctx, func(func(string)) error { return p.Edit(b.built) }); err != nil {
			return nil, err
		}
	}
	return b.built, nil
}

// namespaces joins the pod's. A container has its mount namespace, and its cgroup namespace: a privileged
// one is to see the node's groups (as containerd and Docker have it).
func (b *builder) namespaces() error {
	ns := b.Namespaces
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	add := func(t specs.LinuxNamespaceType, path string) {
		if path != "" {
			out = append(out, specs.LinuxNamespace{Type: t, Path: path})
		}
	}
	add(specs.UserNamespace, ns.User)
	add(specs.NetworkNamespace, ns.Net)
	add(specs.IPCNamespace, ns.IPC)
	add(specs.UTSNamespace, ns.UTS)
	switch ns.PID {
	case PIDOwn:
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case PIDJoin:
		if ns.PIDPath == "" {
			return fieldf("security.namespaces.pid", "the namespace to join has no path")
		}
		add(specs.PIDNamespace, ns.PIDPath)
	case PIDHost:
	default:
		return fieldf("security.namespaces.pid", "unknown mode %d", ns.PID)
	}
	if !b.sec.Privileged {
		out = append(out, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	b.spec.Linux.Namespaces = out
	if u := b.Pod.Security.Namespaces.User; ns.User != "" && u != nil {
		b.spec.Linux.UIDMappings = idMappings(u.UIDs)
		b.spec.Linux.GIDMappings = idMappings(u.GIDs)
	}
	return nil
}

func idMappings(in []workload.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range in {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Length})
	}
	return out
}

// annotations are those by which containerd tells runtimes what they run; kata and gVisor read them.
func (b *builder) annotations() {
	const prefix = "io.kubernetes.cri."
	image := b.ctr.Image.UserSpecified
	if image == "" {
		image = b.ctr.Image.Image
	}
	a := map[string]string{
		prefix + "container-type":    "container",
		prefix + "sandbox-id":        b.PodID,
		prefix + "sandbox-name":      b.Pod.Metadata.Name,
		prefix + "sandbox-namespace": b.Pod.Metadata.Namespace,
		prefix + "sandbox-uid":       b.Pod.Metadata.UID,
		prefix + "container-name":    b.ctr.Metadata.Name,
		prefix + "image-name":        image,
	}
	maps.Copy(a, b.spec.Annotations)
	b.spec.Annotations = a
}

func (b *builder) warn(format string, args ...any) {
	b.built.Warnings = append(b.built.Warnings, fmt.Sprintf(format, args...))
}
