// Package workload says in domain terms what a client asked for: pods and
// containers as plain data, free of protobuf. Its types are what records store,
// so a field's JSON name never changes its meaning.
package workload

// NamespaceMode is whose namespace is used (CRI NamespaceMode).
type NamespaceMode string

// The modes of the CRI. The zero value is treated as ModePod.
const (
	ModePod       NamespaceMode = "pod"
	ModeContainer NamespaceMode = "container"
	ModeNode      NamespaceMode = "node"
	ModeTarget    NamespaceMode = "target"
)

// Namespaces says which namespaces a pod or container uses.
type Namespaces struct {
	Network NamespaceMode  `json:"network,omitempty"`
	PID     NamespaceMode  `json:"pid,omitempty"`
	IPC     NamespaceMode  `json:"ipc,omitempty"`
	Target  string         `json:"target,omitempty"` // container ID, with PID == ModeTarget
	User    *UserNamespace `json:"user,omitempty"`
}

// UserNamespace asks for a user namespace; Mode is ModePod or ModeNode.
type UserNamespace struct {
	Mode NamespaceMode `json:"mode"`
	UIDs []IDMapping   `json:"uids,omitempty"`
	GIDs []IDMapping   `json:"gids,omitempty"`
}

// IDMapping maps Length ids from ContainerID on to HostID on.
type IDMapping struct {
	HostID      uint32 `json:"host_id"`
	ContainerID uint32 `json:"container_id"`
	Length      uint32 `json:"length"`
}

// PodMetadata names a pod sandbox; UID and Attempt together are unique on a node.
type PodMetadata struct {
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Attempt   uint32 `json:"attempt"`
}

// Pod is the configuration of a pod sandbox (CRI PodSandboxConfig).
type Pod struct {
	Metadata     PodMetadata       `json:"metadata"`
	Handler      string            `json:"handler,omitempty"` // RuntimeClass handler; "" is the built-in one
	Hostname     string            `json:"hostname,omitempty"`
	LogDirectory string            `json:"log_directory,omitempty"`
	DNS          *DNS              `json:"dns,omitempty"` // nil: the node's resolv.conf
	PortMappings []PortMapping     `json:"port_mappings,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	CgroupParent string            `json:"cgroup_parent,omitempty"`
	Sysctls      map[string]string `json:"sysctls,omitempty"`
	Overhead     *Resources        `json:"overhead,omitempty"`
	Resources    *Resources        `json:"resources,omitempty"`
	Security     PodSecurity       `json:"security"`
}

// PodSecurity is the security context of the sandbox itself.
type PodSecurity struct {
	Namespaces         Namespaces `json:"namespaces"`
	SELinux            *SELinux   `json:"selinux,omitempty"`
	RunAsUser          *int64     `json:"run_as_user,omitempty"`
	RunAsGroup         *int64     `json:"run_as_group,omitempty"`
	ReadonlyRootfs     bool       `json:"readonly_rootfs,omitempty"`
	SupplementalGroups []int64    `json:"supplemental_groups,omitempty"`
	GroupsPolicy       string     `json:"groups_policy,omitempty"` // GroupsMerge or GroupsStrict; "" is GroupsMerge
	Privileged         bool       `json:"privileged,omitempty"`
	Seccomp            *Profile   `json:"seccomp,omitempty"`
	AppArmor           *Profile   `json:"apparmor,omitempty"`
}

// DNS is the content of a pod's resolv.conf.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// PortMapping publishes a container port on the host.
type PortMapping struct {
	Protocol      string `json:"protocol"` // "tcp", "udp" or "sctp"
	ContainerPort int32  `json:"container_port"`
	HostPort      int32  `json:"host_port"` // 0: not published
	HostIP        string `json:"host_ip,omitempty"`
}
