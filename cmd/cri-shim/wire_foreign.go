package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/oci/cgroup"
	"github.com/cri-shim/cri-shim/oci/foreign"
	"github.com/cri-shim/cri-shim/sandbox"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// foreignRuntimes are the handlers that are other programs.
type foreignRuntimes struct {
	byName  map[string]*foreignRuntime
	builtin []string // names of the built-in runtime beside ""
	bundles string   // a folder for each container that runs
	oci     *oci.Runtime
	log     *slog.Logger

	mu       sync.Mutex
	cleaning map[string]chan struct{} // by container, closed at the end
}

type foreignRuntime struct {
	*foreign.Runtime
	userNamespaces, recursiveReadOnly bool
}

func newForeignRuntimes(ctx context.Context, cfg *config.Config, r *oci.Runtime, log *slog.Logger) (*foreignRuntimes, error) {
	f := &foreignRuntimes{
		byName: map[string]*foreignRuntime{}, builtin: append([]string{""}, cfg.BuiltinHandlers...),
		bundles: filepath.Join(cfg.State, "bundles"), oci: r, log: log,
		cleaning: map[string]chan struct{}{},
	}
	if err := os.MkdirAll(f.bundles, 0o711); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Runtimes)) {
		h := foreignOf(cfg, name)
		if err := os.MkdirAll(h.Root, 0o700); err != nil {
			return nil, err
		}
		f.byName[name] = &foreignRuntime{Runtime: h}
		f.detect(ctx, f.byName[name])
	}
	return f, nil
}

// foreignOf is a runtime as the configuration has it.
func foreignOf(cfg *config.Config, name string) *foreign.Runtime {
	c := cfg.Runtimes[name]
	r := &foreign.Runtime{
		Name: name, Program: c.Path, Options: c.Options, Root: filepath.Join(cfg.State, "runtimes", name),
		Systemd: cfg.CgroupDriver == "systemd", Timeout: c.Timeout.Duration,
	}
	if r.Timeout == 0 {
		r.Timeout = config.DefaultRuntimeTimeout
	}
	return r
}

// checkRuntimes is for `config check`: what would keep pods from running.
func checkRuntimes(cfg *config.Config) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(cfg.Runtimes)) {
		if err := foreignOf(cfg, name).Check(); err != nil {
			errs = append(errs, fmt.Errorf("runtimes.%s.%w", name, err))
		}
	}
	return errors.Join(errs...)
}

// detect asks a runtime for its features. One that does not tell is not said to have any.
func (f *foreignRuntimes) detect(ctx context.Context, r *foreignRuntime) {
	if err := r.Check(); err != nil {
		f.log.Warn("a runtime cannot be used", "handler", r.Name, "err", err)
		return
	}
	features, err := r.Features(ctx)
	if err != nil {
		f.log.Info("a runtime does not tell its features", "handler", r.Name, "err", err)
		return
	}
	r.userNamespaces = foreign.UserNamespaces(features)
	r.recursiveReadOnly = foreign.RecursiveReadOnly(features) && sys.HasMountSetattr()
}

// handlers are for the CRI's Status; userns is whether images can be mounted for user namespaces.
func (f *foreignRuntimes) handlers(userns bool) []cri.Handler {
	var out []cri.Handler
	for _, name := range slices.Sorted(maps.Keys(f.byName)) {
		r := f.byName[name]
		out = append(out, cri.Handler{
			Name: name, RecursiveReadOnly: r.recursiveReadOnly, UserNamespaces: r.userNamespaces && userns,
		})
	}
	return out
}

// problems are the runtimes that cannot be used just now.
func (f *foreignRuntimes) problems() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(f.byName)) {
		if err := f.usable(name); err != nil {
			out = append(out, err.Error())
		}
	}
	return out
}

// usable says why a handler's pods cannot be run.
func (f *foreignRuntimes) usable(handler string) error {
	if r := f.byName[handler]; r != nil {
		if err := r.Check(); err != nil {
			return fmt.Errorf("%w: runtime handler %q: %w", sandbox.ErrState, handler, err)
		}
	}
	return nil
}

