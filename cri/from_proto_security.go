package cri

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/workload"
)

func index(at string, i int) string { return at + "[" + strconv.Itoa(i) + "]" }

func namespaceMode(m pb.NamespaceMode) workload.NamespaceMode {
	switch m {
	case pb.NamespaceMode_CONTAINER:
		return workload.ModeContainer
	case pb.NamespaceMode_NODE:
		return workload.ModeNode
	case pb.NamespaceMode_TARGET:
		return workload.ModeTarget
	}
	return workload.ModePod
}

// namespaces converts options and checks what holds for pods and containers.
func (f *fields) namespaces(at string, o *pb.NamespaceOption) workload.Namespaces {
	n := workload.Namespaces{
		Network: namespaceMode(o.GetNetwork()),
		PID:     namespaceMode(o.GetPid()),
		IPC:     namespaceMode(o.GetIpc()),
		Target:  o.GetTargetId(),
		User:    f.userNamespace(at+".userns_options", o.GetUsernsOptions()),
	}
	if n.Network == workload.ModeContainer || n.Network == workload.ModeTarget {
		f.add(at+".network", "%s is not supported, use POD or NODE", o.GetNetwork())
	}
	if n.IPC == workload.ModeTarget {
		f.add(at+".ipc", "TARGET is not supported, use POD, CONTAINER or NODE")
	}
	if n.Target != "" && n.PID != workload.ModeTarget {
		f.add(at+".target_id", "set without pid TARGET")
	}
	if n.User != nil && n.User.Mode == workload.ModePod {
		for field, mode := range map[string]workload.NamespaceMode{"network": n.Network, "pid": n.PID, "ipc": n.IPC} {
			if mode == workload.ModeNode {
				f.add(at+"."+field, "NODE cannot be used in a user namespace")
			}
		}
	}
	return n
}

func (f *fields) podNamespaces(at string, o *pb.NamespaceOption) workload.Namespaces {
	n := f.namespaces(at, o)
	if n.PID == workload.ModeTarget {
		f.add(at+".pid", "TARGET is for containers only")
	}
	return n
}

func (f *fields) containerNamespaces(at string, o *pb.NamespaceOption) workload.Namespaces {
	n := f.namespaces(at, o)
	if n.PID == workload.ModeTarget {
		f.need(at+".target_id", n.Target)
	}
	return n
}

func (f *fields) userNamespace(at string, u *pb.UserNamespace) *workload.UserNamespace {
	if u == nil {
		return nil
	}
	out := &workload.UserNamespace{
		Mode: namespaceMode(u.GetMode()),
		UIDs: f.mappings(at+".uids", u.GetUids()),
		GIDs: f.mappings(at+".gids", u.GetGids()),
	}
	switch out.Mode {
	case workload.ModePod:
		if len(out.UIDs) == 0 {
			f.add(at+".uids", "empty with mode POD")
		}
		if len(out.GIDs) == 0 {
			f.add(at+".gids", "empty with mode POD")
		}
		f.mapsRoot(at+".uids", out.UIDs)
		f.mapsRoot(at+".gids", out.GIDs)
	case workload.ModeNode:
		if len(out.UIDs)+len(out.GIDs) > 0 {
			f.add(at+".uids", "mappings with mode NODE")
		}
	default:
		f.add(at+".mode", "%s is not supported, use POD or NODE", u.GetMode())
	}
	return out
}

// mapsRoot: who sets a container up is root in its user namespace.
func (f *fields) mapsRoot(at string, ids []workload.IDMapping) {
	if len(ids) > 0 && !slices.ContainsFunc(ids, func(m workload.IDMapping) bool { return m.ContainerID == 0 }) {
		f.add(at, "0 is not mapped")
	}
}

// mappings checks that each range fits 32 bits and that no two meet (user_namespaces(7)).
func (f *fields) mappings(at string, in []*pb.IDMapping) []workload.IDMapping {
	var out []workload.IDMapping
	for i, m := range in {
		id := workload.IDMapping{HostID: m.GetHostId(), ContainerID: m.GetContainerId(), Length: m.GetLength()}
		switch {
		case id.Length == 0:
			f.add(index(at, i)+".length", "0")
		case uint64(id.HostID)+uint64(id.Length) > math.MaxUint32+1, uint64(id.ContainerID)+uint64(id.Length) > math.MaxUint32+1:
			f.add(index(at, i)+".length", "%d leads beyond the last id", id.Length)
		}
		for _, o := range out {
			if meet(id.HostID, o.HostID, id.Length, o.Length) || meet(id.ContainerID, o.ContainerID, id.Length, o.Length) {
				f.add(index(at, i), "overlaps another mapping")
				break
			}
		}
		if out = append(out, id); len(out) > 340 {
			f.add(at, "more than 340 mappings, the most the kernel takes")
			break
		}
	}
	return out
}

func meet(a, b, lenA, lenB uint32) bool {
	return uint64(a) < uint64(b)+uint64(lenB) && uint64(b) < uint64(a)+uint64(lenA)
}

// id converts a user or group id; the last one, (uid_t)-1, means "no change" to the kernel.
func (f *fields) id(at string, v *pb.Int64Value) *int64 {
	if v == nil {
		return nil
	}
	n := v.GetValue()
	f.idRange(at, n)
	return &n
}

func (f *fields) idRange(at string, n int64) {
	if n < 0 || n >= math.MaxUint32 {
		f.add(at, "%d is not in 0-%d", n, uint32(math.MaxUint32-1))
	}
}

// maxGroups is NGROUPS_MAX of Linux.
const maxGroups = 65536

