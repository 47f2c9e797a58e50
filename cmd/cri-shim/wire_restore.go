package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/checkpoint"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/oci/criu"
	"github.com/cri-shim/cri-shim/oci/foreign"
	"github.com/cri-shim/cri-shim/sandbox"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// checkpointAnnotations are of the manifest of an image that holds a checkpoint: CRI-O's and containerd's, and the one that
// checkpointctl and later engines write.
var checkpointAnnotations = []string{
	"io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name",
}

// maxImages bounds the files of an archive.
const maxImages = 1 << 16

// Files of a container's own folder while it waits for its restore.
const (
	restoreDir  = "restore"
	restoreSpec = "spec.json" // the specification that it had
	restoreNet  = "network.json"
)

// restorePolicy says what containers may be restored from.
type restorePolicy struct {
	images   bool
	archives []string
	limits   checkpoint.Limits
	layer    image.DiffLimits
}

func newRestorePolicy(cfg *config.Config) restorePolicy {
	return restorePolicy{
		images: cfg.RestoreFromImages, archives: cfg.RestoreArchiveDirs,
		limits: checkpoint.Limits{Size: int64(cfg.MaxLayerSize), Entries: maxImages},
		layer:  image.DiffLimits{Size: int64(cfg.MaxLayerSize), Entries: cfg.MaxLayerEntries},
	}
}

// captured is sandbox.Checkpoint over an archive or the layer of an image.
type captured struct {
	c      podCheckpoints
	name   string
	source func() (checkpoint.Source, error)
	close  func() error
	docs   *checkpoint.Documents
	spec   *specs.Spec
}

// Find implements sandbox.Checkpoints.
func (c podCheckpoints) Find(ctx context.Context, ref string) (sandbox.Checkpoint, error) {
	if filepath.IsAbs(ref) && len(c.policy.archives) > 0 {
		return c.archive(ctx, ref)
	}
	annotations, err := c.runtime.images.store.Annotations(ref)
	if isNotFound(err) || err != nil && !errors.Is(err, image.ErrInvalid) {
		return nil, nil // whoever resolves the image says what is wrong with it
	}
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(checkpointAnnotations, func(a string) bool { _, ok := annotations[a]; return ok })
	if i < 0 {
		return nil, nil
	}
	if !c.policy.images {
		return nil, fmt.Errorf("%w: image %q holds a checkpoint (%s); restore_from_images is not set", sandbox.ErrState, ref, checkpointAnnotations[i])
	}
	img, err := c.runtime.images.get(ref)
	if err == nil {
		err = c.runtime.images.store.Admit(ctx, img.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, err)
	}
	root, err := c.runtime.images.rootfs(ctx, img.ID, "", "", image.RootfsOptions{Readonly: true})
	if err != nil {
		return nil, err
	}
	source := func() (checkpoint.Source, error) {
		return checkpoint.Dir(fmt.Sprintf("/proc/self/fd/%d/.", root.Fd())), nil
	}
	return c.open(ctx, ref, source, root.Close)
}

// archive opens an archive that a client names as an image, if the administrator wants that.
func (c podCheckpoints) archive(ctx context.Context, path string) (sandbox.Checkpoint, error) {
	real, err := filepath.EvalSymlinks(path)
	if err == nil && !slices.ContainsFunc(c.policy.archives, func(dir string) bool { return within(real, dir) }) {
		err = errors.New("it is not below a folder of restore_archive_dirs")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: config.image.image: checkpoint %q: %w", sandbox.ErrState, path, err)
	}
	return c.Open(ctx, real)
}

// within says whether a path without links is below a folder.
func within(path, dir string) bool {
	dir, err := filepath.EvalSymlinks(dir)
	return err == nil && strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// Open implements sandbox.Checkpoints.
func (c podCheckpoints) Open(ctx context.Context, archive string) (sandbox.Checkpoint, error) {
	f, err := os.OpenFile(archive, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: checkpoint: %w", sandbox.ErrState, err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: checkpoint %s: %w", sandbox.ErrState, archive, err), f.Close())
	}
	source := func() (checkpoint.Source, error) {
		_, err := f.Seek(0, io.SeekStart)
		return checkpoint.Tar(f), err
	}
	return c.open(ctx, archive, source, f.Close)
}

