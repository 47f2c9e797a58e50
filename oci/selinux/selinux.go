// Package selinux makes the labels of containers, keeps the categories of pods apart, and relabels volumes. What it
// computes is text, so that it works and is tested without a kernel that has SELinux; Relabel alone needs one.
package selinux

import (
	"fmt"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// Enabled says whether the kernel enforces or logs by SELinux.
func Enabled() bool { return selinux.GetEnabled() }

// Labels are the labels of a container's process and of its files, of the four parts that a client may set; the parts it
// left out are those of the targeted policy's containers.
func Labels(s *workload.SELinux) (process, mount string, err error) {
	var parts workload.SELinux
	if s != nil {
		parts = *s
	}
	for _, p := range []string{parts.User, parts.Role, parts.Type} {
		if strings.ContainsAny(p, ": \t\n\x00") {
			return "", "", fmt.Errorf("%q is not a part of a label", p)
		}
	}
	if strings.ContainsAny(parts.Level, " \t\n\x00") {
		return "", "", fmt.Errorf("%q is not a part of a label", parts.Level)
	}
	or := func(v, def string) string {
		if v == "" {
			return def
		}
		return v
	}
	level := or(parts.Level, "s0")
	process = strings.Join([]string{or(parts.User, "system_u"), or(parts.Role, "system_r"), or(parts.Type, "container_t"), level}, ":")
	return process, "system_u:object_r:container_file_t:" + level, nil
}

// Relabel gives a volume and all in it a container's label (CRI Mount.selinux_relabel). It refuses what a node would not
// survive ("/", "/usr"). Without SELinux it does nothing.
func Relabel(path, mountLabel string) error {
	if mountLabel == "" {
		return nil
	}
	if err := label.Relabel(path, mountLabel, false); err != nil {
		return fmt.Errorf("relabel %s as %s: %w", path, mountLabel, err)
	}
	return nil
}
