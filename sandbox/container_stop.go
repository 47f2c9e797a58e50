package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/signals"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// StopContainer sends the stop signal, and SIGKILL after timeout. Unknown and ended containers
// are stopped already. Calls do not wait for each other: one with a shorter timeout
// overrides a longer one in flight.
func (m *Manager) StopContainer(ctx context.Context, id string, timeout time.Duration) error {
	c, err := m.container(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.stopContainer(ctx, c, timeout); err != nil {
		return fmt.Errorf("stop container %s: %w", c.ID, err)
	}
	return nil
}

func (m *Manager) stopContainer(ctx context.Context, c *ctr, timeout time.Duration) error {
	if err := m.settled(ctx, c); err != nil {
		return err
	}
	return m.endContainer(ctx, c, timeout)
}

func (m *Manager) endContainer(ctx context.Context, c *ctr, timeout time.Duration) error {
	m.mu.Lock()
	state, done := c.State(), c.done
	m.mu.Unlock()
	if state != ContainerRunning {
		return nil
	}
	if timeout > 0 {
		sig, err := signals.Parse(c.StopSignal)
		if err != nil {
			return invalid("stop_signal", "%w", err)
		}
		if err := m.kill(c, sig); err != nil {
			return err
		}
		if waitFor(ctx, done, timeout) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("it was sent its stop signal and has not ended yet: %w", err)
		}
	}
	if err := m.kill(c, syscall.SIGKILL); err != nil {
		return err
	}
	if waitFor(ctx, done, m.cfg.KillTimeout) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("it was killed and has not ended yet: %w", err)
	}
	return m.undead(c)
}

// settled waits until the container is not being started any more.
func (m *Manager) settled(ctx context.Context, c *ctr) error {
	m.mu.Lock()
	done := !c.FinishedAt.IsZero()
	m.mu.Unlock()
	if done {
		return nil
	}
	free, err := m.locks.take(ctx, "container "+c.ID, "stop")
	if err != nil {
		return err
	}
	free()
	return nil
}

func waitFor(ctx context.Context, done <-chan struct{}, timeout time.Duration) bool {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// kill signals a container's first process through the pidfd held here, so that it works
// whatever its supervisor does.
func (m *Manager) kill(c *ctr, sig syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.pidfd == nil {
		return nil // it has ended
	}
	return sys.PidfdSignal(c.pidfd, sig)
}

// undead says of a container that survives SIGKILL which process it is and where in the kernel it hangs.
func (m *Manager) undead(c *ctr) error {
	m.mu.Lock()
	pid, gone := c.PID, c.pidfd != nil && !sys.PidfdAlive(c.pidfd)
	m.mu.Unlock()
	if gone {
		return fmt.Errorf("%w: process %d has ended, but for %s its supervisor has not said how", ErrUnavailable, pid, m.cfg.KillTimeout)
	}
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(proc, name))
		if err != nil {
			return err.Error()
		}
		return strings.Join(strings.Fields(string(data)), " ")
	}
	return fmt.Errorf("%w: process %d (%s) survives SIGKILL for %s; it hangs in the kernel at: %s",
		ErrBusy, pid, read("comm"), m.cfg.KillTimeout, read("stack"))
}
