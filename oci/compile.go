package oci

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/sysctl"
	"github.com/cri-shim/cri-shim/oci/netdevice"
)

// Filter is a compiled seccomp profile.
type Filter struct {
	Program []byte // struct sock_filter[], native byte order
	Flags   uint32
}

// Options are what a specification does not say.
type Options struct {
	// Bundle is the directory that relative paths of the specification start from; "" makes them errors.
	Bundle string
	// Root is the root file system: a detached mount that the init attaches. nil: Spec.Root.Path is bound.
	Root *os.File
	// Staging is an empty host directory, see initmsg.Root.
	Staging string
	NoPivot bool
	// HostMounts allows a container in the host's mount namespace, or in that of others. Its mounts stay its own even so.
	HostMounts bool
	// CgroupTasks are files that the init writes itself into (cgroup v1).
	CgroupTasks []string
	// Cgroups says how to mount a "cgroup" file system.
	Cgroups CgroupMounts
	// MountFiles are detached mounts by destination, to be attached instead of the specification's source: idmapped
	// ones, and image volumes without a path.
	MountFiles map[string]*os.File
	// HostNodes are the host's nodes by the path of linux.devices, where they differ: a user namespace binds them.
	HostNodes map[string]string
	// RootFiles are written into the root file system before anything is mounted there, by path.
	RootFiles map[string][]byte
	// ResctrlRoot is where resctrl is mounted; "" is /sys/fs/resctrl.
	ResctrlRoot string
	// StartFile is the FIFO between create and start, or nil.
	StartFile *os.File
	// HookSocket is the init's end of a HookGate, or nil.
	HookSocket *os.File
	// ExtraFiles become the workload's descriptors from 3 on.
	ExtraFiles []*os.File
	// Seccomp compiles a profile.
	Seccomp func(*specs.LinuxSeccomp) (*Filter, error)
	// ID is the container's, for the state that hooks read.
	ID string

	checkOnly bool // nothing is opened or made: the result is not to be launched
}

// Launch is all that it takes to start the init.
type Launch struct {
	Message *initmsg.Message
	// Files follow initmsg.FirstFile in this order. A terminal's console socket is appended by who makes
	// it: Message.Process.ConsoleFile is len(Files).
	Files []*os.File
	// CloneFlags are the CLONE_NEW… flags for clone(2); what has to wait until the group was entered is in the
	// message (Unshare).
	CloneFlags uint64
	// PIDNamespace is a namespace to be set for children before the clone; "" is none.
	PIDNamespace string
	// LatePID leaves PIDNamespace to the init (launcher.Process.Late).
	LatePID bool
	// UserNamespace and TimeNamespace are to be entered before the clone (sys.SpawnAttr), or nil. What the init cannot
	// do inside the user namespace is in Host.
	UserNamespace, TimeNamespace *os.File
	Host                         sys.HostSetup
	// TimeOffsets are those of the time namespace that CloneFlags make (sys.SpawnAttr).
	TimeOffsets string
	// Affinity are the CPUs that the process starts on, before it is in its control group, as words of a mask.
	Affinity []uint64
	Terminal bool
	// Hooks that the runtime runs in its own namespaces: Prestart, CreateRuntime, Poststart, Poststop.
	Hooks *specs.Hooks

	resctrl []string // files by which the process enters its resctrl group

	own []*os.File // of Files, those that Compile opened
}

// Close closes the files that Compile opened, and no others.
func (l *Launch) Close() {
	for _, f := range l.own {
		f.Close()
	}
	l.own = nil
}

// compiler collects the parts of one Launch.
type compiler struct {
	spec    *specs.Spec
	opt     *Options
	launch  *Launch
	msg     *initmsg.Message
	new     uint64            // namespaces made
	joined  map[uint64]string // namespaces joined, by flag
	private sysctl.Private
}

