package cgroup

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

const (
	// systemdTimeout bounds an operation of systemd where the caller's context has no end.
	systemdTimeout = 30 * time.Second
	// systemdVersion is the first with AllowedCPUs; CPUQuotaPeriodUSec came two before.
	systemdVersion = 244
	// reconnectWait is between two tries while systemd executes itself anew (daemon-reexec).
	reconnectWait = 100 * time.Millisecond
	// closeTimeout bounds the wait for a connection that is being made.
	closeTimeout = time.Second
	// jobPoll is how often a unit is looked at whose job's end was perhaps not heard of.
	jobPoll = time.Second
)

// systemd is the connection to the machine's systemd, made when it is first needed and again when it was lost. It goes to
// systemd's own socket: there is no bus in between that could be restarted or be missing.
type systemd struct {
	turn chan struct{} // held while a connection is made
	mu   sync.Mutex
	conn *dbus.Conn
}

func newSystemd() *systemd { return &systemd{turn: make(chan struct{}, 1)} }

// connection returns one that was alive a moment ago.
func (s *systemd) connection(ctx context.Context) (*dbus.Conn, error) {
	if c := s.living(); c != nil {
		return c, nil
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if c := s.living(); c != nil {
		<-s.turn
		return c, nil
	}
	type result struct {
		conn *dbus.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() { // the library's handshake knows no deadline
		defer func() { <-s.turn }()
		c, err := connect()
		if err == nil {
			s.mu.Lock()
			s.conn = c
			s.mu.Unlock()
		}
		done <- result{c, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("connect: %w", context.Cause(ctx))
	}
}

func connect() (*dbus.Conn, error) {
	ctx := context.Background() // its end would end the connection
	c, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		var busErr error
		if c, busErr = dbus.NewSystemConnectionContext(ctx); busErr != nil {
			return nil, fmt.Errorf("connect: %w; over the system bus: %w", err, busErr)
		}
	}
	text, err := c.GetManagerProperty("Version")
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("its version: %w", err)
	}
	if v := parseVersion(text); v < systemdVersion {
		c.Close()
		return nil, &UnsupportedError{Feature: "systemd cgroup driver", Needs: fmt.Sprintf("systemd %d, not %s", systemdVersion, text)}
	}
	return c, nil
}

// parseVersion reads the number in "252.39-1~deb12u1", with quotes round it or not.
func parseVersion(s string) int {
	s = strings.TrimLeft(s, `"v`)
	end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(s)
	}
	n, _ := strconv.Atoi(s[:end])
	return n
}

func (s *systemd) living() *dbus.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && !s.conn.Connected() {
		s.conn.Close()
		s.conn = nil
	}
	return s.conn
}

// drop forgets a connection over which a call has failed.
func (s *systemd) drop(c *dbus.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == c {
		s.conn.Close()
		s.conn = nil
	}
}

func (s *systemd) close() {
	select {
	case s.turn <- struct{}{}: // a connection that is being made is there now
		defer func() { <-s.turn }()
	case <-time.After(closeTimeout): // it goes with the process
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, systemdTimeout, fmt.Errorf("no answer within %v", systemdTimeout))
}

