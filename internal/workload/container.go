package workload

// Groups policies (CRI SupplementalGroupsPolicy).
const (
	GroupsMerge  = "merge"
	GroupsStrict = "strict"
)

// ContainerMetadata names a container; it is unique in its pod.
type ContainerMetadata struct {
	Name    string `json:"name"`
	Attempt uint32 `json:"attempt"`
}

// ImageSpec is the image a client named (CRI ImageSpec).
type ImageSpec struct {
	Image         string            `json:"image"`
	Annotations   map[string]string `json:"annotations,omitempty"`
	UserSpecified string            `json:"user_specified,omitempty"`
	Handler       string            `json:"handler,omitempty"`
	ImageRef      string            `json:"image_ref,omitempty"`
}

// EnvVar is one environment variable.
type EnvVar struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Container is the configuration of a container (CRI ContainerConfig).
type Container struct {
	Metadata    ContainerMetadata `json:"metadata"`
	Image       ImageSpec         `json:"image"`
	Command     []string          `json:"command,omitempty"`
	Args        []string          `json:"args,omitempty"`
	WorkingDir  string            `json:"working_dir,omitempty"`
	Env         []EnvVar          `json:"env,omitempty"`
	Mounts      []Mount           `json:"mounts,omitempty"`
	Devices     []Device          `json:"devices,omitempty"`
	CDIDevices  []string          `json:"cdi_devices,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	LogPath     string            `json:"log_path,omitempty"` // relative to the pod's LogDirectory
	Stdin       bool              `json:"stdin,omitempty"`
	StdinOnce   bool              `json:"stdin_once,omitempty"`
	TTY         bool              `json:"tty,omitempty"`
	StopSignal  string            `json:"stop_signal,omitempty"` // "SIGTERM", "SIGRTMIN+1"; "" is the image's
	Resources   *Resources        `json:"resources,omitempty"`
	Security    Security          `json:"security"`
}

// Propagation of a mount between host and container.
const (
	PropagationPrivate         = "private"
	PropagationHostToContainer = "host-to-container"
	PropagationBidirectional   = "bidirectional"
)

// Mount is a volume in a container (CRI Mount). Exactly one of HostPath and Image is set.
type Mount struct {
	ContainerPath     string      `json:"container_path"`
	HostPath          string      `json:"host_path,omitempty"`
	Readonly          bool        `json:"readonly,omitempty"`
	RecursiveReadonly bool        `json:"recursive_readonly,omitempty"`
	SELinuxRelabel    bool        `json:"selinux_relabel,omitempty"`
	Propagation       string      `json:"propagation,omitempty"` // "" is PropagationPrivate
	UIDMappings       []IDMapping `json:"uid_mappings,omitempty"`
	GIDMappings       []IDMapping `json:"gid_mappings,omitempty"`
	Image             *ImageSpec  `json:"image,omitempty"`
	ImageSubPath      string      `json:"image_sub_path,omitempty"`
	Options           []string    `json:"options,omitempty"` // noexec, nodev, nosuid, …
}

// Device is a host device in a container (CRI Device).
type Device struct {
	ContainerPath string `json:"container_path"`
	HostPath      string `json:"host_path"`
	Permissions   string `json:"permissions,omitempty"` // of r, w, m; "" is rwm
}

// Resources are limits (CRI LinuxContainerResources); a zero value is not a limit.
type Resources struct {
	CPUPeriod       int64             `json:"cpu_period,omitempty"` // µs
	CPUQuota        int64             `json:"cpu_quota,omitempty"`  // µs a period; -1: none
	CPUShares       int64             `json:"cpu_shares,omitempty"`
	MemoryLimit     int64             `json:"memory_limit,omitempty"`      // bytes
	MemorySwapLimit int64             `json:"memory_swap_limit,omitempty"` // bytes of memory and swap together
	OOMScoreAdj     int64             `json:"oom_score_adj,omitempty"`
	CPUSetCPUs      string            `json:"cpuset_cpus,omitempty"`
	CPUSetMems      string            `json:"cpuset_mems,omitempty"`
	HugepageLimits  []HugepageLimit   `json:"hugepage_limits,omitempty"`
	Unified         map[string]string `json:"unified,omitempty"`
}

// HugepageLimit limits the use of one huge page size.
type HugepageLimit struct {
	PageSize string `json:"page_size"` // "2MB"
	Limit    uint64 `json:"limit"`     // bytes
}

// SELinux is a label in its four parts.
type SELinux struct {
	User  string `json:"user,omitempty"`
	Role  string `json:"role,omitempty"`
	Type  string `json:"type,omitempty"`
	Level string `json:"level,omitempty"`
}

// Kinds of a security profile.
const (
	ProfileRuntimeDefault = "runtime/default"
	ProfileUnconfined     = "unconfined"
	ProfileLocalhost      = "localhost"
)

// Profile is a seccomp or AppArmor profile. Localhost is a path (seccomp) or a
// loaded profile's name (AppArmor), with Kind == ProfileLocalhost.
type Profile struct {
	Kind      string `json:"kind"`
	Localhost string `json:"localhost,omitempty"`
}

// Security is the security context of a container (CRI LinuxContainerSecurityContext).
type Security struct {
	AddCapabilities        []string   `json:"add_capabilities,omitempty"` // without the CAP_ prefix or with it; "ALL"
	DropCapabilities       []string   `json:"drop_capabilities,omitempty"`
	AddAmbientCapabilities []string   `json:"add_ambient_capabilities,omitempty"`
	Privileged             bool       `json:"privileged,omitempty"`
	Namespaces             Namespaces `json:"namespaces"`
	SELinux                *SELinux   `json:"selinux,omitempty"`
	RunAsUser              *int64     `json:"run_as_user,omitempty"`
	RunAsGroup             *int64     `json:"run_as_group,omitempty"`
	RunAsUsername          string     `json:"run_as_username,omitempty"`
	ReadonlyRootfs         bool       `json:"readonly_rootfs,omitempty"`
	SupplementalGroups     []int64    `json:"supplemental_groups,omitempty"`
	GroupsPolicy           string     `json:"groups_policy,omitempty"`
	NoNewPrivs             bool       `json:"no_new_privs,omitempty"`
	// MaskedPaths and ReadonlyPaths are exactly what the client sent: the
	// kubelet sends the defaults, or nothing with procMount: Unmasked.
	MaskedPaths   []string `json:"masked_paths,omitempty"`
	ReadonlyPaths []string `json:"readonly_paths,omitempty"`
	Seccomp       *Profile `json:"seccomp,omitempty"` // nil is unconfined, as the CRI says
	AppArmor      *Profile `json:"apparmor,omitempty"`
}

// User is the identity a container's first process was given.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}
