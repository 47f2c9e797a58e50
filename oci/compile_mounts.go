package oci

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
)

type optionKind int

const (
	optionAttr        optionKind = iota // sets or clears an attribute of the mount point
	optionPropagation                   // changes the propagation type
	optionBind
	optionRecursiveBind
	optionSuper // a flag of the file system itself, passed on; a bind has none
	optionNone  // what the kernel does anyway
	optionCopyUp
	optionIDMap
	optionRemount
	optionIVersion
	optionSuperOff // takes a flag of the file system back; new ones have none
)

type mountOption struct {
	kind      optionKind
	recursive bool
	set, clr  uint64
	flag      uint64 // of a propagation
}

// mountOptions are all of runtime-spec's table "Linux mount options". What is not in it belongs to the file system.
var mountOptions = func() map[string]mountOption {
	m := map[string]mountOption{
		"bind": {kind: optionBind}, "rbind": {kind: optionRecursiveBind},
		"defaults": {kind: optionNone}, "loud": {kind: optionNone}, "silent": {kind: optionNone},
		"async": {kind: optionSuperOff}, "nolazytime": {kind: optionSuperOff}, "nomand": {kind: optionSuperOff},
		"noiversion": {kind: optionNone}, // but it takes iversion back
		"sync":       {kind: optionSuper}, "dirsync": {kind: optionSuper}, "lazytime": {kind: optionSuper},
		"mand":      {kind: optionSuper},
		"iversion":  {kind: optionIVersion},
		"remount":   {kind: optionRemount},
		"tmpcopyup": {kind: optionCopyUp},
		"idmap":     {kind: optionIDMap}, "ridmap": {kind: optionIDMap},
	}
	for name, flag := range propagations {
		m[name] = mountOption{kind: optionPropagation, flag: flag}
	}
	atime := func(mode uint64) mountOption { return mountOption{set: mode, clr: sys.MountAttrATimeMask} }
	for name, o := range map[string]mountOption{
		"ro": {set: sys.MountAttrReadonly}, "rw": {clr: sys.MountAttrReadonly},
		"nosuid": {set: sys.MountAttrNoSUID}, "suid": {clr: sys.MountAttrNoSUID},
		"nodev": {set: sys.MountAttrNoDev}, "dev": {clr: sys.MountAttrNoDev},
		"noexec": {set: sys.MountAttrNoExec}, "exec": {clr: sys.MountAttrNoExec},
		"nodiratime": {set: sys.MountAttrNoDirATime}, "diratime": {clr: sys.MountAttrNoDirATime},
		"nosymfollow": {set: sys.MountAttrNoSymFollow}, "symfollow": {clr: sys.MountAttrNoSymFollow},
		"noatime": atime(sys.MountAttrNoATime), "strictatime": atime(sys.MountAttrStrictATime),
		"relatime": atime(sys.MountAttrRelATime),
		// What these take back leaves the kernel's default, which is relatime.
		"atime": atime(sys.MountAttrRelATime), "norelatime": atime(sys.MountAttrRelATime),
		"nostrictatime": atime(sys.MountAttrRelATime),
	} {
		m[name] = o
		o.recursive = true
		m["r"+name] = o
	}
	return m
}()

// superOff are the flags that an optionSuperOff takes back.
var superOff = map[string]string{"async": "sync", "nolazytime": "lazytime", "nomand": "mand"}

// CgroupMounts says how the node's control groups look from inside.
type CgroupMounts struct {
	V2 bool
	// Group is the container's group, for a container without a cgroup namespace.
	Group string
	// Hierarchies of v1, without the bare cgroup2 of a hybrid node.
	Hierarchies []Hierarchy
}

// Hierarchy is one v1 mount.
type Hierarchy struct {
	Mountpoint string
	Name       string // of its directory, "cpu,cpuacct"
	// Controllers it has; Named is its name without controllers ("systemd").
	Controllers []string
	Named       string
}

