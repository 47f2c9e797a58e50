package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

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

// poststop runs the hooks of a container that has gone, once. One that fails is a warning, and the others run
// (runtime-spec, "Lifecycle").
func (r *podRuntime) poststop(ctx context.Context, id string) error {
	path := r.specs.poststopPath(id)
	var stopped stoppedHooks
	err := readJSON(path, &stopped)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
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
	return nil
}
