package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci/container"
	"github.com/cri-shim/cri-shim/oci/criu"
)

// defaultImages is where runc puts a checkpoint: below the current directory.
const defaultImages = "checkpoint"

func (a *app) checkpointCommands() []*cli.Command {
	flags := func(names ...string) (out []cli.Flag) {
		for _, n := range names {
			out = append(out, &cli.BoolFlag{Name: n, Usage: "see criu(8)"})
		}
		return out
	}
	paths := []cli.Flag{
		&cli.StringFlag{Name: "image-path", Usage: "the directory for the image files (default: checkpoint)"},
		&cli.StringFlag{Name: "work-path", Usage: "the directory for logs and statistics (default: that for the image files)"},
		&cli.StringFlag{Name: "manage-cgroups-mode", Usage: "soft, full, strict or ignore"},
	}
	return []*cli.Command{
		{
			Name: "checkpoint", Usage: "checkpoint a running container (needs criu)", ArgsUsage: idArgument,
			Flags: append(append(flags("leave-running", "tcp-established", "ext-unix-sk", "shell-job", "file-locks", "pre-dump", "auto-dedup", "lazy-pages"), paths...),
				&cli.StringFlag{Name: "parent-path", Usage: "image files of a pre-dump, seen from image-path"}),
			Action: a.withContainer(a.checkpoint),
		},
		{
			Name: "restore", Usage: "restore a container from a checkpoint (needs criu)", ArgsUsage: idArgument,
			Flags: slices.Concat(flags("tcp-established", "ext-unix-sk", "shell-job", "file-locks", "auto-dedup", "lazy-pages"), paths, createFlags(), []cli.Flag{
				&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "do not wait for the container's end"},
				&cli.BoolFlag{Name: "no-subreaper", Usage: "do not adopt the orphans of the container"},
				&cli.StringFlag{Name: "lsm-profile", Usage: "another one than at the checkpoint, as type:name"},
			}),
			Action: a.restore,
		},
	}
}

// criuOptions are those that both commands have. What criu would need a second process for is refused.
func criuOptions(cmd *cli.Command) (criu.Options, error) {
	o := criu.Options{
		Images: cmd.String("image-path"), Work: cmd.String("work-path"), ManageCgroups: cmd.String("manage-cgroups-mode"),
		TCPEstablished: cmd.Bool("tcp-established"), ExtUnixSockets: cmd.Bool("ext-unix-sk"), ShellJob: cmd.Bool("shell-job"),
		FileLocks: cmd.Bool("file-locks"), AutoDedup: cmd.Bool("auto-dedup"),
	}
	if cmd.Bool("lazy-pages") {
		return o, fmt.Errorf("--lazy-pages: %w", errors.ErrUnsupported)
	}
	if o.Images == "" {
		o.Images = defaultImages
	}
	var err error
	if o.Images, err = filepath.Abs(o.Images); err == nil && o.Work != "" {
		o.Work, err = filepath.Abs(o.Work)
	}
	return o, err
}

func (a *app) checkpoint(ctx context.Context, cmd *cli.Command, c *container.Container) error {
	o, err := criuOptions(cmd)
	if err != nil {
		return err
	}
	err = c.Checkpoint(ctx, &criu.Tool{Program: cmd.String("criu")}, container.CheckpointOptions{
		Options: o, LeaveRunning: cmd.Bool("leave-running"), PreDump: cmd.Bool("pre-dump"), ParentPath: cmd.String("parent-path"),
	})
	if err != nil || cmd.Bool("leave-running") || cmd.Bool("pre-dump") {
		return err
	}
	return c.Delete(ctx, true) // as runc does
}

func (a *app) restore(ctx context.Context, cmd *cli.Command) error {
	o, err := createOptions(cmd)
	if err != nil {
		return err
	}
	from, err := criuOptions(cmd)
	if err != nil {
		return err
	}
	from.LSMProfile = cmd.String("lsm-profile")
	if len(o.ExtraFiles) > 0 {
		return errors.New("--preserve-fds: a restored container has the descriptors that it had")
	}
	return a.foreground(ctx, cmd, &o, false, func() (*container.Container, *container.Child, error) {
		return a.rt.Restore(ctx, &criu.Tool{Program: cmd.String("criu")}, o, from)
	})
}

// foreground makes a container that runs and, unless it is detached, waits for its end.
func (a *app) foreground(ctx context.Context, cmd *cli.Command, o *container.CreateOptions, keep bool, make func() (*container.Container, *container.Child, error)) error {
	detach := cmd.Bool("detach")
	fg := new(foreground)
	defer fg.close()
	if !detach {
		fg.listen()
		if o.ConsoleSocket == "" {
			o.Terminal = fg.terminal
		}
		if !cmd.Bool("no-subreaper") {
			if err := sys.Subreaper(); err != nil {
				a.log.print("warning", err.Error())
			}
		}
	}
	c, child, err := make()
	if err != nil {
		return err
	}
	if err := c.Poststart(ctx); err != nil {
		return errors.Join(err, c.Delete(ctx, true))
	}
	if detach {
		return nil
	}
	code := fg.wait(child)
	if !keep {
		if err := c.Delete(ctx, true); err != nil {
			return err
		}
	}
	return exitStatus(code)
}