// call runs f over a connection, and again over a new one while the old one turns out to be dead.
func (s *systemd) call(ctx context.Context, f func(context.Context, *dbus.Conn) error) error {
	for {
		c, err := s.connection(ctx)
		if err == nil {
			done := make(chan error, 1)
			go func() { done <- f(ctx, c) }() // the library waits for its own lock whatever ctx says
			select {
			case err = <-done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		var refused godbus.Error
		var unsupported *UnsupportedError
		if err == nil || errors.As(err, &refused) || errors.As(err, &unsupported) {
			return err
		}
		if c != nil {
			s.drop(c)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(reconnectWait):
		}
	}
}

// start makes a transient unit and returns once it runs.
func (s *systemd) start(ctx context.Context, unit string, ps []dbus.Property) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := s.startOnce(ctx, unit, ps); err != nil {
		return fmt.Errorf("systemd: start %s: %w", unit, err)
	}
	return nil
}

func (s *systemd) startOnce(ctx context.Context, unit string, ps []dbus.Property) error {
	for again := false; ; again = true {
		ended := make(chan string, 1)
		err := s.call(ctx, func(ctx context.Context, c *dbus.Conn) error {
			_, err := c.StartTransientUnitContext(ctx, unit, "replace", ps, ended)
			return err
		})
		switch {
		case err == nil:
			return s.await(ctx, unit, "active", ended)
		case !isError(err, "org.freedesktop.systemd1.UnitExists") || again:
			return err
		}
		// A slice may be there, and so may what a connection that broke has begun; else it is left over.
		if state, err := s.state(ctx, unit); err == nil && (strings.HasSuffix(unit, sliceSuffix) || state == "activating") {
			return s.await(ctx, unit, "active", nil)
		}
		if err := s.stopOnce(ctx, unit); err != nil {
			return err
		}
	}
}

// await waits for a job's end. systemd tells of it once; if that was missed (a lost connection) the unit's state says it.
func (s *systemd) await(ctx context.Context, unit, want string, ended <-chan string) error {
	for {
		poll := time.NewTimer(jobPoll)
		if ended == nil {
			poll.Reset(0)
		}
		select {
		case result := <-ended:
			poll.Stop()
			if result != "done" {
				return fmt.Errorf("its job ended as %q", result)
			}
			return nil
		case <-ctx.Done():
			poll.Stop()
			return context.Cause(ctx)
		case <-poll.C:
		}
		state, err := s.state(ctx, unit)
		if err != nil {
			return err
		}
		if state == want || want == "inactive" && state == "failed" {
			return nil
		}
		if ended == nil {
			ended = make(chan string) // nobody will tell: look now and then
		}
	}
}

// state is the unit's ActiveState; one that is not there is "inactive".
func (s *systemd) state(ctx context.Context, unit string) (state string, err error) {
	err = s.call(ctx, func(ctx context.Context, c *dbus.Conn) error {
		p, err := c.GetUnitPropertyContext(ctx, unit, "ActiveState")
		if err == nil {
			state, _ = p.Value.Value().(string)
		}
		return err
	})
	if isError(err, "org.freedesktop.systemd1.NoSuchUnit") {
		return "inactive", nil
	}
	return state, err
}

// set changes properties of a unit that runs, until it ends.
func (s *systemd) set(ctx context.Context, unit string, ps []dbus.Property) error {
	if len(ps) == 0 {
		return nil
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	err := s.call(ctx, func(ctx context.Context, c *dbus.Conn) error {
		return c.SetUnitPropertiesContext(ctx, unit, true, ps...)
	})
	if err != nil {
		return fmt.Errorf("systemd: set properties of %s: %w", unit, err)
	}
	return nil
}

// stop ends a unit and waits until systemd has let go of it; nil when there is none.
func (s *systemd) stop(ctx context.Context, unit string) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := s.stopOnce(ctx, unit); err != nil {
		return fmt.Errorf("systemd: stop %s: %w", unit, err)
	}
	return nil
}

func (s *systemd) stopOnce(ctx context.Context, unit string) error {
	ended := make(chan string, 1)
	err := s.call(ctx, func(ctx context.Context, c *dbus.Conn) error {
		_, err := c.StopUnitContext(ctx, unit, "replace", ended)
		return err
	})
	if err == nil {
		err = s.await(ctx, unit, "inactive", ended)
	}
	if err != nil && !isError(err, "org.freedesktop.systemd1.NoSuchUnit") {
		return err
	}
	// CollectMode lets go of a failed unit too, but only of one that was made with it.
	err = s.call(ctx, func(ctx context.Context, c *dbus.Conn) error { return c.ResetFailedUnitContext(ctx, unit) })
	if isError(err, "org.freedesktop.systemd1.NoSuchUnit") {
		return nil
	}
	return err
}

func isError(err error, name string) bool {
	var e godbus.Error
	return errors.As(err, &e) && e.Name == name
}
