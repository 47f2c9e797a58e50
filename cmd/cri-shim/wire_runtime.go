package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/gpu"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/oci/apparmor"
	"github.com/cri-shim/cri-shim/oci/cgroup"
	"github.com/cri-shim/cri-shim/sandbox"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// joinedLater stands for a PID namespace that only the supervisor can name: it has the
// process whose namespace it is.
const joinedLater = "/proc/self/ns/pid"

// podRuntime is sandbox.Runtime over the built-in runtime, and others beside it.
type podRuntime struct {
	foreign *foreignRuntimes
	oci     *oci.Runtime
	images  *podImages
	specs   *specStore
	staging string // where the init mounts a root file system, in its own mount namespace
	bundles string // of containers with hooks
	devices *gpu.Registry
	// netDevices are the node's interfaces that pods have.
	netDevices *podDevices
	classes    classes
	log        *slog.Logger
	criu       string // the program
	// problem is what the node's configuration asks for and the node has not; nil is none.
	problem error
}

func newPodRuntime(ctx context.Context, cfg *config.Config, groups *cgroup.Host, images *podImages, log *slog.Logger) (*podRuntime, error) {
	staging := filepath.Join(cfg.State, "staging")
	if err := os.MkdirAll(staging, 0o700); err != nil {
		return nil, err
	}
	specs, err := openSpecStore(filepath.Join(cfg.State, "specs"))
	if err != nil {
		return nil, err
	}
	profile, problem := defaultAppArmor(ctx, cfg.ApparmorProfile)
	if problem != nil {
		log.Warn("RuntimeDefault does not confine containers by AppArmor", "err", problem)
	}
	r, err := oci.New(groups, oci.Config{
		SystemdCgroup: cfg.CgroupDriver == "systemd",
		Staging:       staging, SeccompDefault: cfg.SeccompProfile, AppArmorDefault: profile,
		Rlimits: rlimits(cfg.DefaultUlimits), PidsLimit: cfg.PidsLimit,
	})
	if err != nil {
		return nil, err
	}
	classes, err := newClasses(cfg)
	if err != nil {
		return nil, err
	}
	foreign, err := newForeignRuntimes(ctx, cfg, r, log)
	if err != nil {
		return nil, err
	}
	return &podRuntime{
		foreign: foreign, oci: r, images: images, specs: specs, staging: staging,
		bundles: filepath.Join(cfg.State, "hooks"), devices: newRegistry(cfg), classes: classes, log: log, problem: problem,
		netDevices: &podDevices{dir: filepath.Join(cfg.State, "netdevices")}, criu: cfg.CRIUProgram,
	}, nil
}

// problems is for the verbose status.
func (r *podRuntime) problems() []string {
	out := r.foreign.problems()
	if r.problem != nil {
		out = append(out, r.problem.Error())
	}
	return out
}

// defaultAppArmor loads the profile that RuntimeDefault stands for. A node that has AppArmor but not the profile runs
// containers without it, and says so here and in its verbose status.
func defaultAppArmor(ctx context.Context, name string) (profile string, problem error) {
	if name == "" || !apparmor.Enabled() {
		return "", nil
	}
	if err := apparmor.Ensure(ctx, name); err != nil {
		return "", fmt.Errorf("apparmor_profile: %w", err)
	}
	return name, nil
}

func rlimits(in []config.Ulimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	for _, u := range in {
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: u.Soft, Hard: u.Hard})
	}
	return out
}

// Check implements sandbox.Runtime.
func (r *podRuntime) Check(p *sandbox.Pod, c *sandbox.Container) error { return r.check(p, c, nil) }

// check also shows the specification to look, if any.
func (r *podRuntime) check(p *sandbox.Pod, c *sandbox.Container, look func(*oci.Built) error) error {
	params, err := r.uncommitted(p, c)
	if err != nil {
		return err
	}
	params.Edit = compose(params.Edit, look)
	h, err := r.foreign.of(p)
	if err != nil {
		return err
	}
	if h != nil {
		return errors.Join(h.check(c), runtimeError(r.oci.CheckForeign(context.Background(), params)))
	}
	return runtimeError(r.oci.Check(context.Background(), params))
}

// uncommitted are the parameters of a container of which nothing is made yet.
func (r *podRuntime) uncommitted(p *sandbox.Pod, c *sandbox.Container) (oci.Params, error) {
	env := sandbox.Environment{Namespaces: map[string]string{}}
	// Any path will do where the pod has a namespace of its own.
	ns := p.Config.Security.Namespaces
	if ns.Network != workload.ModeNode {
		env.Namespaces["network"], env.Namespaces["uts"] = "/proc/self/ns/net", "/proc/self/ns/uts"
	}
	if ns.IPC != workload.ModeNode {
		env.Namespaces["ipc"] = "/proc/self/ns/ipc"
	}
	if ns.User != nil && ns.User.Mode == workload.ModePod {
		env.Namespaces["user"] = "/proc/self/ns/user"
	}
	params, err := r.params(p, c, env)
	if err != nil {
		return params, err
	}
	params.ImageVolume = func(*workload.Mount) (string, error) { return "/", nil }
	return params, nil
}