// Compile translates a specification for the init. Every field is honoured, or is an UnsupportedError or a FieldError that
// names it. Resources are for who makes the control group (see CgroupResources).
func Compile(spec *specs.Spec, o Options) (_ *Launch, err error) {
	c := &compiler{
		spec: spec, opt: &o, joined: map[uint64]string{},
		msg: &initmsg.Message{Mode: initmsg.ModeContainer, StartFile: initmsg.NoFile, CgroupTasks: o.CgroupTasks},
	}
	c.launch = &Launch{Message: c.msg}
	defer func() {
		if err != nil {
			c.launch.Close()
		}
	}()
	for _, step := range []func() error{
		c.platform, c.resctrl, c.namespaces, c.root, c.names, c.netDevices, c.sysctls, c.mounts, c.devices, c.rootFiles, c.paths, c.hooks,
		func() error { return c.process(spec.Process) },
		c.seccomp, c.lastFiles, c.hostSetup,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return c.launch, nil
}

// file hands f over and returns its index.
func (c *compiler) file(f *os.File) int32 {
	if f == nil {
		return initmsg.NoFile
	}
	c.launch.Files = append(c.launch.Files, f)
	return int32(len(c.launch.Files) - 1)
}

// platform refuses what this runtime does not do at all.
func (c *compiler) platform() error {
	s := c.spec
	switch {
	case s.Process == nil:
		return fieldf("process", "missing")
	case s.Root == nil:
		return fieldf("root", "missing")
	case s.Solaris != nil:
		return unsupported("solaris", "this is Linux")
	case s.Windows != nil:
		return unsupported("windows", "this is Linux")
	case s.VM != nil:
		return unsupported("vm", "this runtime has no virtual machines")
	case s.ZOS != nil:
		return unsupported("zos", "this is Linux")
	case s.FreeBSD != nil:
		return unsupported("freebsd", "this is Linux")
	case s.Linux == nil:
		return fieldf("linux", "missing: a container needs a mount namespace at least")
	}
	major, _, _ := strings.Cut(s.Version, ".")
	if major != "1" {
		return fieldf("ociVersion", "%q is not a version 1", s.Version)
	}
	return nil
}

// resctrl has the init enter its group; who prepares the container makes it.
func (c *compiler) resctrl() error {
	r, err := parseResctrl(c.spec.Linux.IntelRdt, c.opt.ResctrlRoot, c.opt.ID)
	if r != nil {
		c.launch.resctrl = []string{r.tasks()}
		c.msg.CgroupTasks = append(slices.Clip(c.msg.CgroupTasks), r.tasks())
	}
	return err
}

var namespaceFlags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace:     sys.CloneNewPID,
	specs.NetworkNamespace: sys.CloneNewNet,
	specs.MountNamespace:   sys.CloneNewNS,
	specs.IPCNamespace:     sys.CloneNewIPC,
	specs.UTSNamespace:     sys.CloneNewUTS,
	specs.UserNamespace:    sys.CloneNewUser,
	specs.CgroupNamespace:  sys.CloneNewCgroup,
	specs.TimeNamespace:    sys.CloneNewTime,
}

