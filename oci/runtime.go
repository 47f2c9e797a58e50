package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci/cgroup"
	"github.com/cri-shim/cri-shim/oci/selinux"
)

// undoTimeout bounds the removal of a group in which nothing has run yet.
const undoTimeout = 5 * time.Second

// Config is what an administrator decides about containers.
type Config struct {
	// SystemdCgroup has systemd make the groups of pods and containers (cgroup v2 only).
	SystemdCgroup bool
	// Staging is an empty directory on which an init puts its root before the pivot; every container may use the same.
	Staging string
	// SeccompDefault is the file with the profile for runtime/default, read once; "" is the built-in one.
	SeccompDefault string
	// AppArmorDefault is the loaded profile for runtime/default; "" is none.
	AppArmorDefault string
	// Rlimits of every container ("RLIMIT_NOFILE"); those not named are inherited.
	Rlimits []specs.POSIXRlimit
	// PidsLimit of each container; 0 is none.
	PidsLimit int64
	// ResctrlRoot is where resctrl is mounted; "" is /sys/fs/resctrl.
	ResctrlRoot string
	// PathTimeout bounds the look at a volume's host path; 0 is 10 seconds.
	PathTimeout time.Duration
}

// Runtime prepares containers for launch and owns their control groups. It is safe for concurrent use.
type Runtime struct {
	cfg      Config
	host     *Host
	cgroups  *cgroup.Host
	mounts   CgroupMounts
	profiles *profiles
}

// New looks at the node once.
func New(cgroups *cgroup.Host, cfg Config) (*Runtime, error) {
	h, err := DetectHost()
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	if cfg.SystemdCgroup {
		if err := cgroups.ConnectSystemd(context.Background()); err != nil {
			return nil, fmt.Errorf("oci: %w", err)
		}
	}
	r := &Runtime{cfg: cfg, host: h, cgroups: cgroups, profiles: newProfiles()}
	r.mounts = MountsOf(cgroups)
	h.Swap = cgroups.SwapAccounting()
	h.Hugetlb = slices.Contains(cgroups.Controllers(), "hugetlb")
	h.Seccomp = r.profiles
	if cfg.SeccompDefault != "" {
		if err := r.profiles.useForDefault(cfg.SeccompDefault); err != nil {
			return nil, fmt.Errorf("oci: default seccomp profile: %w", err)
		}
	}
	h.AppArmorDefault = cfg.AppArmorDefault
	if h.AppArmor && h.AppArmorDefault != "" {
		if err := appArmorLoaded(h.AppArmorDefault); err != nil {
			return nil, fmt.Errorf("oci: default AppArmor profile: %w", err)
		}
	}
	if h.Rlimits, err = allowedRlimits(cfg.Rlimits, h.Capabilities&(1<<capSysResource) != 0); err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	h.PidsLimit, h.PathTimeout = cfg.PidsLimit, cfg.PathTimeout
	return r, nil
}

// Prepared is a container ready to be launched. Close it once it has been, or after Undo.
type Prepared struct {
	*Launch
	Encoded []byte // Launch.Message
	Spec    *specs.Spec
	User    workload.User
	Group   *cgroup.Group
	// OOMFile, OOMParent and KillGroup are for the supervisor (sandbox/api.Launch). KillGroup is set where the end of the
	// first process does not end the others.
	OOMFile   string
	OOMParent string
	KillGroup []string
	CgroupFD  *os.File // cgroup v2: for CLONE_INTO_CGROUP, else nil
	Relabel   []string
	Warnings  []string
	// Gate is where the init waits for the hooks of the runtime's namespaces, or nil. Whoever launches it must
	// call Gate.Serve meanwhile.
	Gate *HookGate
}

// Release lets go of what kept the new group from being empty. Call it once the process was launched into it; Close does
// it too.
func (p *Prepared) Release() {
	if p.Group != nil {
		p.Group.Release()
	}
}

// Close closes the descriptors that Prepare opened. Files that the caller passed in stay open.
func (p *Prepared) Close() {
	p.Gate.Close()
	p.Release()
	if p.Launch != nil {
		p.Launch.Close()
	}
	if p.CgroupFD != nil {
		p.CgroupFD.Close()
		p.CgroupFD = nil
	}
}

// Undo removes the group of a container that was not launched. It outlives ctx.
func (p *Prepared) Undo(ctx context.Context) error {
	p.Close()
	if p.Group == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return p.Group.Remove(ctx)
}

// Check finds what would make Prepare fail without the image's files: nothing is made.
func (r *Runtime) Check(ctx context.Context, p Params) error {
	p.Root, p.RootPath, p.checkOnly = nil, "/", true // Compile looks at neither
	b, err := Build(ctx, r.host, &p)
	if err != nil {
		return err
	}
	opt, err := r.options(&p)
	if err != nil {
		return err
	}
	opt.checkOnly, opt.HostNodes, opt.RootFiles = true, b.HostNodes, b.Files
	l, err := Compile(b.Spec, opt)
	if err != nil {
		return err
	}
	l.Close()
	rdt, err := parseResctrl(b.Spec.Linux.IntelRdt, r.cfg.ResctrlRoot, p.ContainerID)
	if rdt == nil || err != nil {
		return err
	}
	return rdt.check()
}