// of is the runtime of a pod; nil is the built-in one.
func (f *foreignRuntimes) of(p *sandbox.Pod) (*foreignRuntime, error) {
	h := p.Config.Handler
	if slices.Contains(f.builtin, h) {
		return nil, nil
	}
	if r := f.byName[h]; r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("%w: the pod's runtime handler %q is not configured any more", sandbox.ErrState, h)
}

// group names the control group that a container's processes are in.
func (f *foreignRuntimes) group(p *sandbox.Pod, c *sandbox.Container) string {
	name := f.oci.CgroupPath(&p.Config, p.ID, c.ID)
	if slices.Contains(f.builtin, p.Config.Handler) {
		return name
	}
	return cgroup.Foreign(name)
}

func (f *foreignRuntimes) bundle(c *sandbox.Container) foreign.Bundle {
	return foreign.Bundle(filepath.Join(f.bundles, c.ID))
}

// check refuses what the runtime does not say it can: it would not fail, but mount what is writable.
func (r *foreignRuntime) check(c *sandbox.Container) error {
	for i := range c.Config.Mounts {
		if c.Config.Mounts[i].RecursiveReadonly && !r.recursiveReadOnly {
			return fmt.Errorf("%w: config.mounts[%d].recursive_read_only: the runtime handler %q does not say that it has it",
				sandbox.ErrInvalid, i, r.Name)
		}
	}
	return nil
}

// launch is how a supervisor calls the runtime.
func (r *foreignRuntime) launch(id string, b foreign.Bundle, dir string) *api.Foreign {
	return &api.Foreign{
		Program: r.Program, Options: r.Arguments(), ID: id, Bundle: string(b), Dir: dir, Timeout: r.Timeout,
	}
}

// prepareForeign is Prepare for a container that another runtime makes. What it makes is removed by Cleanup.
func (r *podRuntime) prepareForeign(ctx context.Context, h *foreignRuntime, c *sandbox.Container, params oci.Params, env sandbox.Environment) (_ *sandbox.Launch, err error) {
	if err := h.Check(); err != nil {
		return nil, fmt.Errorf("%w: runtime handler %q: %w", sandbox.ErrState, h.Name, err)
	}
	b := r.foreign.bundle(c)
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Remove())
		}
	}()
	volumes, err := r.images.volumes(ctx, c, env.Namespaces["user"])
	defer closeVolumes(volumes)
	if err != nil {
		return nil, err
	}
	places := slices.Sorted(maps.Keys(volumes))
	mounts := make([]*os.File, len(places))
	for i, at := range places {
		mounts[i] = volumes[at]
	}
	if err := b.Make(env.Root, mounts); err != nil {
		return nil, err
	}
	if u := params.Pod.Security.Namespaces.User; u != nil {
		for _, m := range u.GIDs {
			if m.ContainerID != 0 {
				continue
			}
			if err := b.OpenTo(m.HostID); err != nil {
				return nil, err
			}
		}
	}
	params.RootPath = b.Rootfs()
	params.ImageVolume = func(m *workload.Mount) (string, error) {
		return b.Volume(slices.Index(places, path.Clean(m.ContainerPath))), nil
	}
	if params.Namespaces.PID == oci.PIDJoin {
		params.Namespaces.PIDPath = b.PIDLink()
	}
	s, err := r.oci.Specify(ctx, params)
	if err != nil {
		return nil, runtimeError(err)
	}
	if err := mountFiles(b, s); err != nil {
		return nil, err
	}
	dir, err := b.Launch()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(b.Configure(s.Spec), r.specs.save(c.ID, s.Spec)); err != nil {
		return nil, err
	}
	for _, w := range s.Warnings {
		r.log.Warn("container", "ctr", c.ID, "err", w)
	}
	l := &sandbox.Launch{
		Foreign: h.launch(c.ID, b, dir), JoinPID: params.Namespaces.PID == oci.PIDJoin, User: &s.User,
		OOMFile: s.Group.OOMFile, OOMParent: s.Group.OOMParent, KillGroup: s.KillGroup,
	}
	if l.JoinPID {
		l.Foreign.PIDLink = b.PIDLink()
	}
	return l, nil
}

