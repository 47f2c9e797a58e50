package cgroup

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// createUnit has systemd make a scope or a slice, with every limit that it has a property for. In a scope it makes
// the container's own group, and gives that all limits by the kernel's files: systemd rounds some and knows not all,
// and what it does to a unit's group it never does below a delegated one.
//
// systemd makes a scope round processes and removes it when the last one has gone. The container's first process cannot
// be the one, because it is to be cloned into a group that is limited already; so a parked process is in it until
// the caller has launched and calls Release.
func (h *Host) createUnit(ctx context.Context, name string, r *specs.LinuxResources) (_ *Group, err error) {
	u, err := h.unit(name)
	if err != nil {
		return nil, err
	}
	g, err := h.group(u.Path())
	if err != nil {
		return nil, err
	}
	g.unit = u.String()
	defer func() {
		if err != nil {
			err = fmt.Errorf("create cgroup %s: %w", g.path, err)
		}
	}()
	p, err := h.plan(r, freshGroup)
	if err != nil {
		return nil, err
	}
	properties := append(u.properties(), p.properties(defaultPeriod)...)
	if u.Name != "" {
		if g.parked, err = sys.Park(); err != nil {
			return nil, err
		}
		properties = append(properties, property("PIDs", []uint32{uint32(g.parked.PID)}))
	}
	defer func() {
		if err != nil {
			g.Release()
			if u.Name != "" { // a slice may be others' as well
				err = errors.Join(err, h.systemd.stop(context.WithoutCancel(ctx), g.unit))
			}
		}
	}()
	if err := h.systemd.start(ctx, g.unit, properties); err != nil {
		return nil, err
	}
	if u.Name == "" { // one that ran already has not heard of the limits
		if err := h.systemd.set(ctx, g.unit, p.properties(defaultPeriod)); err != nil {
			return nil, err
		}
	}
	if u.Name != "" {
		if err := g.enterScope(p); err != nil {
			return nil, err
		}
	}
	refused, err := g.prepare()
	if err != nil {
		return nil, err
	}
	if err := g.apply(p, refused); err != nil {
		return nil, err
	}
	return g, nil
}

// scope is the group above a container's own, which is systemd's.
func (g *Group) scope() *Group {
	return &Group{host: g.host, path: path.Dir(g.path), rel: path.Dir(g.rel)}
}

// enterScope makes the container's group in a new scope and moves the parked process there: a group that passes
// controllers on must not have processes of its own (cgroup-v2.rst, "No Internal Process Constraint").
func (g *Group) enterScope(p plan) error {
	if err := g.host.primary.root.Mkdir(g.rel); err != nil {
		return fmt.Errorf("systemd has made %s elsewhere: mkdir %s: %w", g.unit, g.host.primary.file(g.rel, ""), err)
	}
	if err := g.AddProc(g.parked.PID); err != nil {
		return err
	}
	return g.burst(p)
}

// burst lets the scope burst as the container may; systemd, which has no word for it, leaves it as it is.
func (g *Group) burst(p plan) error {
	for _, s := range p.settings {
		if s.file == "cpu.max.burst" {
			return g.scope().apply(plan{settings: []setting{s}}, nil)
		}
	}
	return nil
}

// unit parses a unit's name and says whether this machine has the driver.
func (h *Host) unit(name string) (Unit, error) {
	if h.mode != V2 {
		// v1 keeps a unit's groups in many hierarchies, of which systemd manages some and writes devices.allow itself.
		return Unit{}, &UnsupportedError{Feature: "systemd cgroup driver", Needs: "cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)"}
	}
	return ParseUnit(name)
}

// properties are those of a unit that is not limited. A scope is delegated: what is below it is the container's.
func (u Unit) properties() []dbus.Property {
	out := []dbus.Property{
		property("DefaultDependencies", false),
		property("CPUAccounting", true), property("MemoryAccounting", true),
		property("TasksAccounting", true), property("IOAccounting", true),
		property("TasksMax", infinity), // else systemd's DefaultTasksMax
		property("CollectMode", "inactive-or-failed"),
	}
	if u.Name == "" {
		return append(out, property("Description", "cri-shim pod "+u.Slice))
	}
	return append(out, property("Description", "cri-shim container "+u.Name), property("Slice", u.Slice),
		property("Delegate", true))
}

// updateUnit changes limits of the container's own group first: the kernel names what it refuses. A slice is changed
// once more after systemd, which rounds.
func (g *Group) updateUnit(ctx context.Context, p plan) error {
	period := uint64(defaultPeriod)
	if s, err := g.read("cpu", "cpu.max"); err == nil {
		_, text, _ := strings.Cut(s, " ")
		if n, ok := number(text); ok {
			period = n
		}
	}
	if err := g.apply(p, nil); err != nil {
		return err
	}
	if strings.HasSuffix(g.unit, scopeSuffix) {
		_ = g.burst(p) // may have to be lower before the quota is, or only afterwards higher
	}
	if err := g.host.systemd.set(ctx, g.unit, p.properties(period)); err != nil {
		return err
	}
	if strings.HasSuffix(g.unit, scopeSuffix) {
		return g.burst(p)
	}
	return g.apply(p, nil)
}

// removeUnit makes systemd forget the unit; the group goes with it, or else is removed by the caller.
func (g *Group) removeUnit(ctx context.Context) error {
	g.Release()
	return g.host.systemd.stop(ctx, g.unit)
}

// Release lets go of what kept a new scope from being empty. Call it once a process was launched into the group, or after
// Remove; it may be called twice, and does nothing for a group that systemd has not made.
func (g *Group) Release() { g.parked.Release() }

// ConnectSystemd says whether the systemd driver can work here, and connects. It does not wait for a systemd that is not
// there.
func (h *Host) ConnectSystemd(ctx context.Context) error {
	if _, err := h.unit("system.slice:test:test"); err != nil {
		return err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if _, err := h.systemd.connection(ctx); err != nil {
		return fmt.Errorf("systemd: %w", err)
	}
	return nil
}
