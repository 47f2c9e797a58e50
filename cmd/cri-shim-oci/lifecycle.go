package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/internal/signals"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci/container"
)

const idArgument = "<container-id>"

func (a *app) lifecycleCommands() []*cli.Command {
	return []*cli.Command{
		{Name: "create", Usage: "create a container", ArgsUsage: idArgument, Flags: createFlags(), Action: a.create},
		{
			Name: "start", Usage: "execute the workload of a created container", ArgsUsage: idArgument,
			Action: a.withContainer(func(ctx context.Context, _ *cli.Command, c *container.Container) error { return c.Start(ctx) }),
		},
		{
			Name: "run", Usage: "create a container and start it", ArgsUsage: idArgument, Action: a.run,
			Flags: append(createFlags(),
				&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "do not wait for the container's end"},
				&cli.BoolFlag{Name: "keep", Usage: "do not delete the container when it has ended"},
				&cli.BoolFlag{Name: "no-subreaper", Usage: "do not adopt the orphans of the container"},
			),
		},
		{
			Name: "kill", Usage: "send a signal (TERM) to a container's first process", ArgsUsage: idArgument + " [signal]",
			Flags:  []cli.Flag{&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "to all of its processes"}},
			Action: a.about(1, 2, kill),
		},
		{
			Name: "delete", Usage: "remove a container that has stopped, or was never started", ArgsUsage: idArgument,
			Flags:  []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill it first"}},
			Action: a.remove,
		},
	}
}

func createFlags() []cli.Flag {
	return append(processFlags(),
		&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "the bundle's directory (default: the current one)"},
		&cli.BoolFlag{Name: "no-pivot", Usage: "do not use pivot_root, for a root on a ramdisk"},
		&cli.BoolFlag{Name: "no-new-keyring", Usage: "leave the container the caller's session keyring"},
	)
}

// processFlags are for whatever starts a process.
func processFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "console-socket", Usage: "a unix socket that gets the master of the terminal"},
		&cli.StringFlag{Name: "pid-file", Usage: "a file that gets the process ID"},
		&cli.IntFlag{Name: "preserve-fds", Usage: "pass on so many descriptors beyond stdio and $LISTEN_FDS"},
	}
}

// inherited are the descriptors to be passed on, and what the workload's environment says of them.
func inherited(cmd *cli.Command) (files []*os.File, env []string, err error) {
	listen := 0
	if v := os.Getenv("LISTEN_FDS"); v != "" {
		if listen, err = strconv.Atoi(v); err != nil || listen < 0 {
			return nil, nil, fmt.Errorf("LISTEN_FDS: %q is not a number", v)
		}
		env = []string{"LISTEN_FDS=" + v, "LISTEN_PID=1"}
	}
	n := cmd.Int("preserve-fds")
	if n < 0 || n > 1<<16 {
		return nil, nil, fmt.Errorf("--preserve-fds: %d is not a number of descriptors", n)
	}
	for fd := 3; fd < 3+listen+n; fd++ {
		f, err := sys.Inherited(fd)
		if err != nil {
			return nil, nil, fmt.Errorf("--preserve-fds: descriptor %d: %w", fd, err)
		}
		files = append(files, f)
	}
	return files, env, nil
}

func createOptions(cmd *cli.Command) (container.CreateOptions, error) {
	o := container.CreateOptions{
		ID: cmd.Args().First(), Bundle: cmd.String("bundle"), NoPivot: cmd.Bool("no-pivot"),
		KeepKeyring: cmd.Bool("no-new-keyring"), ConsoleSocket: cmd.String("console-socket"),
		PIDFile: cmd.String("pid-file"), Stdio: [3]*os.File{os.Stdin, os.Stdout, os.Stderr},
	}
	var err error
	if err = arguments(cmd, 1, 1); err != nil {
		return o, err
	}
	if o.ExtraFiles, o.Env, err = inherited(cmd); err != nil {
		return o, err
	}
	if o.PIDFile != "" {
		o.PIDFile, err = filepath.Abs(o.PIDFile)
	}
	return o, err
}

func (a *app) create(ctx context.Context, cmd *cli.Command) error {
	o, err := createOptions(cmd)
	if err != nil {
		return err
	}
	o.Gate = true
	_, _, err = a.rt.Create(ctx, o)
	return err
}

func (a *app) run(ctx context.Context, cmd *cli.Command) error {
	o, err := createOptions(cmd)
	if err != nil {
		return err
	}
	return a.foreground(ctx, cmd, &o, cmd.Bool("keep"), func() (*container.Container, *container.Child, error) {
		return a.rt.Create(ctx, o)
	})
}

func kill(ctx context.Context, cmd *cli.Command, c *container.Container) error {
	sig := syscall.SIGTERM
	if s := cmd.Args().Get(1); s != "" {
		var err error
		if sig, err = signals.Parse(s); err != nil {
			return err
		}
	}
	return c.Signal(ctx, sig, cmd.Bool("all"))
}

func (a *app) remove(ctx context.Context, cmd *cli.Command) error {
	if err := arguments(cmd, 1, 1); err != nil {
		return err
	}
	id, force := cmd.Args().First(), cmd.Bool("force")
	c, err := a.rt.Load(id)
	if errors.Is(err, container.ErrNotExist) && force {
		return a.rt.Forget(id)
	}
	if err != nil {
		return err
	}
	return c.Delete(ctx, force)
}
