package cri

import (
	"net/netip"
	"path/filepath"
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/sysctl"
	"github.com/cri-shim/cri-shim/internal/workload"
)

// Sizes in bytes.
const (
	maxName     = 253 // a DNS subdomain (RFC 1123), the longest name in Kubernetes
	maxHostname = 64  // sethostname(2)
	maxFileName = 255 // NAME_MAX
	// maxCgroupPath leaves room in PATH_MAX for where the hierarchy is mounted, the container's group and its files.
	maxCgroupPath = 2048
)

// podFromProto converts and checks the configuration of a pod sandbox. The error is a
// sandbox.ErrInvalid that names fields.
func podFromProto(c *pb.PodSandboxConfig, handler string) (*workload.Pod, error) {
	var f fields
	const at = "config"
	if c == nil {
		f.add(at, "missing")
		return nil, f.err()
	}
	f.scan(at, c)
	p := &workload.Pod{
		Metadata:     f.podMetadata(at+".metadata", c.GetMetadata()),
		Handler:      handler,
		Hostname:     c.GetHostname(),
		LogDirectory: c.GetLogDirectory(),
		DNS:          f.dns(at+".dns_config", c.GetDnsConfig()),
		Labels:       c.GetLabels(),
		Annotations:  c.GetAnnotations(),
	}
	if len(p.Hostname) > maxHostname || hasSpace(p.Hostname) || strings.Contains(p.Hostname, "/") {
		f.add(at+".hostname", "%q is not a host name of at most %d bytes", p.Hostname, maxHostname)
	}
	if p.LogDirectory != "" {
		f.absolute(at+".log_directory", p.LogDirectory)
	}
	f.maps(at, p.Labels, p.Annotations)
	f.podLinux(at+".linux", c.GetLinux(), p)
	p.PortMappings = f.ports(at+".port_mappings", c.GetPortMappings())
	if c.GetWindows() != nil {
		f.add(at+".windows", "this is a Linux node")
	}
	return p, f.err()
}

func (f *fields) podMetadata(at string, m *pb.PodSandboxMetadata) workload.PodMetadata {
	if m == nil {
		f.add(at, "missing")
		return workload.PodMetadata{}
	}
	f.name(at+".name", m.GetName())
	f.name(at+".uid", m.GetUid())
	f.name(at+".namespace", m.GetNamespace())
	return workload.PodMetadata{Name: m.GetName(), UID: m.GetUid(), Namespace: m.GetNamespace(), Attempt: m.GetAttempt()}
}

// name checks what ends up in names of files and in CNI_ARGS, where ; and = have a meaning.
func (f *fields) name(at, value string) {
	switch {
	case !f.need(at, value):
	case len(value) > maxName:
		f.add(at, "%d bytes, more than %d", len(value), maxName)
	case hasSpace(value) || strings.ContainsAny(value, "/;=") || value == "." || value == "..":
		f.add(at, "%q is not a name", value)
	}
}

func (f *fields) podLinux(at string, l *pb.LinuxPodSandboxConfig, p *workload.Pod) {
	sc := l.GetSecurityContext()
	p.CgroupParent = l.GetCgroupParent()
	p.Sysctls = l.GetSysctls()
	p.Overhead = f.resources(at+".overhead", l.GetOverhead())
	p.Resources = f.resources(at+".resources", l.GetResources())
	p.Security = f.podSecurity(at+".security_context", sc)
	if !isCgroupPath(p.CgroupParent) {
		f.add(at+".cgroup_parent", "%q is not a cgroup path", p.CgroupParent)
	}
	f.sysctls(at+".sysctls", p.Sysctls, p.Security.Namespaces)
}

// isCgroupPath: what the kernel would refuse must not get into a record, since the group could not be removed either.
func isCgroupPath(path string) bool {
	for name := range strings.SplitSeq(path, "/") {
		if name == ".." || len(name) > maxFileName {
			return false
		}
	}
	return len(path) <= maxCgroupPath && !hasControl(path)
}

