package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci/selinux"
)

// Masked and read-only paths for a client that says nothing, those of the kubelet
// (k8s.io/kubernetes/pkg/securitycontext) and containerd.
var (
	defaultMasked = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// paths hands the client's lists on as they are: the kubelet sends the defaults, or nothing for procMount: Unmasked,
// and an empty list cannot be told from none in protobuf (containerd issue 5029). Privileged: none.
func (b *builder) paths() error {
	if b.sec.Privileged {
		return nil
	}
	masked, readonly := b.sec.MaskedPaths, b.sec.ReadonlyPaths
	if b.NoSecurityContext {
		masked, readonly = defaultMasked, defaultReadonly
	}
	for field, list := range map[string][]string{
		"security.masked_paths": masked, "security.readonly_paths": readonly,
	} {
		for i, p := range list {
			if !filepath.IsAbs(p) || strings.IndexByte(p, 0) >= 0 {
				return fieldf(index(field, i), "%q is not an absolute path", p)
			}
		}
	}
	b.spec.Linux.MaskedPaths, b.spec.Linux.ReadonlyPaths = masked, readonly
	return nil
}

// seccomp: nil is unconfined (CRI SecurityProfile), and so is a privileged container.
func (b *builder) seccomp() error {
	s := b.sec.Seccomp
	if s == nil || b.sec.Privileged {
		return nil
	}
	if s.Kind == workload.ProfileUnconfined {
		return nil
	}
	if b.host.Seccomp == nil {
		return fieldf("security.seccomp", "no source of seccomp profiles")
	}
	caps := b.spec.Process.Capabilities.Bounding
	var err error
	switch s.Kind {
	case workload.ProfileRuntimeDefault:
		b.spec.Linux.Seccomp, err = b.host.Seccomp.Default(caps)
	case workload.ProfileLocalhost:
		if !filepath.IsAbs(s.Localhost) {
			return fieldf("security.seccomp.localhost_ref", "%q is not an absolute path", s.Localhost)
		}
		b.spec.Linux.Seccomp, err = b.host.Seccomp.Localhost(s.Localhost, caps)
	default:
		err = fmt.Errorf("unknown profile type %q", s.Kind)
	}
	if err != nil {
		return &FieldError{Field: "security.seccomp", Err: err}
	}
	return nil
}

const apparmorProfiles = "/sys/kernel/security/apparmor/profiles"

// apparmor: a default that the node does not have is left out, a profile that was named must be there.
func (b *builder) apparmor() error {
	p := b.sec.AppArmor
	kind, name := workload.ProfileRuntimeDefault, ""
	if p != nil {
		kind, name = p.Kind, strings.TrimPrefix(p.Localhost, "localhost/")
	}
	switch kind {
	case workload.ProfileUnconfined:
		return nil
	case workload.ProfileRuntimeDefault:
		if b.host.AppArmor && !b.sec.Privileged {
			b.spec.Process.ApparmorProfile = b.host.AppArmorDefault
		}
		return nil
	case workload.ProfileLocalhost:
	default:
		return fieldf("security.apparmor", "unknown profile type %q", kind)
	}
	if name == "" {
		return fieldf("security.apparmor.localhost_ref", "no profile is named")
	}
	if !b.host.AppArmor {
		return fieldf("security.apparmor.localhost_ref", "profile %q: AppArmor is not enabled on this node", name)
	}
	if err := appArmorLoaded(name); err != nil {
		return &FieldError{Field: "security.apparmor.localhost_ref", Err: err}
	}
	b.spec.Process.ApparmorProfile = name
	return nil
}

// appArmorLoaded is nil if the kernel has a profile of that name.
func appArmorLoaded(name string) error {
	loaded, err := os.ReadFile(apparmorProfiles)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(loaded)) {
		if strings.HasPrefix(line, name+" (") {
			return nil
		}
	}
	return fmt.Errorf("profile %q is not loaded on this node", name)
}

// selinux makes the process and mount labels. Privileged: unconfined, as the CRI says.
func (b *builder) selinux() error {
	if !b.host.SELinux || b.sec.Privileged {
		return nil
	}
	process, mount, err := selinux.Labels(SELinuxOf(b.Pod, b.ctr))
	if err != nil {
		return &FieldError{Field: "security.selinux_options", Err: err}
	}
	b.spec.Process.SelinuxLabel, b.spec.Linux.MountLabel = process, mount
	return nil
}

// SELinuxOf is what counts for a container: its own options, or else the pod's; the pod's level where its own have none,
// so that the containers of a pod share files.
func SELinuxOf(pod *workload.Pod, c *workload.Container) *workload.SELinux {
	s, p := c.Security.SELinux, pod.Security.SELinux
	switch {
	case s == nil:
		return p
	case p == nil || s.Level != "":
		return s
	}
	with := *s
	with.Level = p.Level
	return &with
}

func apparmorEnabled() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && len(b) > 0 && b[0] == 'Y'
}

func selinuxEnabled() (bool, error) {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
