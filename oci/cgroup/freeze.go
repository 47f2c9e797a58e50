package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// Freeze stops every process of the group and the groups nested in it and waits until they have stopped. When ctx ends
// first they are thawed again and the error says so.
func (g *Group) Freeze(ctx context.Context) error {
	for wait := newBackoff(); ; {
		// Written each time: v1 may stay FREEZING for a task that was just being created or moved.
		err := g.setFrozen(true)
		if err != nil {
			return fmt.Errorf("freeze cgroup %s: %w", g.path, err)
		}
		frozen, err := g.frozen()
		if err != nil {
			return errors.Join(fmt.Errorf("freeze cgroup %s: %w", g.path, err), g.setFrozen(false))
		}
		if frozen {
			return nil
		}
		if err := wait.sleep(ctx); err != nil {
			pids, _ := g.Pids()
			err = fmt.Errorf("freeze cgroup %s: %w: processes: %s", g.path, err, describe(pids))
			return errors.Join(err, g.setFrozen(false))
		}
	}
}

// Thaw lets the processes run again. Nested groups that were frozen by themselves stay frozen.
func (g *Group) Thaw() error {
	if err := g.setFrozen(false); err != nil {
		return fmt.Errorf("thaw cgroup %s: %w", g.path, err)
	}
	return nil
}

func (g *Group) freezer() (hi *hierarchy, file string, err error) {
	if g.host.mode == V2 {
		return g.host.primary, "cgroup.freeze", nil
	}
	if hi = g.host.byName["freezer"]; hi == nil {
		return nil, "", &UnsupportedError{Feature: "freeze", Needs: "cgroup controller freezer"}
	}
	return hi, "freezer.state", nil
}

// FreezerDir is the directory with the file by which the group is frozen.
func (g *Group) FreezerDir() (string, error) {
	hi, _, err := g.freezer()
	if err != nil {
		return "", err
	}
	return hi.mount + "/" + g.rel, nil
}

func (g *Group) setFrozen(on bool) error {
	hi, file, err := g.freezer()
	if err != nil {
		return err
	}
	v := freezeValue(g.host.mode, on)
	if _, err := hi.root.WriteFile(g.rel+"/"+file, v); err != nil {
		return fmt.Errorf("write %q to %s: %w", v, hi.file(g.rel, file), err)
	}
	return nil
}

func freezeValue(m Mode, on bool) string {
	switch {
	case m == V2:
		return bit(on)
	case on:
		return "FROZEN"
	}
	return "THAWED"
}

// frozen reports whether all processes have stopped.
func (g *Group) frozen() (bool, error) {
	hi, file, err := g.freezer()
	if err != nil {
		return false, err
	}
	if g.host.mode == V1 {
		s, err := readTrim(hi.root, g.rel+"/"+file)
		return s == "FROZEN", err
	}
	b, err := hi.root.ReadFile(g.rel+"/cgroup.events", nil)
	n, _ := cgroupfile.Value(b, "frozen")
	return n == 1, err
}

// thawAll thaws the group and every group nested in it, so that killed processes can die.
func (g *Group) thawAll() error {
	hi, file, err := g.freezer()
	if err != nil {
		return nil // nothing can be frozen
	}
	return hi.walk(g.rel, func(dir sys.DirFD) error {
		_, err := dir.WriteFile(file, freezeValue(g.host.mode, false))
		if err != nil && !gone(err) && !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("thaw below %s: %w", hi.file(g.rel, file), err)
		}
		return nil
	})
}

// Frozen reports whether all processes of the group have stopped; false without a freezer.
func (g *Group) Frozen() (bool, error) {
	frozen, err := g.frozen()
	if gone(err) || errors.Is(err, errors.ErrUnsupported) {
		return false, nil
	}
	return frozen, err
}
