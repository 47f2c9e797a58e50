package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/oci/container"
)

func (a *app) checkpointCommands() []*cli.Command {
	flags := func(names ...string) (out []cli.Flag) {
		for _, n := range names {
			out = append(out, &cli.BoolFlag{Name: n, Usage: "see criu(8)"})
		}
		return out
	}
	paths := []cli.Flag{
		&cli.StringFlag{Name: "image-path", Usage: "the directory for the image files"},
		&cli.StringFlag{Name: "work-path", Usage: "the directory for logs"},
		&cli.StringFlag{Name: "manage-cgroups-mode", Usage: "soft, full or strict"},
	}
	return []*cli.Command{
		{
			Name: "checkpoint", Usage: "checkpoint a running container (needs criu)", ArgsUsage: idArgument,
			Flags: append(append(flags("leave-running", "tcp-established", "ext-unix-sk", "shell-job", "file-locks", "pre-dump", "auto-dedup", "lazy-pages"), paths...),
				&cli.StringFlag{Name: "parent-path", Usage: "image files of a pre-dump"}),
			Action: a.withContainer(func(_ context.Context, cmd *cli.Command, _ *container.Container) error { return noCRIU(cmd) }),
		},
		{
			Name: "restore", Usage: "restore a container from a checkpoint (needs criu)", ArgsUsage: idArgument,
			Flags: slices.Concat(flags("tcp-established", "ext-unix-sk", "shell-job", "file-locks", "auto-dedup", "lazy-pages", "detach", "no-subreaper"), paths, createFlags()),
			Action: func(_ context.Context, cmd *cli.Command) error {
				if err := arguments(cmd, 1, 1); err != nil {
					return err
				}
				return noCRIU(cmd)
			},
		},
	}
}

// noCRIU says what a checkpoint lacks.
func noCRIU(cmd *cli.Command) error {
	path, err := exec.LookPath(cmd.String("criu"))
	if err != nil {
		return fmt.Errorf("%s needs criu: %w (see --criu)", cmd.Name, err)
	}
	return fmt.Errorf("%s with %s: %w in this version", cmd.Name, path, errors.ErrUnsupported)
}
