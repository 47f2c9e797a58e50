package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/oci/criu"
)

// CheckpointOptions are those of runc's command.
type CheckpointOptions struct {
	criu.Options
	LeaveRunning, PreDump bool
	ParentPath            string
}

// Checkpoint writes the state of a running container's processes to a folder. They are killed by it unless they are to be
// left running, or it is a dump that prepares another one.
func (c *Container) Checkpoint(ctx context.Context, tool *criu.Tool, o CheckpointOptions) error {
	lock, err := c.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	status, err := c.Status()
	if err != nil {
		return err
	}
	if status != specs.StateRunning {
		return fmt.Errorf("cannot checkpoint a container that is %s", status)
	}
	if o.Spec, err = c.Spec(); err != nil {
		return err
	}
	return tool.Dump(ctx, criu.DumpOptions{
		Options: o.Options, PID: c.PID, LeaveRunning: o.LeaveRunning || o.PreDump, PreDump: o.PreDump, ParentPath: o.ParentPath,
	})
}

// Restore makes a container of a bundle whose processes are those of a checkpoint, running. On an error nothing is left.
func (r *Runtime) Restore(ctx context.Context, tool *criu.Tool, o CreateOptions, from criu.Options) (_ *Container, _ *Child, err error) {
	if _, err := tool.Check(ctx); err != nil {
		return nil, nil, err
	}
	if _, err := os.Stat(from.Images); err != nil {
		return nil, nil, err
	}
	spec, config, err := readBundle(&o)
	if err != nil {
		return nil, nil, err
	}
	if err := criu.CheckSpec(spec); err != nil {
		return nil, nil, err
	}
	c, err := r.reserve(&o, spec, config)
	if err != nil {
		return nil, nil, err
	}
	var child *Child
	defer func() {
		if err != nil {
			err = errors.Join(err, c.undo(ctx, spec.Hooks, child))
		}
	}()
	child, err = c.restore(ctx, tool, &o, spec, from)
	return c, child, err
}

// restore has criu do what the init does for a new container.
func (c *Container) restore(ctx context.Context, tool *criu.Tool, o *CreateOptions, spec *specs.Spec, from criu.Options) (child *Child, err error) {
	groups, err := c.rt.groups()
	if err != nil {
		return nil, err
	}
	if err := oci.MakeResctrl(spec, "", c.ID); err != nil {
		return nil, err
	}
	group, err := groups.Create(ctx, c.CgroupPath, oci.CgroupResources(spec))
	if err != nil {
		return nil, err
	}
	defer group.Release()
	// criu wants a root that is a mount point, in a folder that nothing is mounted over.
	from.Root = filepath.Join(c.dir, "criu-root")
	if err := os.Mkdir(from.Root, 0o755); err != nil {
		return nil, err
	}
	if err := sys.BindMount(c.Rootfs, from.Root); err != nil {
		return nil, errors.Join(err, os.Remove(from.Root))
	}
	defer func() {
		err = errors.Join(err, sys.UnmountDetach(from.Root), os.Remove(from.Root))
	}()
	from.Spec = spec
	terminal := o.Terminal
	if o.ConsoleSocket != "" {
		terminal = func(master *os.File) {
			if err := sys.SendConsole(o.ConsoleSocket, master); err != nil {
				c.rt.Warn(err)
			}
		}
	}
	pid, err := tool.Restore(ctx, criu.RestoreOptions{
		Options: from, Stdio: o.Stdio, EnterGroup: group.AddProc, Terminal: terminal,
		Restored: func(pid int) error {
			c.PID = pid
			var err error
			if c.PIDStart, err = sys.StartTime(pid); err != nil {
				return err
			}
			return c.save()
		},
	})
	if err != nil {
		return nil, err
	}
	pidfd, err := c.pidfd()
	if err != nil {
		return nil, err
	}
	return &Child{PID: pid, Pidfd: pidfd}, WritePIDFile(o.PIDFile, pid)
}