// undoOn takes back what was prepared of something when that has failed, which err then says.
func (p *Prepared) undoOn(ctx context.Context, what string, err *error) {
	if *err != nil {
		*err = errors.Join(fmt.Errorf("prepare %s: %w", what, *err), p.Undo(ctx))
	}
}

// describe makes the specification and does what has to be done with volumes before they are mounted.
func (r *Runtime) describe(ctx context.Context, p *Params, out *Prepared) (*Built, error) {
	b, err := Build(ctx, r.host, p)
	if err != nil {
		return nil, err
	}
	out.Spec, out.User, out.Relabel, out.Warnings = b.Spec, b.User, b.Relabel, b.Warnings
	return b, r.relabel(ctx, b)
}

// Prepare makes the specification, the group with its limits and the init's message. On an error nothing is left.
func (r *Runtime) Prepare(ctx context.Context, p Params) (_ *Prepared, err error) {
	out := &Prepared{}
	defer out.undoOn(ctx, "container "+p.ContainerID, &err)
	b, err := r.describe(ctx, &p, out)
	if err != nil {
		return nil, err
	}
	opt, err := r.options(&p)
	if err != nil {
		return nil, err
	}
	if out.Group, err = r.cgroups.Create(ctx, p.CgroupPath, b.Spec.Linux.Resources); err != nil {
		return nil, err
	}
	if out.Gate, err = NewHookGate(b.Spec); err != nil {
		return nil, err
	}
	opt.HookSocket = out.Gate.Socket()
	if b.Spec.Hooks != nil {
		opt.Bundle = p.Bundle
	}
	opt.CgroupTasks, opt.HostNodes, opt.RootFiles = out.Group.TaskFiles(), b.HostNodes, b.Files
	if out.Launch, err = Compile(b.Spec, opt); err != nil {
		return nil, err
	}
	if out.Encoded, err = initmsg.Encode(out.Launch.Message); err != nil {
		return nil, err
	}
	if err := r.attachGroup(out); err != nil {
		return nil, err
	}
	// Last: Remove takes it away, and Undo need not.
	if err := MakeResctrl(b.Spec, r.cfg.ResctrlRoot, p.ContainerID); err != nil {
		return nil, err
	}
	// The first process of a PID namespace takes the others with it.
	if p.Namespaces.PID == PIDOwn {
		out.KillGroup = nil
	}
	return out, nil
}