// open reads what is said about the container.
func (c podCheckpoints) open(ctx context.Context, name string, source func() (checkpoint.Source, error), closeIt func() error) (_ sandbox.Checkpoint, err error) {
	ck := &captured{c: c, name: name, source: source, close: closeIt, spec: new(specs.Spec)}
	defer func() {
		if err != nil {
			err = errors.Join(checkpointError(name, err), closeIt())
		}
	}()
	from, err := source()
	if err != nil {
		return nil, err
	}
	if ck.docs, err = checkpoint.Inspect(ctx, from, c.policy.limits); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(ck.docs.Spec, ck.spec); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", checkpoint.ErrInvalid, checkpoint.SpecFile, err)
	}
	if p := ck.spec.Process; p == nil || len(p.Args) == 0 || ck.spec.Linux == nil {
		return nil, fmt.Errorf("%w: %s has no process", checkpoint.ErrInvalid, checkpoint.SpecFile)
	}
	return ck, nil
}

// checkpointError gives an error its kind.
func checkpointError(name string, err error) error {
	switch {
	case errors.Is(err, checkpoint.ErrTooLarge), errors.Is(err, image.ErrTooLarge):
		return fmt.Errorf("checkpoint %q: %w: %w", name, image.ErrTooLarge, err)
	case errors.Is(err, checkpoint.ErrInvalid):
		return fmt.Errorf("checkpoint %q: %w: %w", name, sandbox.ErrState, err)
	}
	return fmt.Errorf("checkpoint %q: %w", name, err)
}

// Name implements sandbox.Checkpoint.
func (ck *captured) Name() string { return ck.name }

// Close implements sandbox.Checkpoint.
func (ck *captured) Close() error { return ck.close() }

// Image implements sandbox.Checkpoint.
func (ck *captured) Image() (*sandbox.Image, error) {
	var asked []string
	d := &ck.docs.Config
	for _, name := range []string{d.RootfsImageRef, d.RootfsImage, d.RootfsName} {
		if name == "" || slices.Contains(asked, name) {
			continue
		}
		asked = append(asked, name)
		img, err := ck.c.runtime.images.Resolve(name)
		if isNotFound(err) || errors.Is(err, image.ErrReference) || errors.Is(err, image.ErrAmbiguous) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("image %q of the checkpoint %q: %w", name, ck.name, err)
		}
		return img, nil
	}
	if len(asked) == 0 {
		return nil, fmt.Errorf("%w: the checkpoint %q does not say which image it was made of", sandbox.ErrState, ck.name)
	}
	return nil, fmt.Errorf("%w: the image that the checkpoint %q was made of is not here, pull it first: %s",
		sandbox.ErrState, ck.name, strings.Join(asked, ", "))
}

// Check implements sandbox.Checkpoint.
func (ck *captured) Check(p *sandbox.Pod, c *sandbox.Container, expected bool) error {
	r := ck.c.runtime
	h, err := r.foreign.of(p)
	if err != nil {
		return err
	}
	if h != nil {
		return fmt.Errorf("a restore with the handler %s: %w", p.Config.Handler, errors.ErrUnsupported)
	}
	if err := criu.CheckSpec(ck.spec); err != nil {
		return err
	}
	var different error
	if expected { // what the client says of the process, with the image's own
		b, err := r.describe(p, c)
		if err != nil {
			return err
		}
		different = expectedProcess(ck.spec.Process, b.Spec.Process, c.Config.Env)
	}
	b, err := r.describe(p, withProcess(c, ck.spec.Process))
	if err != nil {
		return err
	}
	return errors.Join(different, fits(ck.spec, b.Spec))
}

