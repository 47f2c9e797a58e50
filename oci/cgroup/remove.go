package cgroup

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// removeTimeout bounds Remove where ctx has no deadline: a group stays busy for a moment after its last process died.
const removeTimeout = 10 * time.Second

// Remove removes the group and the groups nested in it from every hierarchy; nil when it is already gone. It kills
// nothing: a group that still holds processes when ctx ends is an error that names its path in the hierarchy and them.
// Parents stay.
func (g *Group) Remove(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, removeTimeout)
		defer cancel()
	}
	var errs []error
	if g.unit != "" {
		errs = append(errs, g.removeUnit(ctx))
	}
	for _, hi := range g.host.hierarchies {
		errs = append(errs, hi.rmdir(ctx, g.rel, true))
	}
	if b := g.host.beside; b != nil {
		errs = append(errs, b.rmdir(ctx, g.rel, true))
	}
	return errors.Join(errs...)
}

// removeEmpty removes the group where no process and no nested group is in it, as mostly when a container has ended, and
// says whether it is gone everywhere. Then nobody has to be looked for and killed.
func (g *Group) removeEmpty() bool {
	all := true
	for _, hi := range g.host.hierarchies {
		if err := hi.root.Rmdir(g.rel); err != nil && !gone(err) {
			all = false
		}
	}
	if b := g.host.beside; b != nil {
		if err := b.root.Rmdir(g.rel); err != nil && !gone(err) {
			all = false
		}
	}
	return all
}

// rmdir removes the group rel, with the groups nested in it if so asked, and tries again while the kernel says it is
// busy, until ctx ends. Without nested groups it is one system call.
func (h *hierarchy) rmdir(ctx context.Context, rel string, nested bool) error {
	for wait := newBackoff(); ; {
		err := h.root.Rmdir(rel)
		if err == nil || gone(err) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.ENOTEMPTY) || !nested {
			return fmt.Errorf("remove cgroup %s/%s: %w", h.mount, rel, err)
		}
		removed, nestedErr := h.rmdirNested(rel)
		if removed > 0 {
			continue
		}
		if nestedErr != nil {
			err = nestedErr
		}
		if cause := wait.sleep(ctx); cause != nil {
			err = fmt.Errorf("remove cgroup %s/%s: %w (%w)", h.mount, rel, err, cause)
			if pids, _ := h.pids(rel); len(pids) > 0 {
				err = fmt.Errorf("%w: processes: %s", err, describe(pids))
			}
			return err
		}
	}
}

// rmdirNested removes what is below the group rel, depth first, and says how many groups that were.
func (h *hierarchy) rmdirNested(rel string) (removed int, err error) {
	dir, err := h.root.Dir(rel)
	if gone(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	return removeBelow(dir)
}

func removeBelow(dir sys.DirFD) (removed int, err error) {
	names, err := dir.Subdirs()
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		e := dir.Rmdir(name)
		if errors.Is(e, syscall.EBUSY) || errors.Is(e, syscall.ENOTEMPTY) {
			sub, subErr := dir.Dir(name)
			if subErr == nil {
				n, deepErr := removeBelow(sub)
				removed += n
				subErr = errors.Join(deepErr, sub.Close())
			}
			if e = dir.Rmdir(name); e != nil && subErr != nil {
				e = subErr
			}
		}
		switch {
		case e == nil:
			removed++
		case !gone(e):
			err = fmt.Errorf("nested %s: %w", name, e)
		}
	}
	return removed, err
}
