// It must not open files of its own where descriptors for the container may be, and ends soon:
// the CPU limit of its cgroup is not worth reading.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command cri-shim-oci runs containers from OCI bundles with runc's command line: podman, containerd and others
// that call runc can call it instead. It is a thin layer over package oci/container.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/internal/payload"
	"github.com/cri-shim/cri-shim/internal/version"
	"github.com/cri-shim/cri-shim/oci/container"
)

const defaultRoot = "/run/cri-shim-oci"

func main() {
	a := &app{log: &logger{text: os.Stderr}}
	err := a.command().Run(context.Background(), os.Args)
	var exit exitStatus
	if errors.As(err, &exit) {
		os.Exit(int(exit))
	}
	if err != nil {
		a.log.fatal(err)
		os.Exit(1)
	}
}

// exitStatus ends the program with the workload's own status.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// app is what the commands share.
type app struct {
	log *logger
	rt  *container.Runtime
}

// command is the tree of commands.
func (a *app) command() *cli.Command {
	cli.VersionPrinter = func(c *cli.Command) { fmt.Fprint(c.Root().Writer, versionText()) }
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version"}
	root := &cli.Command{
		Name:  "cri-shim-oci",
		Usage: "run containers from OCI bundles, with runc's command line",
		Description: "To start a new container:\n\n    # cri-shim-oci run [ -b bundle ] <container-id>\n\n" +
			"A bundle is a directory with a file config.json and a root file system.",
		Version:               version.Version(),
		EnableShellCompletion: true,
		ConfigureShellCompletionCommand: func(c *cli.Command) {
			c.Hidden = false
			c.Usage = "print a completion script for bash, zsh, fish or pwsh"
		},
		ExitErrHandler: func(context.Context, *cli.Command, error) {}, // main prints errors
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "debug", Usage: "log more"},
			&cli.StringFlag{Name: "log", Usage: "the file to log to (default: standard error)"},
			&cli.StringFlag{Name: "log-format", Usage: "the log's format, text or json", Value: "text"},
			&cli.StringFlag{Name: "root", Usage: "the folder for what is known of containers, on a tmpfs", Value: defaultRoot},
			&cli.StringFlag{Name: "criu", Usage: "the criu program for checkpoint and restore", Value: "criu"},
			&cli.BoolFlag{Name: "systemd-cgroup", Usage: "let systemd make control groups; cgroupsPath is slice:prefix:name"},
			&cli.StringFlag{Name: "rootless", Usage: "accepted for runc's callers: true, false or auto", Value: "auto"},
		},
		Before: a.setUp,
		Action: noCommand,
		Commands: slices.Concat(
			a.lifecycleCommands(), a.execCommands(), a.showCommands(), a.limitCommands(), a.checkpointCommands(),
			[]*cli.Command{specCommand(), featuresCommand()},
		),
	}
	for _, c := range root.Commands {
		strict(c)
	}
	strict(root)
	return root
}

// strict makes a mistake in a command line one line, and ends the flags at the first argument, as runc does.
func strict(c *cli.Command) {
	c.OnUsageError = func(_ context.Context, cmd *cli.Command, err error, _ bool) error {
		return fmt.Errorf("%w (see %s --help)", err, cmd.FullName())
	}
	if len(c.Commands) == 0 {
		one := 1
		c.StopOnNthArg = &one
	}
}

func noCommand(_ context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() == 0 {
		return cli.ShowRootCommandHelp(cmd)
	}
	return fmt.Errorf("no command %q (see cri-shim-oci --help)", cmd.Args().First())
}

// setUp does what the global flags say.
func (a *app) setUp(ctx context.Context, cmd *cli.Command) (context.Context, error) {
	if err := a.log.open(cmd.String("log"), cmd.String("log-format"), cmd.Bool("debug")); err != nil {
		return ctx, err
	}
	switch r := cmd.String("rootless"); r {
	case "true", "false", "auto":
	default:
		return ctx, fmt.Errorf("--rootless: %q is not true, false or auto", r)
	}
	root, err := filepath.Abs(cmd.String("root"))
	if err != nil {
		return ctx, err
	}
	a.rt = &container.Runtime{
		Root:    root,
		Systemd: cmd.Bool("systemd-cgroup"),
		Init:    func() (*os.File, error) { return payload.KeptInit(root) },
		Warn:    func(err error) { a.log.print("warning", err.Error()) },
	}
	return ctx, nil
}

func versionText() string {
	text := "cri-shim-oci version " + version.Version() + "\n"
	if c := version.Commit(); c != "" {
		text += "commit: " + c + "\n"
	}
	return text + "spec: " + specs.Version + "\ngo: " + runtime.Version() + "\n"
}

// arguments checks how many there are, from least to most (-1: any number).
func arguments(cmd *cli.Command, least, most int) error {
	n := cmd.Args().Len()
	switch {
	case least == most && n != least:
		return fmt.Errorf("%q requires exactly %d argument(s)", cmd.Name, least)
	case n < least:
		return fmt.Errorf("%q requires a minimum of %d argument(s)", cmd.Name, least)
	case most >= 0 && n > most:
		return fmt.Errorf("%q requires a maximum of %d argument(s)", cmd.Name, most)
	}
	return nil
}

// withContainer is a command about one container and nothing else.
func (a *app) withContainer(do func(context.Context, *cli.Command, *container.Container) error) cli.ActionFunc {
	return a.about(1, 1, do)
}

// about is a command whose first argument is a container.
func (a *app) about(least, most int, do func(context.Context, *cli.Command, *container.Container) error) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		if err := arguments(cmd, least, most); err != nil {
			return err
		}
		c, err := a.rt.Load(cmd.Args().First())
		if err != nil {
			return err
		}
		return do(ctx, cmd, c)
	}
}
