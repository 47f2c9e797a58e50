package cni

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	statusFresh   = 5 * time.Second        // for as long a plugin's STATUS counts
	statusWait    = 500 * time.Millisecond // that a caller waits for one
	statusTimeout = 30 * time.Second       // for all plugins of a list, on a node so busy that each takes seconds; then they are killed
)

// Status is nil when pods can be attached. Else its error matches ErrNotReady and says where
// configuration and plugins were looked for and what is wrong with them. It is cheap enough to be polled: a plugin's
// STATUS (CNI 1.1) runs in the background, and its last answer counts for some seconds.
func (n *Networks) Status(ctx context.Context) error {
	s := n.current()
	if s.net == nil {
		return fmt.Errorf("%w: %w", ErrNotReady, s.none)
	}
	for _, p := range s.net.list.Plugins {
		if _, err := findPlugin(p.Network.Type, n.cfg.BinDirs); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrNotReady, s.net.file, err)
		}
	}
	if !s.net.supports("1.1.0") {
		return nil
	}
	if err := n.pluginStatus(ctx, s.net); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNotReady, s.net.file, err)
	}
	return nil
}

// statusCache holds the last answer of the plugins of one configuration.
type statusCache struct {
	mu      sync.Mutex
	of      *network
	asked   bool // err is an answer
	at      time.Time
	err     error
	running *statusRun
}

type statusRun struct {
	of    *network
	since time.Time
	done  chan struct{}
}

func (n *Networks) pluginStatus(ctx context.Context, net *network) error {
	c := &n.status
	c.mu.Lock()
	if err := n.life.Err(); err != nil {
		defer c.mu.Unlock()
		return fmt.Errorf("closed: %w", err)
	}
	if c.of != net {
		c.of, c.asked, c.err = net, false, nil
	}
	if c.asked && time.Since(c.at) < statusFresh {
		defer c.mu.Unlock()
		return c.err
	}
	run := c.running
	if run == nil || run.of != net {
		run = &statusRun{of: net, since: time.Now(), done: make(chan struct{})}
		c.running = run
		n.wg.Go(func() { n.askStatus(run) })
	}
	c.mu.Unlock()

	select {
	case <-run.done:
	case <-ctx.Done():
	case <-time.After(statusWait):
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == net && c.asked {
		return c.err // the last answer, while a slow one is awaited
	}
	return fmt.Errorf("STATUS of the plugins has not answered for %s", time.Since(run.since).Round(time.Millisecond))
}

func (n *Networks) askStatus(run *statusRun) {
	defer close(run.done)
	ctx, cancel := context.WithTimeoutCause(n.life, statusTimeout,
		fmt.Errorf("the time limit of %s for STATUS: %w", statusTimeout, context.DeadlineExceeded))
	defer cancel()
	err := n.cni.GetStatusNetworkList(ctx, run.of.list)
	c := &n.status
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == run {
		c.running = nil
	}
	if c.of == run.of {
		c.asked, c.at, c.err = true, time.Now(), err
	}
}