// describe is the specification of a container of which nothing is made yet.
func (r *podRuntime) describe(p *sandbox.Pod, c *sandbox.Container) (*oci.Built, error) {
	params, err := r.uncommitted(p, c)
	if err != nil {
		return nil, err
	}
	// As the manager will have them; what they are is not looked at.
	params.ResolvConf, params.Hosts, params.Hostname, params.ShmPath = os.DevNull, os.DevNull, os.DevNull, "/dev/shm"
	img, err := r.images.config(c.ImageID)
	if err != nil {
		return nil, err
	}
	for at := range img.Volumes {
		params.ExtraMounts = append(params.ExtraMounts, workload.Mount{ContainerPath: at, HostPath: "/"})
	}
	b, err := r.oci.Describe(context.Background(), params)
	return b, runtimeError(err)
}

// Prepare implements sandbox.Runtime.
func (r *podRuntime) Prepare(ctx context.Context, p *sandbox.Pod, c *sandbox.Container, env sandbox.Environment) (_ *sandbox.Launch, err error) {
	if c.Checkpoint != "" {
		return r.prepareRestore(ctx, p, c, env)
	}
	params, err := r.params(p, c, env)
	if err != nil {
		return nil, err
	}
	if h, err := r.foreign.of(p); err != nil || h != nil {
		if err != nil {
			return nil, err
		}
		return r.prepareForeign(ctx, h, c, params, env)
	}
	volumes, err := r.images.volumes(ctx, c, env.Namespaces["user"])
	defer func() {
		if err != nil {
			closeVolumes(volumes)
		}
	}()
	if err != nil {
		return nil, err
	}
	params.MountFiles = volumes
	params.ImageVolume = func(*workload.Mount) (string, error) { return "/", nil } // replaced by its file
	prepared, err := r.oci.Prepare(ctx, params)
	if err != nil {
		return nil, runtimeError(err)
	}
	if err := r.specs.save(c.ID, prepared.Spec); err != nil {
		return nil, errors.Join(err, prepared.Undo(ctx))
	}
	for _, w := range prepared.Warnings {
		r.log.Warn("container", "ctr", c.ID, "err", w)
	}
	l := launch(prepared)
	l.User = &prepared.User
	if err := r.hooks(ctx, p, c, prepared, l); err != nil {
		return nil, errors.Join(err, prepared.Undo(ctx), os.RemoveAll(r.bundle(c.ID)))
	}
	return l, nil
}

// launch hands over what was prepared. The files that it opened are closed with the launch,
// as are those that were handed in.
func launch(p *oci.Prepared) *sandbox.Launch {
	l := &sandbox.Launch{
		Message: p.Encoded, Files: p.Files, Cgroup: p.CgroupFD, CloneFlags: p.CloneFlags,
		JoinPID: p.PIDNamespace != "", LatePID: p.LatePID, OOMFile: p.OOMFile, OOMParent: p.OOMParent, KillGroup: p.KillGroup, Release: p.Release,
		UserNamespace: p.UserNamespace, TimeNamespace: p.TimeNamespace, TimeOffsets: p.TimeOffsets, Affinity: p.Affinity,
	}
	if p.UserNamespace != nil {
		h := p.Host
		l.Host = &api.HostSetup{CgroupTasks: h.CgroupTasks, Dir: h.Dir, StdioUID: h.StdioUID, OOMScoreAdj: h.OOMScoreAdj}
		for _, limit := range h.Rlimits {
			l.Host.Rlimits = append(l.Host.Rlimits, api.Rlimit(limit))
		}
	}
	return l
}

