package oci

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// maxMappings is how many the kernel takes (user_namespaces(7)).
const maxMappings = 340

// own takes over a file that Compile opened.
func (c *compiler) own(f *os.File) *os.File {
	c.launch.own = append(c.launch.own, f)
	return f
}

func (c *compiler) hasUserNamespace() bool {
	return c.new&sys.CloneNewUser != 0 || c.joined[sys.CloneNewUser] != ""
}

// userNamespace opens the one to be entered, or makes it: like one that is joined it has to be there before the process is,
// so that what needs the host's rights can be done in between.
func (c *compiler) userNamespace() (err error) {
	l := c.spec.Linux
	path := c.joined[sys.CloneNewUser]
	if !c.hasUserNamespace() {
		if len(l.UIDMappings)+len(l.GIDMappings) > 0 {
			return fieldf("linux.uidMappings", "set without a user namespace")
		}
		return nil
	}
	if path == "" && (len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0) {
		return fieldf("linux.uidMappings", "a new user namespace needs uidMappings and gidMappings")
	}
	for field, ids := range map[string][]specs.LinuxIDMapping{"linux.uidMappings": l.UIDMappings, "linux.gidMappings": l.GIDMappings} {
		if err := checkMappings(field, ids); err != nil {
			return err
		}
		if _, ok := outside(ids, 0); !ok && len(ids) > 0 {
			return fieldf(field, "0 is not mapped: the container could not be set up")
		}
	}
	if c.opt.NoPivot {
		return unsupported("linux.namespaces", "a user namespace without pivot_root")
	}
	c.msg.UserNamespace = true
	if c.opt.checkOnly {
		return nil
	}
	if path != "" {
		c.launch.UserNamespace, err = os.Open(path)
	} else {
		c.launch.UserNamespace, err = sys.NewUserNamespace(idMaps(l.UIDMappings), idMaps(l.GIDMappings))
	}
	if err != nil {
		return &FieldError{Field: "linux.namespaces", Err: err}
	}
	c.own(c.launch.UserNamespace)
	return nil
}

// checkMappings refuses what the kernel would refuse without saying why.
func checkMappings(field string, ids []specs.LinuxIDMapping) error {
	if len(ids) > maxMappings {
		return fieldf(field, "%d mappings, more than the %d that the kernel takes", len(ids), maxMappings)
	}
	meet := func(a, b, lenA, lenB uint32) bool {
		return uint64(a) < uint64(b)+uint64(lenB) && uint64(b) < uint64(a)+uint64(lenA)
	}
	for i, m := range ids {
		if m.Size == 0 {
			return fieldf(indexf(field, i, "size"), "0")
		}
		if uint64(m.ContainerID)+uint64(m.Size) > math.MaxUint32+1 || uint64(m.HostID)+uint64(m.Size) > math.MaxUint32+1 {
			return fieldf(indexf(field, i, "size"), "%d leads beyond the last id", m.Size)
		}
		for j, o := range ids[:i] {
			if meet(m.ContainerID, o.ContainerID, m.Size, o.Size) || meet(m.HostID, o.HostID, m.Size, o.Size) {
				return fieldf(index(field, i), "overlaps %s", index(field, j))
			}
		}
	}
	return nil
}

// outside is what id is on the host.
func outside(ids []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, m := range ids {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID), true
		}
	}
	return 0, false
}

func idMaps(in []specs.LinuxIDMapping) []sys.IDMap {
	out := make([]sys.IDMap, len(in))
	for i, m := range in {
		out[i] = sys.IDMap{Inside: m.ContainerID, Outside: m.HostID, Size: m.Size}
	}
	return out
}

// checkUser refuses ids that the user namespace does not have. A joined one that the specification does not describe is not
// looked into.
func (c *compiler) checkUser(u *specs.User) error {
	l := c.spec.Linux
	if !c.msg.UserNamespace {
		return nil
	}
	check := func(field string, id uint32, ids []specs.LinuxIDMapping, in string) error {
		if _, ok := outside(ids, id); !ok && len(ids) > 0 {
			return fieldf(field, "%d is not in %s", id, in)
		}
		return nil
	}
	err := errors.Join(
		check("process.user.uid", u.UID, l.UIDMappings, "linux.uidMappings"),
		check("process.user.gid", u.GID, l.GIDMappings, "linux.gidMappings"),
	)
	for i, g := range u.AdditionalGids {
		err = errors.Join(err, check(index("process.user.additionalGids", i), g, l.GIDMappings, "linux.gidMappings"))
	}
	return err
}