func (c *compiler) namespaces() error {
	for i, ns := range c.spec.Linux.Namespaces {
		field := index("linux.namespaces", i)
		flag, ok := namespaceFlags[ns.Type]
		if !ok {
			return fieldf(field+".type", "unknown namespace %q", ns.Type)
		}
		if _, twice := c.joined[flag]; twice || c.new&flag != 0 {
			return fieldf(field+".type", "a second %s namespace", ns.Type)
		}
		if ns.Path == "" {
			c.new |= flag
			continue
		}
		if !filepath.IsAbs(ns.Path) {
			return fieldf(field+".path", "%q is not an absolute path", ns.Path)
		}
		if flag == sys.CloneNewNS && !c.opt.HostMounts {
			return unsupported(field+".path", "a mount namespace cannot be joined by a container of a pod")
		}
		c.joined[flag] = ns.Path
	}
	if c.new&sys.CloneNewNS == 0 {
		if !c.opt.HostMounts {
			return unsupported("linux.namespaces", "a container of a pod without a mount namespace of its own")
		}
		if c.hasUserNamespace() {
			return unsupported("linux.namespaces", "a user namespace without a new mount namespace: it has no rights over the mounts of others")
		}
	}
	has := func(flag uint64) bool { return c.new&flag != 0 || c.joined[flag] != "" }
	c.private = sysctl.Private{Net: has(sys.CloneNewNet), IPC: has(sys.CloneNewIPC), UTS: has(sys.CloneNewUTS)}
	for _, step := range []func() error{c.userNamespace, c.place, c.timeOffsets} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// place decides who makes or joins each namespace. A cgroup namespace is rooted where its maker is, so the init makes it
// once it is in its group.
// A PID namespace takes effect at the clone, and a process with threads cannot join a user or a time namespace.
func (c *compiler) place() (err error) {
	const late = sys.CloneNewCgroup
	c.launch.CloneFlags = c.new &^ (late | sys.CloneNewUser)
	c.msg.Unshare = c.new & late
	c.launch.PIDNamespace = c.joined[sys.CloneNewPID]
	if p := c.joined[sys.CloneNewTime]; p != "" && !c.opt.checkOnly {
		if c.launch.TimeNamespace, err = os.Open(p); err != nil {
			return &FieldError{Field: "linux.namespaces", Err: err}
		}
		c.own(c.launch.TimeNamespace)
	}
	for _, flag := range [...]uint64{
		sys.CloneNewNet, sys.CloneNewIPC, sys.CloneNewUTS, sys.CloneNewCgroup, sys.CloneNewNS,
	} {
		p := c.joined[flag]
		if p == "" {
			continue
		}
		n := initmsg.Namespace{Type: flag, Path: p, File: initmsg.NoFile}
		if c.msg.UserNamespace && !c.opt.checkOnly {
			f, err := os.Open(p)
			if err != nil {
				return &FieldError{Field: "linux.namespaces", Err: err}
			}
			n.File = c.file(c.own(f))
		}
		c.msg.Join = append(c.msg.Join, n)
	}
	return nil
}

func (c *compiler) timeOffsets() error {
	offsets := c.spec.Linux.TimeOffsets
	if len(offsets) == 0 {
		return nil
	}
	if c.new&sys.CloneNewTime == 0 {
		return fieldf("linux.timeOffsets", "set without a new time namespace")
	}
	for _, clock := range slices.Sorted(maps.Keys(offsets)) {
		if clock != "monotonic" && clock != "boottime" {
			return fieldf("linux.timeOffsets", "unknown clock %q", clock)
		}
		o := offsets[clock]
		c.launch.TimeOffsets += fmt.Sprintf("%s %d %d\n", clock, o.Secs, o.Nanosecs)
	}
	return nil
}

var propagations = map[string]uint64{
	"shared": sys.MountShared, "rshared": sys.MountShared | sys.MountRec,
	"slave": sys.MountSlave, "rslave": sys.MountSlave | sys.MountRec,
	"private": sys.MountPrivate, "rprivate": sys.MountPrivate | sys.MountRec,
	"unbindable": sys.MountUnbindable, "runbindable": sys.MountUnbindable | sys.MountRec,
}

func (c *compiler) root() error {
	r := &initmsg.Root{
		File: initmsg.NoFile, Staging: c.opt.Staging, NoPivot: c.opt.NoPivot, Readonly: c.spec.Root.Readonly,
		// Nothing that is mounted for the container may reach the host. Mounts that are to propagate both ways are
		// handed over as copies of the host's own (see bind), so this does not cut them off.
		Propagation: sys.MountSlave | sys.MountRec,
		Detached:    c.new&sys.CloneNewNS == 0,
	}
	if c.opt.Root != nil {
		r.File = c.file(c.opt.Root)
	} else {
		p, err := c.hostPath("root.path", c.spec.Root.Path)
		if err != nil {
			return err
		}
		r.Path = p
		if c.msg.UserNamespace {
			if r.File, err = c.clone("root.path", p, true); err != nil {
				return err
			}
		}
	}
	if p := c.spec.Linux.RootfsPropagation; p != "" {
		flag, ok := propagations[p]
		if !ok {
			return fieldf("linux.rootfsPropagation", "unknown propagation %q", p)
		}
		r.FinalPropagation = flag
		if flag&sys.MountPrivate != 0 {
			r.Propagation = sys.MountPrivate | sys.MountRec
		}
	}
	c.msg.Root = r
	return nil
}

// hostPath makes a path of the specification absolute.
func (c *compiler) hostPath(field, p string) (string, error) {
	switch {
	case p == "":
		return "", fieldf(field, "missing")
	case strings.IndexByte(p, 0) >= 0:
		return "", fieldf(field, "NUL byte in %q", p)
	case filepath.IsAbs(p):
		return p, nil
	case c.opt.Bundle == "":
		return "", fieldf(field, "%q is relative, and there is no bundle", p)
	}
	return filepath.Join(c.opt.Bundle, p), nil
}

func (c *compiler) names() error {
	for _, n := range []struct {
		field, value string
		to           *string
	}{
		{"hostname", c.spec.Hostname, &c.msg.Hostname},
		{"domainname", c.spec.Domainname, &c.msg.Domainname},
	} {
		if n.value == "" {
			continue
		}
		if !c.private.UTS {
			return fieldf(n.field, "%q would be the host's: there is no UTS namespace", n.value)
		}
		if len(n.value) > 64 || strings.IndexByte(n.value, 0) >= 0 {
			return fieldf(n.field, "%q: longer than 64 bytes, or a NUL byte", n.value)
		}
		*n.to = n.value
	}
	return nil
}

// netDevices are moved while the init waits at the HookGate.
func (c *compiler) netDevices() error {
	inside := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(c.spec.Linux.NetDevices)) {
		field := "linux.netDevices[" + name + "]"
		if !c.private.Net {
			return fieldf("linux.netDevices", "set without a network namespace: %s would stay on the host", name)
		}
		if err := netdevice.CheckName(name); err != nil {
			return &FieldError{Field: field, Err: err}
		}
		to := c.spec.Linux.NetDevices[name].Name
		if to == "" {
			to = name
		}
		if err := netdevice.CheckTarget(to); err != nil {
			return &FieldError{Field: field + ".name", Err: err}
		}
		if other, twice := inside[to]; twice && !strings.HasSuffix(to, "%d") {
			return fieldf(field+".name", "%s is the name of %s too", to, other)
		}
		inside[to] = name
	}
	return nil
}

