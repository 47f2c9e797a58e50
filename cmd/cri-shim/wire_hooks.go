package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/sandbox"
)

// stoppedHooks are what is to be run when a container has gone, which may be long after this daemon.
type stoppedHooks struct {
	State specs.State  `json:"state"`
	Hooks []specs.Hook `json:"hooks"`
}

// hooks arranges what runs beside the init: network devices, prestart and createRuntime hooks while it waits, poststart by
// the launch, poststop by Cleanup. A container without any, as nearly all are, costs nothing.
func (r *podRuntime) hooks(ctx context.Context, pod *sandbox.Pod, c *sandbox.Container, p *oci.Prepared, l *sandbox.Launch) error {
	state := specs.State{Version: specs.Version, ID: c.ID, Annotations: p.Spec.Annotations}
	if p.Gate != nil {
		p.Gate.Devices = podLedger{r.netDevices, pod.ID}
		// The other end is the init's once the launch is closed, so this ends with the init at the latest.
		defer func() { go p.Gate.Serve(ctx, state) }()
	}
	h := p.Spec.Hooks
	if h == nil {
		return nil
	}
	if err := r.writeBundle(c.ID, p.Spec); err != nil {
		return fmt.Errorf("bundle for hooks of %s: %w", c.ID, err)
	}
	state.Bundle = r.bundle(c.ID)
	if len(h.Poststop) > 0 {
		stopped := stoppedHooks{State: state, Hooks: h.Poststop}
		stopped.State.Status = specs.StateStopped
		text, err := json.Marshal(stopped)
		if err != nil {
			return err
		}
		if err := replaceFile(r.specs.poststopPath(c.ID), text); err != nil {
			return err
		}
	}
	if len(h.Poststart) > 0 {
		l.Started = func(ctx context.Context, pid int) error {
			state.Status, state.Pid = specs.StateRunning, pid
			return oci.RunHooks(ctx, "poststart", h.Poststart, &state)
		}
	}
	return nil
}

// bundle is the folder that the hooks of a container are told of.
func (r *podRuntime) bundle(id string) string { return filepath.Join(r.bundles, id) }

// writeBundle makes what hooks expect where the state says that the bundle is: they look up root.path in config.json, as
// NVIDIA's do to find the container's files. It is where the init has mounted the root in its own mount namespace: right
// for a createContainer hook as it stands, and for others once they have entered that namespace by the state's pid.
// In a user namespace the hooks that the init runs are its root's, so the files are.
func (r *podRuntime) writeBundle(id string, spec *specs.Spec) error {
	shown := *spec
	root := specs.Root{}
	if spec.Root != nil {
		root = *spec.Root
	}
	root.Path = r.staging
	shown.Root = &root
	text, err := json.Marshal(shown)
	if err != nil {
		return err
	}
	dir := r.bundle(id)
	if err := os.MkdirAll(r.bundles, 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	config := filepath.Join(dir, "config.json")
	if err := replaceFile(config, text); err != nil {
		return err
	}
	uid, gid := rootOf(spec)
	if uid == 0 && gid == 0 {
		return nil
	}
	return errors.Join(os.Chown(config, uid, gid), os.Chown(dir, uid, gid))
}

// rootOf is who root of the container is on the node.
func rootOf(spec *specs.Spec) (uid, gid int) {
	if spec.Linux == nil {
		return 0, 0
	}
	outside := func(list []specs.LinuxIDMapping) int {
		for _, m := range list {
			if m.ContainerID == 0 {
				return int(m.HostID)
			}
		}
		return 0
	}
	return outside(spec.Linux.UIDMappings), outside(spec.Linux.GIDMappings)
}

// poststop runs the hooks of a container that has gone, once. One that fails is a warning, and the others run
// (runtime-spec, "Lifecycle").
func (r *podRuntime) poststop(ctx context.Context, id string) error {
	path := r.specs.poststopPath(id)
	var stopped stoppedHooks
	err := readJSON(path, &stopped)
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(r.bundle(id))
	}
	if err != nil {
		r.log.Warn("poststop hooks are lost", "ctr", id, "err", err)
	}
	for i := range stopped.Hooks {
		if err := oci.RunHooks(ctx, "poststop", stopped.Hooks[i:i+1], &stopped.State); err != nil {
			r.log.Warn("hook", "ctr", id, "err", err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("poststop hooks of %s: %w", id, err)
	}
	return os.RemoveAll(r.bundle(id))
}
