package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/oci/seccomp"
)

func configFlag() cli.Flag {
	return &cli.StringFlag{
		Name:    "config",
		Aliases: []string{"c"},
		Usage:   "configuration `FILE`; conf.d/*.toml beside it is read as well (default: " + config.DefaultPath + " if it exists)",
		Sources: cli.EnvVars("CRI_SHIM_CONFIG"),
	}
}

func configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "show and check the daemon's configuration",
		Commands: []*cli.Command{{
			Name:  "default",
			Usage: "print every key with its default and what it does",
			Action: noArguments(func(_ context.Context, cmd *cli.Command) error {
				_, err := cmd.Root().Writer.Write(config.Render(config.Default()))
				return err
			}),
		}, {
			Name:  "check",
			Usage: "check the configuration; exits 1 and names every problem by file, line and key",
			Flags: []cli.Flag{
				configFlag(),
				&cli.BoolFlag{Name: "print", Usage: "print the configuration that results"},
			},
			Action: checkConfig,
		}},
	}
}

func checkConfig(_ context.Context, cmd *cli.Command) error {
	if cmd.Args().Present() {
		return fmt.Errorf("config check takes no argument: name the file with --config %s", cmd.Args().First())
	}
	cfg, err := config.Load(cmd.String("config"))
	if err != nil {
		return fmt.Errorf("the configuration is not valid:\n%w", err)
	}
	if cfg.SeccompProfile != "" {
		if err := checkSeccomp(cfg.SeccompProfile); err != nil {
			return fmt.Errorf("the configuration is not valid:\nseccomp_profile: %w", err)
		}
	}
	if err := checkRuntimes(cfg); err != nil {
		return fmt.Errorf("the configuration is not valid:\n%w", err)
	}
	out := cmd.Root().Writer
	if cmd.Bool("print") {
		_, err := out.Write(config.Render(*cfg))
		return err
	}
	_, err = fmt.Fprintln(out, "the configuration is valid")
	return err
}

// checkSeccomp finds what would keep the daemon from starting with a profile.
func checkSeccomp(path string) error {
	p, err := seccomp.LoadFile(path, nil)
	if err != nil {
		return err
	}
	if _, err := seccomp.Compile(p); err != nil {
		return fmt.Errorf("%w (in %s)", err, path)
	}
	return nil
}