func (f *fields) podSecurity(at string, s *pb.LinuxSandboxSecurityContext) workload.PodSecurity {
	out := workload.PodSecurity{
		Namespaces:         f.podNamespaces(at+".namespace_options", s.GetNamespaceOptions()),
		SELinux:            selinux(s.GetSelinuxOptions()),
		RunAsUser:          f.id(at+".run_as_user", s.GetRunAsUser()),
		RunAsGroup:         f.id(at+".run_as_group", s.GetRunAsGroup()),
		ReadonlyRootfs:     s.GetReadonlyRootfs(),
		SupplementalGroups: f.groups(at+".supplemental_groups", s.GetSupplementalGroups()),
		GroupsPolicy:       groupsPolicy(s.GetSupplementalGroupsPolicy()),
		Privileged:         s.GetPrivileged(),
		Seccomp:            f.seccomp(at, s.GetSeccomp(), s.GetSeccompProfilePath()),
		AppArmor:           f.profile(at+".apparmor", s.GetApparmor()),
	}
	if out.RunAsGroup != nil && out.RunAsUser == nil {
		f.add(at+".run_as_group", "set without run_as_user")
	}
	return out
}

func (f *fields) dns(at string, d *pb.DNSConfig) *workload.DNS {
	if d == nil {
		return nil
	}
	for i, s := range d.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil {
			f.add(index(at+".servers", i), "%q is not an IP address", s)
		}
	}
	for i, s := range d.GetSearches() {
		if s == "" || hasSpace(s) {
			f.add(index(at+".searches", i), "%q is not a domain", s)
		}
	}
	for i, s := range d.GetOptions() {
		if s == "" || hasSpace(s) {
			f.add(index(at+".options", i), "%q is not an option of resolv.conf", s)
		}
	}
	return &workload.DNS{Servers: d.GetServers(), Searches: d.GetSearches(), Options: d.GetOptions()}
}

func (f *fields) ports(at string, in []*pb.PortMapping) []workload.PortMapping {
	var out []workload.PortMapping
	taken := map[workload.PortMapping]bool{}
	for i, m := range in {
		p := workload.PortMapping{
			Protocol:      strings.ToLower(m.GetProtocol().String()),
			ContainerPort: m.GetContainerPort(),
			HostPort:      m.GetHostPort(),
			HostIP:        m.GetHostIp(),
		}
		if p.ContainerPort < 0 || p.ContainerPort > 65535 || p.ContainerPort == 0 && p.HostPort > 0 {
			f.add(index(at, i)+".container_port", "%d is not a port", p.ContainerPort)
		}
		if p.HostPort < 0 || p.HostPort > 65535 {
			f.add(index(at, i)+".host_port", "%d is not in 0-65535", p.HostPort)
		}
		if p.HostIP != "" {
			if _, err := netip.ParseAddr(p.HostIP); err != nil {
				f.add(index(at, i)+".host_ip", "%q is not an IP address", p.HostIP)
			}
		}
		if p.HostPort > 0 {
			key := workload.PortMapping{Protocol: p.Protocol, HostPort: p.HostPort, HostIP: p.HostIP}
			if taken[key] {
				f.add(index(at, i)+".host_port", "%s port %d is asked for twice", p.Protocol, p.HostPort)
			}
			taken[key] = true
		}
		out = append(out, p)
	}
	return out
}

// sysctls refuses what would change the node. The UTS namespace goes with the network.
func (f *fields) sysctls(at string, in map[string]string, ns workload.Namespaces) {
	own := ns.Network != workload.ModeNode
	private := sysctl.Private{Net: own, IPC: ns.IPC != workload.ModeNode, UTS: own}
	for name, value := range in {
		if err := sysctl.Check(name, value, private); err != nil {
			f.add(at+"["+name+"]", "%v", err)
		}
	}
}

// logPath checks a path below the pod's log directory.
func (f *fields) logPath(at, p string) {
	if p != "" && (!filepath.IsLocal(p) || filepath.Clean(p) == ".") {
		f.add(at, "%q does not stay below the pod's log_directory", p)
	}
}
