package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/version"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// PluginError is the failure of one plugin of a network.
type PluginError struct {
	Plugin  string // its type
	Command string // ADD, DEL, …; "" when it was not run
	Err     error  // matches *types.Error when the plugin itself reported it
}

func (e *PluginError) Error() string {
	if e.Command == "" {
		return fmt.Sprintf("plugin %q: %v", e.Plugin, e.Err)
	}
	return fmt.Sprintf("plugin %q: %s: %v", e.Plugin, e.Command, e.Err)
}

func (e *PluginError) Unwrap() error { return e.Err }

const (
	maxOutput = 4 << 20         // bytes of a plugin's stdout; a result has a few hundred
	killWait  = 2 * time.Second // from SIGKILL until a plugin is given up
	pipeWait  = time.Second     // from a plugin's exit until its output is taken as complete
	busyWait  = 5 * time.Second // for a plugin that is being written (ETXTBSY)
)

// pluginExec runs plugins for libcni (invoke.Exec): each in a process group of its own that is killed when
// the context ends, so that neither a plugin nor what it started outlives its caller's interest.
type pluginExec struct {
	version.PluginDecoder
	log *slog.Logger
}

// FindInPath implements invoke.Exec.
func (e *pluginExec) FindInPath(plugin string, dirs []string) (string, error) {
	return findPlugin(plugin, dirs)
}

func findPlugin(plugin string, dirs []string) (string, error) {
	if plugin == "" || filepath.Base(plugin) != plugin {
		return "", &PluginError{Plugin: plugin, Err: errors.New("not a file name")}
	}
	var found []string
	for _, dir := range dirs {
		path := filepath.Join(dir, plugin)
		fi, err := os.Stat(path)
		if err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path, nil
		}
		if err == nil {
			found = append(found, fmt.Sprintf("%s is not an executable file (%s)", path, fi.Mode()))
		}
	}
	why := "no such plugin in " + strings.Join(dirs, ", ")
	if len(found) > 0 {
		why += ": " + strings.Join(found, "; ")
	}
	return "", &PluginError{Plugin: plugin, Err: errors.New(why)}
}

// ExecPlugin implements invoke.Exec. It starts the plugin on the calling thread.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	name, command := filepath.Base(path), envValue(env, "CNI_COMMAND")
	began := time.Now()
	stdout, err := e.run(ctx, path, stdin, pluginEnv(env))
	if err == nil && command == "ADD" {
		err = checkResult(stdout)
	}
	e.log.Debug("cni plugin", "plugin", name, "command", command, "took", time.Since(began), "err", err)
	if err != nil {
		return nil, &PluginError{Plugin: name, Command: command, Err: err}
	}
	return stdout, nil
}

func (e *pluginExec) run(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	var stdout, stderr limitedBuffer
	cmd, err := start(ctx, path, func() *exec.Cmd {
		stdout, stderr = limitedBuffer{max: maxOutput}, limitedBuffer{max: maxOutput}
		return &exec.Cmd{
			Path: path, Args: []string{path}, Env: env, Dir: "/",
			Stdin: bytes.NewReader(stdin), Stdout: &stdout, Stderr: &stderr,
			SysProcAttr: sys.OwnGroup(), WaitDelay: pipeWait,
		}
	})
	if err != nil {
		return nil, err
	}
	began := time.Now()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		return nil, kill(ctx, cmd, done, began)
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) { // a daemon it left behind may hold its stdout
		return nil, pluginMessage(err, stdout.Bytes(), stderr.Bytes())
	}
	if stdout.over {
		return nil, fmt.Errorf("more than %d bytes of output", maxOutput)
	}
	if s := bytes.TrimSpace(stderr.Bytes()); len(s) > 0 {
		e.log.Debug("cni plugin stderr", "plugin", filepath.Base(path), "text", clip(s))
	}
	return stdout.Bytes(), nil
}

// start starts a command, again and again while its file is being written.
func start(ctx context.Context, path string, command func() *exec.Cmd) (*exec.Cmd, error) {
	began := time.Now()
	for {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("not started: %w", context.Cause(ctx))
		}
		cmd := command()
		err := cmd.Start()
		if err == nil {
			return cmd, nil
		}
		if !errors.Is(err, syscall.ETXTBSY) || time.Since(began) > busyWait {
			return nil, fmt.Errorf("start %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func kill(ctx context.Context, cmd *exec.Cmd, done <-chan error, began time.Time) error {
	err := fmt.Errorf("killed after %s without an answer: %w", time.Since(began).Round(time.Millisecond), context.Cause(ctx))
	if kerr := sys.KillGroup(cmd.Process.Pid); kerr != nil {
		err = errors.Join(err, kerr)
	}
	select {
	case <-done:
	case <-time.After(killWait):
		err = fmt.Errorf("%w (process %d has not ended %s after SIGKILL)", err, cmd.Process.Pid, killWait)
	}
	return err
}

// limitedBuffer keeps the first max bytes and swallows the rest, so that the writer never blocks. It embeds
// no bytes.Buffer, whose ReadFrom io.Copy would prefer to Write.
type limitedBuffer struct {
	buf  []byte
	max  int
	over bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	keep := min(len(p), b.max-len(b.buf))
	b.over = b.over || keep < len(p)
	b.buf = append(b.buf, p[:keep]...)
	return len(p), nil
}

func (b *limitedBuffer) Bytes() []byte { return b.buf }

// pluginEnv is the environment of a plugin: the daemon's without what is between it and systemd, and
// with a PATH, because plugins look for iptables and nft there.
func pluginEnv(env []string) []string {
	out := make([]string, 0, len(env)+1)
	for _, kv := range env {
		key, _, _ := strings.Cut(kv, "=")
		switch key {
		case "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC":
			continue
		}
		out = append(out, kv)
	}
	if envValue(env, "PATH") == "" {
		out = append(out, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	return out
}

func envValue(env []string, key string) string {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == key {
			return v
		}
	}
	return ""
}