// hostSetup moves out of the message what the init cannot do without the host's rights.
func (c *compiler) hostSetup() error {
	if !c.msg.UserNamespace {
		return nil
	}
	h, p := &c.launch.Host, &c.msg.Process
	tasks := c.msg.CgroupTasks
	c.msg.CgroupTasks = nil
	c.launch.EnterCgroup(tasks)
	h.OOMScoreAdj = p.OOMScoreAdj
	if uid, ok := outside(c.spec.Linux.UIDMappings, p.UID); ok {
		h.StdioUID = &uid
	}
	for _, l := range p.Rlimits {
		h.Rlimits = append(h.Rlimits, sys.Rlimit{Resource: l.Resource, Hard: l.Hard})
	}
	if r := c.msg.Root; r != nil {
		// The host's directories need not be open to the container's root: it is led there.
		h.Dir = r.Staging
	}
	return nil
}

// EnterCgroup has the process moved by cgroup v1 files: by itself, or before it is in a user namespace.
func (l *Launch) EnterCgroup(tasks []string) {
	tasks = append(slices.Clip(tasks), l.resctrl...)
	if l.Message.UserNamespace {
		l.Host.CgroupTasks = tasks
	} else {
		l.Message.CgroupTasks = tasks
	}
}

// clone hands over a detached copy of a mount: in a user namespace host paths may be closed to the init.
func (c *compiler) clone(field, source string, recursive bool) (int32, error) {
	if c.opt.checkOnly {
		return initmsg.NoFile, nil
	}
	f, err := sys.CloneMount(source, recursive)
	if err != nil {
		return initmsg.NoFile, &FieldError{Field: field, Err: err}
	}
	return c.file(c.own(f)), nil
}

// idMap is a user namespace with the mappings of a mount, for the caller to close, or the container's own where it names none.
func (c *compiler) idMap(field string, m *specs.Mount) (*os.File, error) {
	l := c.spec.Linux
	if (len(m.UIDMappings) == 0) != (len(m.GIDMappings) == 0) {
		return nil, fieldf(field+".uidMappings", "uidMappings and gidMappings must be given together")
	}
	for f, ids := range map[string][]specs.LinuxIDMapping{".uidMappings": m.UIDMappings, ".gidMappings": m.GIDMappings} {
		if err := checkMappings(field+f, ids); err != nil {
			return nil, err
		}
	}
	if len(m.UIDMappings) == 0 && !c.msg.UserNamespace {
		return nil, fieldf(field+".options", "idmap without uidMappings, and the container has no user namespace")
	}
	if c.opt.checkOnly {
		return nil, nil
	}
	same := slices.Equal(m.UIDMappings, l.UIDMappings) && slices.Equal(m.GIDMappings, l.GIDMappings)
	if c.launch.UserNamespace != nil && (same || len(m.UIDMappings) == 0) {
		return c.launch.UserNamespace, nil
	}
	ns, err := sys.NewUserNamespace(idMaps(m.UIDMappings), idMaps(m.GIDMappings))
	if err != nil {
		return nil, &FieldError{Field: field + ".uidMappings", Err: err}
	}
	return ns, nil
}

// idMappedBind makes the mount here, on the host: mapping the ids of a file system takes rights over it.
func (c *compiler) idMappedBind(field string, m *specs.Mount, source string, out *initmsg.Mount, all bool) error {
	ns, err := c.idMap(field, m)
	if err != nil || c.opt.checkOnly {
		return err
	}
	if ns != c.launch.UserNamespace {
		defer ns.Close() // the mount keeps the mapping
	}
	f, err := sys.CloneMount(source, out.Recursive)
	if err != nil {
		return &FieldError{Field: field + ".source", Err: err}
	}
	out.File, out.Source = c.file(c.own(f)), ""
	if err := sys.IDMapMount(f, ns, all && out.Recursive); err != nil {
		return &FieldError{Field: field + ".uidMappings", Err: idMapError(source, all && out.Recursive, err)}
	}
	return nil
}

// idMapError names the file systems among which the one is that cannot be idmapped.
func idMapError(path string, recursive bool, err error) error {
	on, where := fsTypes(path, recursive)
	if !recursive {
		return fmt.Errorf("%s cannot be idmapped: it is on %s of type %s: %w", path, where, on, err)
	}
	return fmt.Errorf("%s and what is mounted below it cannot be idmapped (%s): %w", path, on, err)
}

// fsTypes is the type of the file system that path is on, or of all from there down.
func fsTypes(path string, recursive bool) (types, mountpoint string) {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return "unknown", path
	}
	var on *mountinfo.Info
	for _, m := range mounts {
		if on == nil || len(m.Mountpoint) >= len(on.Mountpoint) { // of equal ones the later covers
			on = m
		}
	}
	if on == nil {
		return "unknown", path
	}
	if !recursive {
		return on.FSType, on.Mountpoint
	}
	types = fmt.Sprintf("%s: %s", on.Mountpoint, on.FSType)
	below, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return types, on.Mountpoint
	}
	for _, m := range below {
		if m.Mountpoint != on.Mountpoint {
			types += fmt.Sprintf(", %s: %s", m.Mountpoint, m.FSType)
		}
	}
	return types, on.Mountpoint
}
