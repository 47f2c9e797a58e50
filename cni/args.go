package cni

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/cri-shim/cri-shim/internal/sys"
)

func (a Attachment) id() AttachmentID {
	return AttachmentID{PodID: a.PodID, IfName: a.IfName}.withDefault()
}

func (id AttachmentID) withDefault() AttachmentID {
	if id.IfName == "" {
		id.IfName = defaultIfName
	}
	return id
}

func (id AttachmentID) validate() error {
	if err := utils.ValidateContainerID(id.PodID); err != nil {
		return fmt.Errorf("pod ID: %w", err)
	}
	if err := utils.ValidateInterfaceName(id.IfName); err != nil {
		return fmt.Errorf("interface name %q: %w", id.IfName, err)
	}
	return nil
}

// validate checks what ADD needs.
func (a Attachment) validate() error {
	for _, f := range []struct{ name, value string }{
		{"namespace", a.Namespace}, {"name", a.Name}, {"UID", a.UID},
	} {
		if strings.ContainsAny(f.value, ";=\x00") {
			return fmt.Errorf("pod %s %q: a character that CNI_ARGS cannot carry", f.name, f.value)
		}
	}
	for i, p := range a.PortMappings {
		if err := validatePort(p); err != nil {
			return fmt.Errorf("port mapping %d: %w", i, err)
		}
	}
	// Plugins refuse this in DEL as well, so it must not get as far as ADD.
	if b := a.Bandwidth; b != nil && ((b.IngressRate == 0) != (b.IngressBurst == 0) || (b.EgressRate == 0) != (b.EgressBurst == 0)) {
		return fmt.Errorf("bandwidth %+v: a rate without a burst or the reverse", *b)
	}
	if !filepath.IsAbs(a.Netns) {
		return fmt.Errorf("network namespace %q: not an absolute path", a.Netns)
	}
	ok, err := sys.IsNamespace(a.Netns)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if !ok {
		return fmt.Errorf("network namespace %s: no namespace is there", a.Netns)
	}
	return nil
}

func validatePort(p PortMapping) error {
	if p.HostPort == 0 {
		return nil // not published
	}
	if p.HostPort < 0 || p.HostPort > 65535 {
		return fmt.Errorf("host port %d is not in 0–65535", p.HostPort)
	}
	if p.ContainerPort < 1 || p.ContainerPort > 65535 {
		return fmt.Errorf("container port %d is not in 1–65535", p.ContainerPort)
	}
	switch strings.ToLower(p.Protocol) {
	case "", "tcp", "udp", "sctp":
	default:
		return fmt.Errorf("protocol %q is not tcp, udp or sctp", p.Protocol)
	}
	if p.HostIP != "" {
		if _, err := netip.ParseAddr(p.HostIP); err != nil {
			return fmt.Errorf("host IP: %w", err)
		}
	}
	return nil
}

// runtimeConf is what libcni passes to the plugins. The names of the arguments are those that the kubelet's own
// CNI code began with, those of the capabilities are from CNI's CONVENTIONS.md and from containerd.
func (a Attachment) runtimeConf() *libcni.RuntimeConf {
	id := a.id()
	return &libcni.RuntimeConf{
		ContainerID: id.PodID,
		NetNS:       a.Netns,
		IfName:      id.IfName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", a.Namespace},
			{"K8S_POD_NAME", a.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", id.PodID},
			{"K8S_POD_UID", a.UID},
		},
		CapabilityArgs: a.capabilities(),
	}
}

func (a Attachment) capabilities() map[string]any {
	type portMapping struct {
		HostPort      int32  `json:"hostPort"`
		ContainerPort int32  `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP,omitempty"`
	}
	type dns struct {
		Servers  []string `json:"servers,omitempty"`
		Searches []string `json:"searches,omitempty"`
		Options  []string `json:"options,omitempty"`
	}
	caps := map[string]any{}
	var ports []portMapping
	for _, p := range a.PortMappings {
		if p.HostPort == 0 {
			continue
		}
		proto := strings.ToLower(p.Protocol)
		if proto == "" {
			proto = "tcp"
		}
		ports = append(ports, portMapping{p.HostPort, p.ContainerPort, proto, p.HostIP})
	}
	if ports != nil {
		caps["portMappings"] = ports
	}
	if a.Bandwidth != nil {
		caps["bandwidth"] = *a.Bandwidth
	}
	if len(a.Aliases) > 0 {
		caps["aliases"] = a.Aliases
	}
	if a.DNS != nil {
		caps["dns"] = dns{a.DNS.Servers, a.DNS.Searches, a.DNS.Options}
	}
	if a.CgroupParent != "" {
		caps["cgroupPath"] = a.CgroupParent
	}
	if len(a.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = a.Annotations
	}
	return caps
}
