package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// command is a runtime with runc's command line.
type command struct {
	*options
	name, path string
	spec       *specs.Spec
}

func (c *command) bundle() string           { return filepath.Join(c.dir, "bundle-"+c.name) }
func (c *command) pidFile(id string) string { return filepath.Join(c.dir, id+".pid") }

// call runs the command. Its output is kept for errors in a file: a pipe would be held open by the container.
func (c *command) call(ctx context.Context, args ...string) error {
	out, err := os.CreateTemp(c.dir, "out.")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.CommandContext(ctx, c.path, append([]string{"--root", filepath.Join(c.dir, "root-"+c.name)}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%s: %w: %s", args[0], err, bytes.TrimSpace(text))
	}
	return nil
}

// prepare writes the bundle, whose cgroup is the container's.
func (c *command) prepare(id string) error {
	spec, linux := *c.spec, *c.spec.Linux
	spec.Linux, linux.CgroupsPath = &linux, c.cgroup+"/"+id
	spec.Version = "1.0.2" // nothing in it is newer, and distributions' runtimes refuse what they do not know
	spec.Root = &specs.Root{Path: filepath.Join(c.dir, "rootfs"), Readonly: c.spec.Root.Readonly}
	data, err := json.Marshal(&spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.bundle(), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.bundle(), "config.json"), data, 0o600)
}

func (c *command) create(ctx context.Context, id string) error {
	return c.call(ctx, "create", "--bundle", c.bundle(), "--pid-file", c.pidFile(id), id)
}

func (c *command) start(ctx context.Context, id string) error { return c.call(ctx, "start", id) }

func (c *command) exec(ctx context.Context, id string) error {
	return c.call(ctx, "exec", id, "/bin/true")
}

// delete kills the container's process, waits for its end as its parent would, and deletes the container.
func (c *command) delete(ctx context.Context, id string) error {
	text, err := os.ReadFile(c.pidFile(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil // it was never created
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	sys.WaitChild(pid)
	return errors.Join(c.call(ctx, "delete", id), os.Remove(c.pidFile(id)))
}
