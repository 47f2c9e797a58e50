package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// ErrNotRunning is for what needs a process.
var ErrNotRunning = errors.New("container not running")

// Signal sends a signal to the first process, or to all processes of the group.
func (c *Container) Signal(ctx context.Context, sig syscall.Signal, all bool) error {
	if all {
		return c.signalAll(ctx, sig)
	}
	status, err := c.Status()
	if err != nil {
		return err
	}
	if status == specs.StateStopped || status == specs.StateCreating {
		return ErrNotRunning
	}
	pidfd, err := c.pidfd()
	if errors.Is(err, os.ErrProcessDone) {
		return ErrNotRunning
	}
	if err != nil {
		return err
	}
	defer pidfd.Close()
	if err := sys.PidfdSignal(pidfd, sig); err != nil {
		return err
	}
	if sig == syscall.SIGKILL && status == StatusPaused {
		return c.thaw() // on cgroup v1 a frozen process does not even die
	}
	return nil
}

func (c *Container) thaw() error {
	g, err := c.group()
	if err != nil {
		return err
	}
	return g.Thaw()
}

func (c *Container) signalAll(ctx context.Context, sig syscall.Signal) error {
	g, err := c.group()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if sig == syscall.SIGKILL {
		return g.Kill(ctx)
	}
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	var errs []error
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("signal %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// kill ends the first process and waits until it has ended.
func (c *Container) kill(ctx context.Context) error {
	pidfd, err := c.pidfd()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := sys.PidfdSignal(pidfd, syscall.SIGKILL); err != nil {
		pidfd.Close()
		return err
	}
	if err := c.thaw(); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errors.ErrUnsupported) {
		c.rt.Warn(err)
	}
	f, wait, err := sys.WaitPidfd(pidfd)
	if err != nil {
		return err
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.Close() })()
	if err := wait(); err != nil {
		return fmt.Errorf("process %d does not end: %w", c.PID, errors.Join(context.Cause(ctx), err))
	}
	return nil
}

// Delete removes a container that has stopped, or was never started; force kills it first.
func (c *Container) Delete(ctx context.Context, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	lock, err := c.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	status, err := c.Status()
	if err != nil {
		return err
	}
	switch {
	case status == specs.StateStopped:
	case force || status == specs.StateCreated:
		if err := c.kill(ctx); err != nil {
			return err
		}
	default:
		return fmt.Errorf("cannot delete container %s that is not stopped: %s", c.ID, status)
	}
	hooks, err := c.hooks()
	if err != nil {
		c.rt.Warn(err) // its hooks are not known, and it still has to go
	}
	if err := c.destroy(ctx); err != nil {
		return err
	}
	c.poststop(ctx, hooks)
	return nil
}

// Forget removes what a create that was killed has left of an ID without a record.
func (r *Runtime) Forget(id string) error {
	if err := CheckID(id); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(r.Root, id))
}