// mountFiles has files mounted that the built-in runtime would write.
func mountFiles(b foreign.Bundle, s *oci.Specified) error {
	for n, at := range slices.Sorted(maps.Keys(s.Files)) {
		from, err := b.File(n, s.Files[at])
		if err != nil {
			return err
		}
		s.Spec.Mounts = append(s.Spec.Mounts, specs.Mount{
			Destination: at, Type: "bind", Source: from, Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev"},
		})
	}
	return nil
}

// prepareForeignExec is PrepareExec in a container that another runtime has made.
func (r *podRuntime) prepareForeignExec(h *foreignRuntime, c *sandbox.Container, e sandbox.ExecSpec) (*sandbox.Launch, error) {
	spec, err := r.specs.load(c.ID)
	if err != nil {
		return nil, err
	}
	if len(e.Command) == 0 {
		return nil, fmt.Errorf("%w: cmd: empty", sandbox.ErrInvalid)
	}
	b := r.foreign.bundle(c)
	dir, process, err := b.Exec(oci.ExecProcess(spec, e.Command, e.Terminal))
	if err != nil {
		return nil, err
	}
	l := &sandbox.Launch{Foreign: h.launch(c.ID, b, dir), Release: func() { os.RemoveAll(dir) }}
	l.Foreign.Process = process
	return l, nil
}

// cleanup ends what another runtime has of a container: by the runtime itself, and where that fails by what is known of
// the container without it. A runtime that is configured and has kept something is an error, so that it is asked again;
// one that is not configured any more is done without.
func (f *foreignRuntimes) cleanup(ctx context.Context, p *sandbox.Pod, c *sandbox.Container) error {
	b := f.bundle(c)
	r, err := f.of(p)
	if err == nil && r == nil || !b.Exists() {
		return nil
	}
	free, waited := f.take(ctx, c.ID)
	if waited != nil {
		return waited
	}
	defer free()
	if !b.Exists() {
		return nil // another was faster
	}
	if r != nil {
		err = r.Delete(ctx, c.ID)
	}
	killed := f.oci.Remove(ctx, f.group(p, c))
	switch {
	case killed != nil:
		return errors.Join(err, killed)
	case err != nil && r == nil:
		f.log.Warn("remove a container without its runtime", "ctr", c.ID, "err", err)
		err = os.RemoveAll(filepath.Join(filepath.Dir(f.bundles), "runtimes", p.Config.Handler, c.ID))
	case err != nil && !r.Knows(c.ID):
		err = nil
	}
	if err != nil {
		return fmt.Errorf("container %s: its processes are gone, but not what its runtime keeps of it: %w", c.ID, err)
	}
	return b.Remove()
}

// take waits until nobody else ends what a runtime has of a container: of two at once, one would be told that it is not
// there, or is half gone.
func (f *foreignRuntimes) take(ctx context.Context, id string) (free func(), err error) {
	for {
		f.mu.Lock()
		busy := f.cleaning[id]
		if busy == nil {
			mine := make(chan struct{})
			f.cleaning[id] = mine
			f.mu.Unlock()
			return func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				delete(f.cleaning, id)
				close(mine)
			}, nil
		}
		f.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("container %s: its runtime is still ending it: %w", id, ctx.Err())
		}
	}
}

// update changes limits by the kernel's files. Where systemd has made the group it has to be told too, which the runtime
// does that had it made: it leaves out what it has no words for, and systemd rounds, so the files are written once more.
func (f *foreignRuntimes) update(ctx context.Context, p *sandbox.Pod, c *sandbox.Container, res *workload.Resources) error {
	name := f.oci.CgroupPath(&p.Config, p.ID, c.ID)
	r, err := f.of(p)
	if err != nil {
		return err
	}
	if r == nil {
		return f.oci.Update(ctx, name, res)
	}
	group := cgroup.Foreign(name)
	if err := f.oci.Update(ctx, group, res); err != nil || group == name {
		return err
	}
	limits, err := f.oci.Limits(res)
	if err != nil {
		return err
	}
	if err := r.Update(ctx, c.ID, limits); err != nil {
		return err
	}
	return f.oci.Update(ctx, group, res)
}
