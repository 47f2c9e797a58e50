package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci/netdevice"
)

// hookDrain bounds the wait for the output of what a hook has left in the background.
const hookDrain = time.Second

// maxHookOutput is how much of a hook's output an error quotes, in bytes.
const maxHookOutput = 1024

// RunHooks runs hooks one after the other in this process's namespaces, each with the state on its standard input
// (runtime-spec, "POSIX-platform Hooks"). The first that fails, or runs beyond its timeout, ends it; kind is for the error.
func RunHooks(ctx context.Context, kind string, hooks []specs.Hook, state *specs.State) error {
	for i := range hooks {
		if err := RunHook(ctx, &hooks[i], state); err != nil {
			return fmt.Errorf("%s hook %s: %w", kind, hooks[i].Path, err)
		}
	}
	return nil
}

// RunHook runs one. A timeout kills what the hook has started too.
func RunHook(ctx context.Context, h *specs.Hook, state *specs.State) error {
	input, err := json.Marshal(state)
	if err != nil {
		return err
	}
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(*h.Timeout)*time.Second, fmt.Errorf("no end after %d s", *h.Timeout))
		defer cancel()
	}
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	cmd := exec.CommandContext(ctx, h.Path)
	cmd.Args = args
	cmd.Env = append([]string{}, h.Env...) // nil would be our own
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = hookDrain
	cmd.Stdin = bytes.NewReader(input)
	out := &limitedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success():
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	if text := strings.TrimSpace(string(out.data)); text != "" {
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// limitedBuffer keeps the beginning.
type limitedBuffer struct{ data []byte }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.data = append(b.data, p[:min(len(p), maxHookOutput-len(b.data))]...)
	return len(p), nil
}

// HookGate is where an init waits for what is done in the runtime's namespaces: after the container's namespaces were made,
// before pivot_root (runtime-spec, "Lifecycle"). Network devices are moved, then prestart and createRuntime hooks run.
type HookGate struct {
	// Devices remembers the network devices that containers share; nil is none.
	Devices netdevice.Ledger

	devices map[string]string
	hooks   []namedHooks
	conn    *sys.Conn
	init    *os.File
}

type namedHooks struct {
	kind  string
	hooks []specs.Hook
}

// NewHookGate makes the gate for a specification; nil where there is nothing to wait for, which costs nothing.
func NewHookGate(s *specs.Spec) (*HookGate, error) {
	g := &HookGate{}
	if s.Linux != nil && len(s.Linux.NetDevices) > 0 {
		g.devices = map[string]string{}
		for name, d := range s.Linux.NetDevices {
			g.devices[name] = d.Name
		}
	}
	if h := s.Hooks; h != nil {
		g.hooks = []namedHooks{
			{"prestart", h.Prestart}, //nolint:staticcheck // deprecated by the specification, and still to be run
			{"createRuntime", h.CreateRuntime},
		}
	}
	if len(g.devices) == 0 && !slices.ContainsFunc(g.hooks, func(n namedHooks) bool { return len(n.hooks) > 0 }) {
		return nil, nil
	}
	var err error
	if g.conn, g.init, err = sys.Socketpair(); err != nil {
		return nil, err
	}
	if err := g.conn.PassCredentials(); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// Socket is the init's end, for Options.HookSocket. It is to be closed once the init has it, so that its end is noticed.
func (g *HookGate) Socket() *os.File {
	if g == nil {
		return nil
	}
	return g.init
}

// Close closes both ends; an init that waits gives up.
func (g *HookGate) Close() {
	if g != nil {
		g.conn.Close()
		g.init.Close()
	}
}

// Serve waits for the init, does what is due and lets it go on, or tells it what failed: the init's error, which names
// the hook, is the launch's. It returns when the init needs nothing more, or is gone.
func (g *HookGate) Serve(ctx context.Context, state specs.State) {
	if g == nil {
		return
	}
	defer g.conn.Close()
	defer context.AfterFunc(ctx, func() { g.conn.Close() })()
	buf := make([]byte, 64)
	n, pid, err := g.conn.RecvFrom(buf)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
		g.answer(err.Error())
	}
	if err != nil {
		return
	}
	if string(buf[:n]) != initmsg.HooksDue {
		g.answer("it asks for what is unknown")
		return
	}
	state.Status, state.Pid = specs.StateCreating, pid
	if err := g.work(ctx, &state); err != nil {
		g.answer(err.Error())
		return
	}
	g.answer(initmsg.HooksDone)
}

func (g *HookGate) work(ctx context.Context, state *specs.State) (err error) {
	moved, err := g.moveDevices(state.Pid)
	if err != nil {
		return err
	}
	defer moved.Close()
	for _, n := range g.hooks {
		if err := RunHooks(ctx, n.kind, n.hooks, state); err != nil {
			return errors.Join(err, moved.Restore())
		}
	}
	return nil
}

// moveDevices gives the init's network namespace its devices. It waits, so the namespace is its own still.
func (g *HookGate) moveDevices(pid int) (*netdevice.Moved, error) {
	if len(g.devices) == 0 {
		return nil, nil
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		return nil, fmt.Errorf("linux.netDevices: %w", err)
	}
	return netdevice.Move(ns, g.devices, g.Devices)
}

// answer tells the init; where it is gone there is nobody to tell.
func (g *HookGate) answer(text string) {
	_ = g.conn.Send([]byte(text[:min(len(text), 2000)]))
}