func (r *podRuntime) params(p *sandbox.Pod, c *sandbox.Container, env sandbox.Environment) (oci.Params, error) {
	img, err := r.images.config(c.ImageID)
	if err != nil {
		return oci.Params{}, err
	}
	config := c.Config
	config.Resources = c.Limits()
	params := oci.Params{
		Pod: &p.Config, PodID: p.ID, ContainerID: c.ID, Container: &config, Root: env.Root,
		Image:      oci.Image{User: img.User, WorkingDir: img.WorkingDir, Env: img.Env, Entrypoint: img.Entrypoint, Cmd: img.Cmd},
		Namespaces: oci.Namespaces{Net: env.Namespaces["network"], IPC: env.Namespaces["ipc"], UTS: env.Namespaces["uts"], User: env.Namespaces["user"]},
		CgroupPath: r.oci.CgroupPath(&p.Config, p.ID, c.ID),
		ResolvConf: env.ResolvConf, Hosts: env.Hosts, Hostname: env.Hostname, ShmPath: env.Shm, Bundle: r.bundle(c.ID),
	}
	switch c.Config.Security.Namespaces.PID {
	case workload.ModeNode:
		params.Namespaces.PID = oci.PIDHost
	case workload.ModePod, workload.ModeTarget, "":
		params.Namespaces.PID, params.Namespaces.PIDPath = oci.PIDJoin, joinedLater
	}
	params.Edit = compose(r.edit(p, c, env.Root), func(b *oci.Built) error { return r.adjust(b, c) })
	for at, dir := range env.Volumes {
		params.ExtraMounts = append(params.ExtraMounts, workload.Mount{ContainerPath: at, HostPath: dir})
	}
	return params, nil
}

// PrepareExec implements sandbox.Runtime.
func (r *podRuntime) PrepareExec(ctx context.Context, p *sandbox.Pod, c *sandbox.Container, e sandbox.ExecSpec) (*sandbox.Launch, error) {
	if h, err := r.foreign.of(p); err != nil || h != nil {
		if err != nil {
			return nil, err
		}
		return r.prepareForeignExec(h, c, e)
	}
	spec, err := r.specs.load(c.ID)
	if err != nil {
		return nil, err
	}
	prepared, err := r.oci.Exec(ctx, oci.ExecParams{
		ContainerID: c.ID, CgroupPath: r.oci.CgroupPath(&p.Config, p.ID, c.ID), Spec: spec,
		Command: e.Command, Terminal: e.Terminal, PID: e.PID, LatePID: e.LatePID,
		Alive: func() error { return sameProcess(e.PID, c.PIDStart) },
	})
	if err != nil {
		return nil, runtimeError(err)
	}
	return launch(prepared), nil
}

// sameProcess says whether a PID is still the process that began at start (0: unknown).
func sameProcess(pid int, start uint64) error {
	now, err := sys.StartTime(pid)
	if err != nil || start != 0 && now != start {
		return fmt.Errorf("%w: the container's process %d has ended", sandbox.ErrState, pid)
	}
	return nil
}

// PodInit implements sandbox.Runtime.
func (r *podRuntime) PodInit(ctx context.Context, p *sandbox.Pod, userns string) (*sandbox.Launch, error) {
	prepared, err := r.oci.PodInit(ctx, &p.Config, p.ID, oci.Namespaces{User: userns})
	if err != nil {
		return nil, runtimeError(err)
	}
	return launch(prepared), nil
}

// Cleanup implements sandbox.Runtime.
func (r *podRuntime) Cleanup(ctx context.Context, p *sandbox.Pod, c *sandbox.Container) error {
	if err := r.foreign.cleanup(ctx, p, c); err != nil {
		return err
	}
	err := errors.Join(r.oci.Remove(ctx, r.oci.CgroupPath(&p.Config, p.ID, c.ID)), r.specs.remove(c.ID),
		r.oci.RemoveResctrl(c.ID))
	if err == nil && c.Checkpoint != "" {
		err = r.foreign.bundle(c).Remove()
	}
	if err != nil {
		return err // what has not gone is tried again, and the hooks are for after that
	}
	return r.poststop(ctx, c.ID)
}

// CleanupPod implements sandbox.Runtime. The parent that a client named is the client's.
func (r *podRuntime) CleanupPod(ctx context.Context, p *sandbox.Pod) error {
	err := r.oci.Remove(ctx, r.oci.PodInitCgroup(&p.Config, p.ID))
	if p.Config.CgroupParent == "" {
		err = errors.Join(err, r.oci.Remove(ctx, r.oci.PodCgroup(&p.Config, p.ID)))
	}
	return errors.Join(err, r.netDevices.forget(p.ID))
}

// runtimeError gives an error of the runtime its kind.
func runtimeError(err error) error {
	var field *oci.FieldError
	var limit *cgroup.LimitError
	switch {
	case errors.As(err, &field), errors.Is(err, gpu.ErrDevice):
		return fmt.Errorf("%w: %w", sandbox.ErrInvalid, err)
	case errors.As(err, &limit) && errors.Is(err, syscall.EBUSY): // more is in use
		return fmt.Errorf("%w: %w", sandbox.ErrState, err)
	case errors.As(err, &limit) && (errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ERANGE)):
		return fmt.Errorf("%w: %w", sandbox.ErrInvalid, err)
	}
	return err
}