// relabel gives the volumes that the client wants relabelled the container's label. They may be large and on storage that
// hangs, so it is not waited for longer than ctx.
func (r *Runtime) relabel(ctx context.Context, b *Built) error {
	if !r.host.SELinux || len(b.Relabel) == 0 {
		return nil
	}
	done := make(chan error, 1)
	go func() {
		for _, path := range b.Relabel {
			if err := selinux.Relabel(path, b.Spec.Linux.MountLabel); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("relabel volumes %v: %w", b.Relabel, context.Cause(ctx))
	}
}

// attachGroup fills in what the supervisor needs of the group.
func (r *Runtime) attachGroup(p *Prepared) error {
	p.OOMFile, p.OOMParent = p.Group.OOMFile(), p.Group.OOMParent()
	if tasks := p.Group.TaskFiles(); len(tasks) > 0 {
		p.KillGroup = []string{path.Dir(tasks[0])}
		return nil
	}
	var err error
	if p.CgroupFD, err = p.Group.Dir(); err != nil {
		return err
	}
	p.KillGroup = []string{p.CgroupFD.Name()}
	return nil
}

func (r *Runtime) options(p *Params) (Options, error) {
	opt := Options{ResctrlRoot: r.cfg.ResctrlRoot, Staging: r.cfg.Staging, Cgroups: r.mounts, Seccomp: r.profiles.compile, ID: p.ContainerID, MountFiles: p.MountFiles}
	if p.RootPath == "" {
		opt.Root = p.Root
	}
	var err error
	opt.Cgroups.Group, err = cgroup.Resolve(p.CgroupPath)
	return opt, err
}

// podInitScore keeps the OOM killer from a process that holds a whole pod and some pages, as the sandbox's of containerd.
const podInitScore = -998

// podInitUser is who a pod's init runs as: nobody's number in the pause image too.
const podInitUser = 65535

// PodInit makes PID 1 of a pod's shared PID namespace, in a group of its own (see PodInitCgroup). It has no
// capabilities and no files.
func (r *Runtime) PodInit(ctx context.Context, pod *workload.Pod, podID string, ns Namespaces) (_ *Prepared, err error) {
	out := &Prepared{}
	defer out.undoOn(ctx, "the init of pod "+podID, &err)
	if out.Group, err = r.cgroups.Create(ctx, r.PodInitCgroup(pod, podID), &specs.LinuxResources{Devices: cgroup.DefaultDevices()}); err != nil {
		return nil, err
	}
	score := int32(max(podInitScore, r.host.OOMScoreFloor))
	user := uint32(podInitUser)
	if ns.User != "" {
		user = 0 // a pod's mapping need not reach that far
	}
	out.Launch = &Launch{
		CloneFlags: sys.CloneNewPID | sys.CloneNewNS,
		Message: &initmsg.Message{
			Mode: initmsg.ModePodInit, StartFile: initmsg.NoFile, CgroupTasks: out.Group.TaskFiles(),
			Root: &initmsg.Root{File: initmsg.NoFile, Staging: r.cfg.Staging, Propagation: sys.MountSlave | sys.MountRec},
			Process: initmsg.Process{
				UID: user, GID: user, Caps: &initmsg.Capabilities{}, NoNewPrivs: true, OOMScoreAdj: &score,
				ConsoleFile: initmsg.NoFile, FirstExtra: initmsg.NoFile, AppArmor: r.podInitAppArmor(pod),
			},
		},
	}
	if err := out.Launch.enterUser(ns.User); err != nil {
		return nil, err
	}
	if out.Encoded, err = initmsg.Encode(out.Launch.Message); err != nil {
		return nil, err
	}
	if err := r.attachGroup(out); err != nil {
		return nil, err
	}
	out.KillGroup = nil // the kernel ends a PID namespace with its init
	return out, nil
}

// podInitAppArmor is the profile of a pod's init: the default one, whose processes may look at each other. Containers could not so
// much as read /proc/1/ns of an init without a profile. One that was named for the pod need not let the init run at all.
func (r *Runtime) podInitAppArmor(pod *workload.Pod) string {
	p := pod.Security.AppArmor
	if !r.host.AppArmor || pod.Security.Privileged || p != nil && p.Kind == workload.ProfileUnconfined {
		return ""
	}
	return r.host.AppArmorDefault
}

// enterUser has a pod's init made in the user namespace at path; "" is none.
func (l *Launch) enterUser(path string) (err error) {
	if path == "" {
		return nil
	}
	if l.UserNamespace, err = os.Open(path); err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	l.own = append(l.own, l.UserNamespace)
	m := l.Message
	l.Host = sys.HostSetup{CgroupTasks: m.CgroupTasks, Dir: m.Root.Staging, OOMScoreAdj: m.Process.OOMScoreAdj}
	m.UserNamespace, m.CgroupTasks = true, nil
	return nil
}

// ExecParams is another process of a running container.
type ExecParams struct {
	ContainerID string
	CgroupPath  string
	Spec        *specs.Spec // the container's, from Prepared
	Command     []string
	Terminal    bool
	PID         int // of the container's first process
	// Alive says, once its namespaces are open, that PID is still that process (by pidfd or start time).
	Alive func() error
	// LatePID, see ExecState.
	LatePID bool
}

// Exec makes the message for another process. Close the result once it was launched; there is nothing to undo.
func (r *Runtime) Exec(ctx context.Context, e ExecParams) (_ *Prepared, err error) {
	out := &Prepared{Spec: e.Spec}
	defer func() {
		if err != nil {
			out.Close()
			err = fmt.Errorf("prepare exec in container %s: %w", e.ContainerID, err)
		}
	}()
	if len(e.Command) == 0 {
		return nil, fieldf("cmd", "empty")
	}
	group, err := r.cgroups.Open(e.CgroupPath)
	if err != nil {
		return nil, err
	}
	files, err := OpenNamespaces(e.Spec, e.PID)
	if err != nil {
		return nil, err
	}
	if e.Alive != nil {
		if err := e.Alive(); err != nil {
			CloseNamespaces(files)
			return nil, err
		}
	}
	tasks := group.TaskFiles()
	if e.Spec.Linux != nil {
		rdt, err := parseResctrl(e.Spec.Linux.IntelRdt, r.cfg.ResctrlRoot, e.ContainerID)
		if err != nil {
			CloseNamespaces(files)
			return nil, err
		}
		if rdt != nil {
			tasks = append(slices.Clip(tasks), rdt.tasks())
		}
	}
	out.Launch, err = CompileExec(e.Spec, ExecProcess(e.Spec, e.Command, e.Terminal), ExecState{
		PID: e.PID, Namespaces: files, CgroupTasks: tasks, Seccomp: r.profiles.compile, ID: e.ContainerID, LatePID: e.LatePID,
	})
	if err != nil {
		CloseNamespaces(files)
		return nil, err
	}
	for _, f := range files {
		out.Launch.own = append(out.Launch.own, f)
	}
	if out.Encoded, err = initmsg.Encode(out.Launch.Message); err != nil {
		return nil, err
	}
	if r.cgroups.Mode() == cgroup.V2 {
		if out.CgroupFD, err = group.Dir(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Stats measures a group.
func (r *Runtime) Stats(_ context.Context, cgroupPath string, all bool) (*cgroup.Stats, error) {
	g, err := r.cgroups.Named(cgroupPath)
	if err != nil {
		return nil, err
	}
	if !all {
		return g.MainStats()
	}
	return g.Stats()
}

// RemoveResctrl removes what a container had of its own in resctrl; nil when it is gone, or never was.
func (r *Runtime) RemoveResctrl(containerID string) error {
	return RemoveResctrl(r.cfg.ResctrlRoot, containerID)
}