// Unpack implements sandbox.Checkpoint.
func (ck *captured) Unpack(ctx context.Context, p *sandbox.Pod, c *sandbox.Container, dir string) (err error) {
	at := filepath.Join(dir, restoreDir)
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	for name, v := range map[string]any{restoreSpec: ck.spec, restoreNet: ck.docs.Network} {
		text, err := json.Marshal(v)
		if err == nil {
			err = os.WriteFile(filepath.Join(at, name), text, 0o600)
		}
		if err != nil {
			return err
		}
	}
	from, err := ck.source()
	if err != nil {
		return err
	}
	err = checkpoint.Unpack(ctx, from, filepath.Join(at, checkpoint.ImagesDir), ck.c.policy.limits, func(diff io.Reader) error {
		images := ck.c.runtime.images
		whole, err := images.Rootfs(ctx, c, dir, "") // makes the writable layer
		if err == nil {
			err = whole.Close()
		}
		if err != nil {
			return err
		}
		root, err := images.rootfs(ctx, c.ImageID, "", "", image.RootfsOptions{Readonly: true})
		if err != nil {
			return err
		}
		defer root.Close()
		return image.ApplyDiff(ctx, root, filepath.Join(dir, "upper"), diff, ck.docs.Deleted, ck.c.policy.layer)
	})
	if err != nil {
		return checkpointError(ck.name, err)
	}
	return nil
}

// restoreMargin is what is left of an operation's time for criu to be ended when it takes too long.
const (
	restoreMargin = 15 * time.Second
	restoreLeast  = 5 * time.Second
)

// prepareRestore is Prepare for a container that is restored: by this very program, which its supervisor calls as if it
// were another runtime, so that what criu makes becomes the supervisor's child.
func (r *podRuntime) prepareRestore(ctx context.Context, p *sandbox.Pod, c *sandbox.Container, env sandbox.Environment) (_ *sandbox.Launch, err error) {
	at := filepath.Join(env.Dir, restoreDir)
	old := new(specs.Spec)
	var network map[string]checkpoint.Network
	if err := errors.Join(readJSON(filepath.Join(at, restoreSpec), old), readJSON(filepath.Join(at, restoreNet), &network)); err != nil {
		return nil, err
	}
	params, err := r.params(p, withProcess(c, old.Process), env)
	if err != nil {
		return nil, err
	}
	b := r.foreign.bundle(c)
	var prepared *oci.Prepared
	release := func() {
		// Its processes have all of it open by now, or will not be.
		if err := errors.Join(b.Remove(), os.RemoveAll(at)); err != nil {
			r.log.Warn("remove what a restore needed", "ctr", c.ID, "err", err)
		}
	}
	defer func() {
		if err != nil {
			if prepared != nil {
				err = errors.Join(err, prepared.Undo(ctx))
			}
			release()
		}
	}()
	volumes, err := r.images.volumes(ctx, c, "")
	defer closeVolumes(volumes)
	if err != nil {
		return nil, err
	}
	places := slices.Sorted(maps.Keys(volumes))
	if err := mountBundle(b, env.Root, places, volumes, &params); err != nil {
		return nil, err
	}
	if prepared, err = r.oci.PrepareRestore(ctx, params); err != nil {
		return nil, runtimeError(err)
	}
	spec := prepared.Spec
	if err := errors.Join(sameUser(old.Process, spec.Process), fits(old, spec)); err != nil {
		return nil, err
	}
	spec.Process.Args, spec.Process.Cwd = old.Process.Args, old.Process.Cwd
	dir, err := b.Launch()
	if err != nil {
		return nil, err
	}
	limit := restoreTime(ctx)
	order, err := r.order(p, spec, network, limit)
	if err != nil {
		return nil, err
	}
	order.Images, order.Root, order.Procs = filepath.Join(at, checkpoint.ImagesDir), b.Rootfs(), prepared.Procs()
	text, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	program := filepath.Join(string(b), restoreName)
	if err := errors.Join(
		os.Symlink(fmt.Sprintf("/proc/%d/exe", os.Getpid()), program),
		os.WriteFile(filepath.Join(string(b), orderFile), text, 0o600),
		b.Configure(spec), r.specs.save(c.ID, spec)); err != nil {
		return nil, err
	}
	for _, w := range prepared.Warnings {
		r.log.Warn("container", "ctr", c.ID, "err", w)
	}
	l := &sandbox.Launch{
		Foreign: &api.Foreign{Program: program, ID: c.ID, Bundle: string(b), Dir: dir, Timeout: limit},
		JoinPID: params.Namespaces.PID == oci.PIDJoin, User: &prepared.User,
		OOMFile: prepared.OOMFile, OOMParent: prepared.OOMParent,
		Release: func() { prepared.Close(); release() },
	}
	if params.Namespaces.PID != oci.PIDOwn {
		l.KillGroup = prepared.KillGroup
	}
	if l.JoinPID {
		l.Foreign.PIDLink = b.PIDLink()
	}
	return l, nil
}

