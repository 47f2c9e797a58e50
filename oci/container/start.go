package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/oci/launcher"
)

// lockTime is how long one operation waits for another one on the same container.
const lockTime = 10 * time.Second

// lock keeps start and delete of one container apart.
func (c *Container) lock() (*os.File, error) {
	for end := time.Now().Add(lockTime); ; time.Sleep(5 * time.Millisecond) {
		f, err := sys.LockFile(filepath.Join(c.dir, lockFile))
		var held *sys.LockedError
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNotExist
		}
		if !errors.As(err, &held) || time.Now().After(end) {
			return f, err
		}
	}
}

// Start executes the workload of a created container, and runs the hooks that come after it.
func (c *Container) Start(ctx context.Context) error {
	lock, err := c.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	status, err := c.Status()
	if err != nil {
		return err
	}
	switch status {
	case specs.StateCreated:
	case specs.StateStopped:
		return errors.New("cannot start a container that has stopped")
	case specs.StateRunning:
		return errors.New("cannot start an already running container")
	default:
		return fmt.Errorf("cannot start a container in the %s state", status)
	}
	pidfd, err := c.pidfd()
	if err != nil {
		return err
	}
	defer pidfd.Close()
	if err := c.openGate(pidfd); err != nil {
		sys.PidfdSignal(pidfd, syscall.SIGKILL)
		return err
	}
	if err := os.Remove(filepath.Join(c.dir, startFile)); err != nil {
		return err
	}
	return c.Poststart(ctx)
}

// openGate lets the init go on and waits until the workload is executed.
func (c *Container) openGate(pidfd *os.File) error {
	path := filepath.Join(c.dir, startFile)
	dup, err := sys.Dup(pidfd)
	if err != nil {
		return err
	}
	watched, ended, err := sys.WaitPidfd(dup)
	if err != nil {
		return err
	}
	defer watched.Close()
	gone := make(chan struct{})
	go func() {
		if ended() == nil {
			close(gone)
		}
	}()
	type result struct {
		f   *os.File
		err error
	}
	opened := make(chan result, 1)
	go func() { // it blocks until the init opens the other end
		f, err := os.OpenFile(path, os.O_RDONLY, 0)
		opened <- result{f, err}
	}()
	var r result
	stopped := false
	select {
	case r = <-opened:
	case <-gone:
		// Lets the other one go: as a writer that closes at once.
		if w, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
			w.Close()
		}
		r, stopped = <-opened, true
	}
	if r.err != nil {
		return r.err
	}
	defer r.f.Close()
	// Also of one that has ended: a short workload may have, before we came to look.
	warnings, err := launcher.ReadReports(r.f, initmsg.KindExecute)
	for _, w := range warnings {
		c.rt.Warn(errors.New(w))
	}
	var report *initmsg.Report
	if err != nil && stopped && !errors.As(err, &report) {
		return errors.New("cannot start a container that has stopped")
	}
	return err
}

// Poststart runs the hooks after the workload was executed. One that fails stops the container (runtime-spec, "Lifecycle").
func (c *Container) Poststart(ctx context.Context) error {
	hooks, err := c.hooks()
	if err != nil || hooks == nil {
		return err
	}
	err = oci.RunHooks(ctx, "poststart", hooks.Poststart, c.hookState(specs.StateRunning))
	if err != nil {
		err = errors.Join(err, c.kill(ctx))
	}
	return err
}

// pidfd opens the first process; os.ErrProcessDone when it has ended.
func (c *Container) pidfd() (*os.File, error) { return sys.PidfdOpenSame(c.PID, c.PIDStart) }