func (f *fields) groups(at string, in []int64) []int64 {
	if len(in) > maxGroups {
		f.add(at, "%d groups, more than %d", len(in), maxGroups)
		return nil
	}
	for i, n := range in {
		f.idRange(index(at, i), n)
	}
	return in
}

func groupsPolicy(p pb.SupplementalGroupsPolicy) string {
	if p == pb.SupplementalGroupsPolicy_Strict {
		return workload.GroupsStrict
	}
	return workload.GroupsMerge
}

func selinux(o *pb.SELinuxOption) *workload.SELinux {
	if o == nil {
		return nil
	}
	return &workload.SELinux{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
}

func (f *fields) profile(at string, p *pb.SecurityProfile) *workload.Profile {
	if p == nil {
		return nil
	}
	local := p.GetProfileType() == pb.SecurityProfile_Localhost
	switch {
	case local:
		f.need(at+".localhost_ref", p.GetLocalhostRef())
		return &workload.Profile{Kind: workload.ProfileLocalhost, Localhost: p.GetLocalhostRef()}
	case p.GetLocalhostRef() != "":
		f.add(at+".localhost_ref", "set with profile_type %s", p.GetProfileType())
	}
	if p.GetProfileType() == pb.SecurityProfile_Unconfined {
		return &workload.Profile{Kind: workload.ProfileUnconfined}
	}
	return &workload.Profile{Kind: workload.ProfileRuntimeDefault}
}

// oldProfile reads the deprecated form of a profile: runtime/default, unconfined or
// localhost/<ref>; "" is nil.
func (f *fields) oldProfile(at, s string) *workload.Profile {
	ref, local := strings.CutPrefix(s, "localhost/")
	switch {
	case s == "":
		return nil
	case s == "runtime/default", s == "docker/default":
		return &workload.Profile{Kind: workload.ProfileRuntimeDefault}
	case s == "unconfined":
		return &workload.Profile{Kind: workload.ProfileUnconfined}
	case local && ref != "":
		return &workload.Profile{Kind: workload.ProfileLocalhost, Localhost: ref}
	}
	f.add(at, "%q is not runtime/default, unconfined or localhost/<profile>", s)
	return nil
}

// seccomp converts a seccomp profile of the message at, in its present or its deprecated form.
func (f *fields) seccomp(at string, p *pb.SecurityProfile, old string) *workload.Profile {
	at, out := at+".seccomp", f.profile(at+".seccomp", p)
	if p == nil {
		at = at + "_profile_path"
		out = f.oldProfile(at, old)
	}
	if out != nil && out.Localhost != "" {
		f.absolute(at, out.Localhost)
	}
	return out
}

func (f *fields) containerSecurity(at string, s *pb.LinuxContainerSecurityContext) workload.Security {
	c := s.GetCapabilities()
	out := workload.Security{
		AddCapabilities:        f.capabilities(at+".capabilities.add_capabilities", c.GetAddCapabilities()),
		DropCapabilities:       f.capabilities(at+".capabilities.drop_capabilities", c.GetDropCapabilities()),
		AddAmbientCapabilities: f.capabilities(at+".capabilities.add_ambient_capabilities", c.GetAddAmbientCapabilities()),
		Privileged:             s.GetPrivileged(),
		Namespaces:             f.containerNamespaces(at+".namespace_options", s.GetNamespaceOptions()),
		SELinux:                selinux(s.GetSelinuxOptions()),
		RunAsUser:              f.id(at+".run_as_user", s.GetRunAsUser()),
		RunAsGroup:             f.id(at+".run_as_group", s.GetRunAsGroup()),
		RunAsUsername:          s.GetRunAsUsername(),
		ReadonlyRootfs:         s.GetReadonlyRootfs(),
		SupplementalGroups:     f.groups(at+".supplemental_groups", s.GetSupplementalGroups()),
		GroupsPolicy:           groupsPolicy(s.GetSupplementalGroupsPolicy()),
		NoNewPrivs:             s.GetNoNewPrivs(),
		MaskedPaths:            s.GetMaskedPaths(),
		ReadonlyPaths:          s.GetReadonlyPaths(),
		Seccomp:                f.seccomp(at, s.GetSeccomp(), s.GetSeccompProfilePath()),
		AppArmor:               f.profile(at+".apparmor", s.GetApparmor()),
	}
	if out.AppArmor == nil {
		out.AppArmor = f.oldProfile(at+".apparmor_profile", s.GetApparmorProfile())
	}
	if out.RunAsUser != nil && out.RunAsUsername != "" {
		f.add(at+".run_as_username", "set together with run_as_user")
	}
	if out.RunAsGroup != nil && out.RunAsUser == nil && out.RunAsUsername == "" {
		f.add(at+".run_as_group", "set without run_as_user or run_as_username")
	}
	for i, p := range out.MaskedPaths {
		f.absolute(index(at+".masked_paths", i), p)
	}
	for i, p := range out.ReadonlyPaths {
		f.absolute(index(at+".readonly_paths", i), p)
	}
	return out
}

// knownCapabilities are the names that the kernel's headers have, with CAP_ and without.
var knownCapabilities = sync.OnceValue(func() map[string]bool {
	known := map[string]bool{"ALL": true}
	for _, c := range capability.ListKnown() {
		name := strings.ToUpper(c.String())
		known[name], known["CAP_"+name] = true, true
	}
	return known
})

func (f *fields) capabilities(at string, in []string) []string {
	for i, c := range in {
		if !knownCapabilities()[strings.ToUpper(c)] {
			f.add(index(at, i), "%q is not a capability", c)
		}
	}
	return in
}
