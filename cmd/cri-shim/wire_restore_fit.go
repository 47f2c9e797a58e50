package main

import (
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// A restored container is what its checkpoint says; what its new configuration asks for besides must be what it had, or be
// settable from outside: limits, labels, logs, where mounts come from. The rest is refused by name. All of it is compared
// again with what the kernel has once the processes are there (oci/criu/verify.go): this is for a clear answer early.

// differences collects what does not fit.
type differences []string

func (d *differences) add(format string, a ...any) { *d = append(*d, fmt.Sprintf(format, a...)) }

func (d differences) err() error {
	if len(d) == 0 {
		return nil
	}
	return fmt.Errorf("%w: not as in the checkpoint: %s", sandbox.ErrInvalid, strings.Join(d, "; "))
}

// expectedProcess compares what a client says of the process with what was captured.
func expectedProcess(old, now *specs.Process, given []workload.EnvVar) error {
	var d differences
	if !slices.Equal(old.Args, now.Args) {
		d.add("config.command, config.args: %q, it runs %q", now.Args, old.Args)
	}
	if path.Clean(old.Cwd) != path.Clean(now.Cwd) {
		d.add("config.working_dir: %q, it was started in %q", now.Cwd, old.Cwd)
	}
	aside := []string{"HOSTNAME"} // the pod's, which may be a new one
	if !slices.ContainsFunc(given, func(e workload.EnvVar) bool { return e.Key == "HOME" }) {
		aside = append(aside, "HOME") // the image's to tell, which has not been looked at
	}
	if key := differentEnv(old.Env, now.Env, aside); key != "" {
		d.add("config.envs: %s", key)
	}
	return d.err()
}

// differentEnv is the first variable that differs, apart from some.
func differentEnv(old, now, aside []string) string {
	all := func(env []string) map[string]string {
		m := make(map[string]string, len(env))
		for _, v := range env {
			if key, value, _ := strings.Cut(v, "="); !slices.Contains(aside, key) {
				m[key] = value
			}
		}
		return m
	}
	was, is := all(old), all(now)
	for _, key := range slices.Sorted(maps.Keys(is)) {
		if v, ok := was[key]; !ok || v != is[key] {
			return key
		}
	}
	for _, key := range slices.Sorted(maps.Keys(was)) {
		if _, ok := is[key]; !ok {
			return key
		}
	}
	return ""
}

// sameUser compares who the container's process is started as.
func sameUser(old, now *specs.Process) error {
	var d differences
	if old.User.UID != now.User.UID || old.User.GID != now.User.GID {
		d.add("config.linux.security_context.run_as_user: %d:%d, it was %d:%d", now.User.UID, now.User.GID, old.User.UID, old.User.GID)
	}
	sorted := func(in []uint32) []uint32 { return slices.Compact(slices.Sorted(slices.Values(in))) }
	if !slices.Equal(sorted(old.User.AdditionalGids), sorted(now.User.AdditionalGids)) {
		d.add("config.linux.security_context.supplemental_groups: %v, they were %v", now.User.AdditionalGids, old.User.AdditionalGids)
	}
	return d.err()
}

// fits compares the parts of two specifications that criu brings back as they were.
func fits(old, now *specs.Spec) error {
	var d differences
	const at = "config.linux.security_context."
	if old.Process.Terminal != now.Process.Terminal {
		d.add("config.tty: %v, it was %v", now.Process.Terminal, old.Process.Terminal)
	}
	if old.Process.NoNewPrivileges != now.Process.NoNewPrivileges {
		d.add(at+"no_new_privs: %v, it was %v", now.Process.NoNewPrivileges, old.Process.NoNewPrivileges)
	}
	if was, is := boundingSet(old.Process), boundingSet(now.Process); !slices.Equal(was, is) {
		d.add(at+"capabilities: %v, they were %v", is, was)
	}
	if was, is := hasSeccomp(old), hasSeccomp(now); was != is {
		d.add(at+"seccomp: a profile: %v, it was %v", is, was)
	}
	readonly := func(s *specs.Spec) bool { return s.Root != nil && s.Root.Readonly }
	if readonly(old) != readonly(now) {
		d.add(at+"readonly_rootfs: %v, it was %v", readonly(now), readonly(old))
	}
	for _, paths := range []struct {
		name    string
		was, is []string
	}{
		{"masked_paths", old.Linux.MaskedPaths, now.Linux.MaskedPaths},
		{"readonly_paths", old.Linux.ReadonlyPaths, now.Linux.ReadonlyPaths},
	} {
		if !slices.Equal(sortedSet(paths.was), sortedSet(paths.is)) {
			d.add(at+"%s: %v, they were %v", paths.name, paths.is, paths.was)
		}
	}
	fitNamespaces(&d, old.Linux.Namespaces, now.Linux.Namespaces)
	fitMounts(&d, old.Mounts, now.Mounts)
	fitDevices(&d, old.Linux.Devices, now.Linux.Devices)
	if h := now.Hooks; h != nil && !reflect.DeepEqual(*h, specs.Hooks{}) {
		d.add("hooks (of CDI devices or plugins) are not run for a restored container")
	}
	return d.err()
}

func sortedSet(in []string) []string { return slices.Compact(slices.Sorted(slices.Values(in))) }

func boundingSet(p *specs.Process) []string {
	if p.Capabilities == nil {
		return nil
	}
	return sortedSet(p.Capabilities.Bounding)
}

func hasSeccomp(s *specs.Spec) bool { return s.Linux.Seccomp != nil }

// fitNamespaces compares which namespaces are the container's own, the pod's and the node's.
func fitNamespaces(d *differences, old, now []specs.LinuxNamespace) {
	whose := func(all []specs.LinuxNamespace) map[specs.LinuxNamespaceType]string {
		m := map[specs.LinuxNamespaceType]string{}
		for _, ns := range all {
			m[ns.Type] = "the container's"
			if ns.Path != "" {
				m[ns.Type] = "the pod's"
			}
		}
		return m
	}
	name := func(s string) string {
		if s == "" {
			return "the node's"
		}
		return s
	}
	was, is := whose(old), whose(now)
	for _, t := range []specs.LinuxNamespaceType{
		specs.NetworkNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace,
		specs.CgroupNamespace, specs.UserNamespace,
	} {
		if was[t] != is[t] {
			d.add("config.linux.security_context.namespace_options: the %s namespace is %s, it was %s", t, name(is[t]), name(was[t]))
		}
	}
}

func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// fitMounts compares where volumes are, and how. Where they come from is the new container's.
func fitMounts(d *differences, old, now []specs.Mount) {
	places := func(all []specs.Mount) map[string]*specs.Mount {
		m := map[string]*specs.Mount{}
		for i := range all {
			if isBind(&all[i]) {
				m[path.Clean(all[i].Destination)] = &all[i]
			}
		}
		return m
	}
	was, is := places(old), places(now)
	for _, at := range slices.Sorted(maps.Keys(is)) {
		before := was[at]
		if before == nil {
			d.add("config.mounts: %s was not there", at)
			continue
		}
		if slices.Contains(is[at].Options, "rshared") {
			d.add("config.mounts: %s: bidirectional propagation is not restored", at)
		}
		for _, option := range []string{"ro", "noexec", "nodev", "nosuid", "rslave"} {
			if has, had := slices.Contains(is[at].Options, option), slices.Contains(before.Options, option); has != had {
				d.add("config.mounts: %s: %s: %v, it was %v", at, option, has, had)
			}
		}
	}
	for _, at := range slices.Sorted(maps.Keys(was)) {
		if is[at] == nil {
			d.add("config.mounts: %s is missing", at)
		}
	}
}

func fitDevices(d *differences, old, now []specs.LinuxDevice) {
	for i := range now {
		n := &now[i]
		if !slices.ContainsFunc(old, func(o specs.LinuxDevice) bool {
			return o.Path == n.Path && o.Type == n.Type && o.Major == n.Major && o.Minor == n.Minor
		}) {
			d.add("config.devices: %s was not there, or another", n.Path)
		}
	}
}