// mountBundle mounts the root and volumes where criu can see them.
func mountBundle(b foreign.Bundle, root *os.File, places []string, volumes map[string]*os.File, params *oci.Params) error {
	mounts := make([]*os.File, len(places))
	for i, at := range places {
		mounts[i] = volumes[at]
	}
	if err := b.Make(root, mounts); err != nil {
		return err
	}
	params.RootPath = b.Rootfs()
	params.ImageVolume = func(m *workload.Mount) (string, error) {
		return b.Volume(slices.Index(places, filepath.Clean(m.ContainerPath))), nil
	}
	if params.Namespaces.PID == oci.PIDJoin {
		params.Namespaces.PIDPath = b.PIDLink()
	}
	return nil
}

// restoreTime is what criu may take.
func restoreTime(ctx context.Context) time.Duration {
	limit := operationTimeout
	if end, ok := ctx.Deadline(); ok {
		limit = time.Until(end)
	}
	return max(limit-restoreMargin, restoreLeast)
}

// order is what does not follow from the bundle.
func (r *podRuntime) order(p *sandbox.Pod, spec *specs.Spec, network map[string]checkpoint.Network, limit time.Duration) (*restoreOrder, error) {
	program, err := (&criu.Tool{Program: r.criu}).Path()
	if err != nil {
		return nil, err
	}
	o := &restoreOrder{Program: program, Timeout: limit, TCPClose: !sameAddresses(p, network)}
	switch {
	case spec.Process.ApparmorProfile != "":
		o.LSM = "apparmor:" + spec.Process.ApparmorProfile
	case spec.Process.SelinuxLabel != "":
		o.LSM = "selinux:" + spec.Process.SelinuxLabel
	}
	return o, nil
}

// sameAddresses says whether a pod has all addresses that a checkpoint's had: connections that were established can only
// be taken up again with these.
func sameAddresses(p *sandbox.Pod, network map[string]checkpoint.Network) bool {
	found := false
	for _, n := range network {
		for _, i := range n.Interfaces {
			for _, s := range i.Subnets {
				prefix, err := netip.ParsePrefix(s.IPNet)
				if err != nil || !slices.Contains(p.IPs, prefix.Addr()) {
					return false
				}
				found = true
			}
		}
	}
	return found
}

// withProcess is a container with the process that a checkpoint has: that is authoritative for it.
func withProcess(c *sandbox.Container, p *specs.Process) *sandbox.Container {
	out := *c
	out.Config.Command, out.Config.Args, out.Config.WorkingDir = p.Args, nil, p.Cwd
	out.Config.Env = nil
	for _, v := range p.Env {
		key, value, _ := strings.Cut(v, "=")
		out.Config.Env = append(out.Config.Env, workload.EnvVar{Key: key, Value: value})
	}
	return &out
}