func (c *compiler) sysctls() error {
	all := c.spec.Linux.Sysctl
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := sysctl.Check(name, all[name], c.private); err != nil {
			return &FieldError{Field: "linux.sysctl[" + name + "]", Err: err}
		}
		p, err := sysctl.Path(name)
		if err != nil {
			return err
		}
		c.msg.Sysctls = append(c.msg.Sysctls, initmsg.Sysctl{Name: p, Value: all[name]})
	}
	return nil
}

func (c *compiler) paths() error {
	for _, l := range []struct {
		field string
		paths []string
		to    *[]string
	}{
		{"linux.maskedPaths", c.spec.Linux.MaskedPaths, &c.msg.Masked},
		{"linux.readonlyPaths", c.spec.Linux.ReadonlyPaths, &c.msg.Readonly},
	} {
		for i, p := range l.paths {
			if !path.IsAbs(p) || strings.IndexByte(p, 0) >= 0 {
				return fieldf(index(l.field, i), "%q is not an absolute path", p)
			}
		}
		*l.to = l.paths
	}
	return nil
}

func (c *compiler) hooks() error {
	h := c.spec.Hooks
	if h == nil {
		return nil
	}
	var err error
	if c.msg.CreateContainerHooks, err = initHooks("hooks.createContainer", h.CreateContainer); err != nil {
		return err
	}
	if c.msg.StartContainerHooks, err = initHooks("hooks.startContainer", h.StartContainer); err != nil {
		return err
	}
	out := &specs.Hooks{CreateRuntime: h.CreateRuntime, Poststart: h.Poststart, Poststop: h.Poststop}
	out.Prestart = h.Prestart //nolint:staticcheck // deprecated by the specification, and still to be run
	for _, l := range []struct {
		field string
		hooks []specs.Hook
	}{
		{"hooks.prestart", out.Prestart}, //nolint:staticcheck // as above
		{"hooks.createRuntime", out.CreateRuntime},
		{"hooks.poststart", out.Poststart},
		{"hooks.poststop", out.Poststop},
	} {
		if _, err := initHooks(l.field, l.hooks); err != nil {
			return err
		}
	}
	c.launch.Hooks = out
	if len(c.msg.CreateContainerHooks)+len(c.msg.StartContainerHooks) == 0 {
		return nil
	}
	// Status and pid are the init's to add (initmsg.Message.State).
	c.msg.State, err = json.Marshal(struct {
		Version     string            `json:"ociVersion"`
		ID          string            `json:"id"`
		Bundle      string            `json:"bundle"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}{specs.Version, c.opt.ID, c.opt.Bundle, c.spec.Annotations})
	return err
}

func initHooks(field string, hooks []specs.Hook) ([]initmsg.Hook, error) {
	var out []initmsg.Hook
	for i, h := range hooks {
		if !filepath.IsAbs(h.Path) {
			return nil, fieldf(indexf(field, i, "path"), "%q is not an absolute path", h.Path)
		}
		m := initmsg.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout != nil {
			if *h.Timeout <= 0 { // runtime-spec: "MUST be greater than zero"
				return nil, fieldf(indexf(field, i, "timeout"), "%d is not greater than zero", *h.Timeout)
			}
			m.Timeout = uint64(*h.Timeout)
		}
		out = append(out, m)
	}
	return out, nil
}

// lastFiles hands over what has to come last: the workload's files follow each other, and the console's socket is made
// by another.
func (c *compiler) lastFiles() error {
	p := &c.msg.Process
	c.msg.StartFile = c.file(c.opt.StartFile)
	if c.opt.HookSocket != nil {
		n := c.file(c.opt.HookSocket)
		c.msg.HookFile = &n
	}
	p.FirstExtra, p.ConsoleFile = initmsg.NoFile, initmsg.NoFile
	if len(c.opt.ExtraFiles) > 0 {
		p.FirstExtra, p.ExtraFiles = int32(len(c.launch.Files)), uint32(len(c.opt.ExtraFiles))
		c.launch.Files = append(c.launch.Files, c.opt.ExtraFiles...)
	}
	if p.Terminal {
		p.ConsoleFile = int32(len(c.launch.Files))
		c.launch.Terminal = true
	}
	return nil
}