func (c *compiler) mounts() error {
	c.msg.Mounts = make([]initmsg.Mount, 0, len(c.spec.Mounts)+12)
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		field := index("mounts", i)
		if m.Destination == "" || strings.IndexByte(m.Destination, 0) >= 0 {
			return fieldf(field+".destination", "%q is not a path", m.Destination)
		}
		var err error
		switch {
		case slices.Contains(m.Options, "remount"):
			err = c.remount(field, m)
		case m.Type == "cgroup" && !isBind(m):
			err = c.cgroupMount(field, m)
		default:
			err = c.mount(field, m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// dataOptions are settings of the file systems that containers usually have. mount(2) ignores them for a bind mount, and
// so do they who write one option list for both.
var dataOptions = []string{"gid=", "mode=", "nr_blocks=", "nr_inodes=", "ptmxmode=", "size=", "uid="}

func isData(option string) bool {
	return slices.ContainsFunc(dataOptions, func(d string) bool { return strings.HasPrefix(option, d) })
}

// mount translates one entry.
func (c *compiler) mount(field string, m *specs.Mount) error {
	out := initmsg.Mount{File: initmsg.NoFile, Target: path.Join("/", m.Destination)}
	bind := isBind(m)
	idmap, all := len(m.UIDMappings)+len(m.GIDMappings) > 0, true
	for j, o := range m.Options {
		opt, known := mountOptions[o]
		name := index(field+".options", j)
		if !known {
			if bind {
				if isData(o) {
					continue
				}
				return fieldf(name, "unknown option %q for a bind mount", o)
			}
			out.Options = append(out.Options, o)
			continue
		}
		switch opt.kind {
		case optionAttr:
			applyAttr(&out, opt)
		case optionPropagation:
			out.Propagation = opt.flag
		case optionBind:
		case optionRecursiveBind:
			out.Recursive = true
		case optionSuper:
			if !bind {
				out.Options = append(out.Options, o)
			}
		case optionIVersion:
			out.IVersion = !bind
		case optionCopyUp:
			out.TmpCopyUp = true
		case optionIDMap:
			idmap, all = true, o == "ridmap"
		case optionNone:
			if o == "noiversion" {
				out.IVersion = false
			}
		case optionSuperOff: // a new file system has none of them, but for what stands before
			out.Options = slices.DeleteFunc(out.Options, func(before string) bool { return superOff[o] == before })
		case optionRemount: // is not for here
		}
	}
	if out.TmpCopyUp && m.Type != "tmpfs" {
		return fieldf(field+".options", "tmpcopyup is for a tmpfs, not for %q", m.Type)
	}
	if bind {
		return c.bind(field, m, out, idmap, all)
	}
	if idmap {
		if c.msg.UserNamespace {
			return unsupported(field+".uidMappings", "a mount of type %q belongs to the user namespace: the kernel maps none of those", m.Type)
		}
		ns, err := c.idMap(field, m)
		if err != nil {
			return err
		}
		if ns != nil {
			out.IDMap = c.file(c.own(ns)) + 1
		}
	}
	return c.fileSystem(field, m, out)
}

// remount changes an earlier mount of the list, or the root. What is the host's own is not to be changed by a container, so
// of a bind, and of the root, only the mount is; the file system is where the container has mounted it.
func (c *compiler) remount(field string, m *specs.Mount) error {
	out := initmsg.Mount{File: initmsg.NoFile, Target: path.Join("/", m.Destination), Remount: true}
	var earlier *initmsg.Mount
	for i := range c.msg.Mounts {
		if e := &c.msg.Mounts[i]; e.Target == out.Target && !e.Remount {
			earlier = e
		}
	}
	if earlier == nil && out.Target != "/" {
		return fieldf(field+".destination", "remount: %s is not among the mounts before it", out.Target)
	}
	fresh := earlier != nil && earlier.FSType != "" && !isBind(m)
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
		return fieldf(field+".uidMappings", "a mount's mapping cannot be changed (mount_setattr(2))")
	}
	for j, o := range m.Options {
		opt, known := mountOptions[o]
		name := index(field+".options", j)
		switch {
		case known && opt.kind == optionAttr:
			applyAttr(&out, opt)
		case known && opt.kind == optionPropagation:
			out.Propagation = opt.flag
		case known && (opt.kind == optionRemount || opt.kind == optionBind || opt.kind == optionRecursiveBind || opt.kind == optionNone):
			if o == "noiversion" {
				out.IVersion = false
			}
		case known && (opt.kind == optionCopyUp || opt.kind == optionIDMap):
			return fieldf(name, "%q is for a new mount, not for a remount", o)
		case !fresh:
			return fieldf(name, "%q would change a file system that is not the container's own", o)
		case opt.kind == optionIVersion && known:
			out.IVersion = true
		default:
			out.Options = append(out.Options, o)
		}
	}
	if fresh && !kernelFS[earlier.FSType] {
		switch attr := sys.MountAttrReadonly; {
		case out.AttrSet&attr != 0:
			out.Options = append(out.Options, "ro")
		case out.AttrClear&attr != 0:
			out.Options = append(out.Options, "rw")
		}
	}
	c.msg.Mounts = append(c.msg.Mounts, out)
	return nil
}

func applyAttr(m *initmsg.Mount, o mountOption) {
	set, clr := &m.AttrSet, &m.AttrClear
	if o.recursive {
		set, clr = &m.RecAttrSet, &m.RecAttrClear
	}
	// The last of two that contradict each other counts, as with mount(8).
	*set = *set&^o.clr | o.set
	*clr = *clr&^o.set | o.clr
}

// bind: the kernel takes type "bind" for a mark like the option. A mount that is to be shared with the host is cloned
// here, in the host's mount namespace: a clone made by the init would be a slave's. all: what is mounted below is idmapped too.
func (c *compiler) bind(field string, m *specs.Mount, out initmsg.Mount, idmap, all bool) error {
	if f := c.opt.MountFiles[m.Destination]; f != nil {
		out.File = c.file(f)
		c.msg.Mounts = append(c.msg.Mounts, out)
		return nil
	}
	source, err := c.hostPath(field+".source", m.Source)
	if err != nil {
		return err
	}
	out.Source = source
	switch {
	case idmap:
		err = c.idMappedBind(field, m, source, &out, all)
	case c.msg.UserNamespace, out.Propagation&sys.MountShared != 0:
		if out.File, err = c.clone(field+".source", source, out.Recursive); err == nil && out.File != initmsg.NoFile {
			out.Source = ""
		}
	}
	if err != nil {
		return err
	}
	if out.File != initmsg.NoFile && out.Propagation == 0 {
		out.Propagation = sys.MountSlave | sys.MountRec // as what the init clones: a slave of the host's
	}
	c.msg.Mounts = append(c.msg.Mounts, out)
	return nil
}

// kernelFS are file systems of the kernel's own, where read-only is a matter of the mount point: their
// superblock is shared with other mounts.
var kernelFS = map[string]bool{
	"proc": true, "sysfs": true, "tmpfs": true, "devpts": true, "mqueue": true, "cgroup": true, "cgroup2": true,
	"bpf": true, "debugfs": true, "tracefs": true, "securityfs": true, "overlay": true,
}

func (c *compiler) fileSystem(field string, m *specs.Mount, out initmsg.Mount) error {
	if m.Type == "" || m.Type == "none" {
		return fieldf(field+".type", "missing, and neither bind nor rbind is among the options")
	}
	out.FSType, out.Source = m.Type, m.Source
	out.AttrClear, out.RecAttrClear = 0, 0 // a new mount has nothing to be cleared
	out.AttrSet |= out.RecAttrSet          // and nothing below it
	out.RecAttrSet = 0
	out.Recursive = false
	if out.AttrSet&sys.MountAttrReadonly != 0 && !kernelFS[m.Type] {
		out.Options = append(out.Options, "ro")
	}
	if l := c.spec.Linux.MountLabel; l != "" && (m.Type == "tmpfs" || m.Type == "devpts") {
		out.Options = append(out.Options, "context="+l)
	}
	if c.opt.MountFiles[m.Destination] != nil {
		return fieldf(field, "a mount of type %q has a prepared file", m.Type)
	}
	c.msg.Mounts = append(c.msg.Mounts, out)
	return nil
}

// cgroupMount shows a container its control group. With a cgroup namespace that is a new mount, whose root is the group;
// without one it is the host's.
func (c *compiler) cgroupMount(field string, m *specs.Mount) error {
	var attrs initmsg.Mount
	for j, o := range m.Options {
		opt, known := mountOptions[o]
		switch {
		case known && opt.kind == optionAttr:
			applyAttr(&attrs, opt)
		case known && (opt.kind == optionPropagation):
			attrs.Propagation = opt.flag
		case known && opt.kind == optionNone:
		default:
			return unsupported(index(field+".options", j), "%q for a cgroup mount", o)
		}
	}
	set := attrs.AttrSet | attrs.RecAttrSet
	private := c.new&sys.CloneNewCgroup != 0 || c.joined[sys.CloneNewCgroup] != ""
	target := path.Join("/", m.Destination)
	add := func(x initmsg.Mount) {
		x.File, x.AttrSet = initmsg.NoFile, x.AttrSet|set
		if attrs.Propagation != 0 {
			x.Propagation = attrs.Propagation
		}
		c.msg.Mounts = append(c.msg.Mounts, x)
	}
	if c.opt.Cgroups.V2 {
		if private {
			add(initmsg.Mount{FSType: "cgroup2", Source: "cgroup2", Target: target})
		} else {
			// Not a new mount: its options would replace those of the host's (nsdelegate, memory_recursiveprot).
			add(initmsg.Mount{Source: "/sys/fs/cgroup", Target: target, Recursive: true})
		}
		return nil
	}
	c.cgroupV1(target, set, private, add)
	return nil
}

// newMountAttrs are the attributes that a new mount has not, unless they are asked for; a bind has those of its source.
const newMountAttrs = sys.MountAttrReadonly | sys.MountAttrNoSUID | sys.MountAttrNoDev | sys.MountAttrNoExec |
	sys.MountAttrNoDirATime | sys.MountAttrATimeMask

// cgroupV1 makes a tmpfs with a directory for each hierarchy, and for each controller where one has several. The tmpfs
// becomes read-only when its directories are there.
func (c *compiler) cgroupV1(target string, set uint64, private bool, add func(initmsg.Mount)) {
	own := c.new&sys.CloneNewCgroup != 0 && c.opt.Cgroups.Group != "" && !c.msg.UserNamespace
	c.msg.Mounts = append(c.msg.Mounts, initmsg.Mount{
		FSType: "tmpfs", Source: "tmpfs", Target: target, File: initmsg.NoFile,
		AttrSet: set &^ sys.MountAttrReadonly, Options: []string{"mode=755", "size=64k"},
		ReadonlyAtEnd: set&sys.MountAttrReadonly != 0,
	})
	for _, h := range c.opt.Cgroups.Hierarchies {
		dirs := []string{h.Name}
		options := h.Controllers
		if h.Named != "" {
			options = []string{"none", "name=" + h.Named}
		}
		if len(h.Controllers) > 1 {
			for _, ctl := range h.Controllers {
				if ctl != h.Name {
					dirs = append(dirs, ctl)
				}
			}
		}
		for _, d := range dirs {
			// Optional: a hierarchy may not be there for this group, or not be ours to mount.
			x := initmsg.Mount{Target: path.Join(target, d), Optional: true}
			switch {
			case !private:
				x.Source = path.Join(h.Mountpoint, c.opt.Cgroups.Group)
			case own:
				// What a new mount in a new cgroup namespace would show, for a third of the time: it has the same root.
				x.Source = path.Join(h.Mountpoint, c.opt.Cgroups.Group)
				x.AttrClear = newMountAttrs &^ set
				x.Propagation = sys.MountPrivate
			default:
				x.FSType, x.Source, x.Options = "cgroup", "cgroup", options
			}
			add(x)
		}
	}
}
