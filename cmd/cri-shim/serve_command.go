package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/sys"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "run the daemon",
		Description: "Reads the configuration, makes what is missing of the folders, and serves the CRI until SIGTERM or\n" +
			"SIGINT. Pods go on running when it ends; the next daemon takes them over.\n" +
			"A flag wins over the configuration.",
		Flags: []cli.Flag{
			configFlag(),
			&cli.StringFlag{Name: "root", Usage: "`FOLDER` of images and records"},
			&cli.StringFlag{Name: "state", Usage: "`FOLDER` of what matters only while the kernel is up"},
			&cli.StringFlag{Name: "listen", Usage: "`SOCKET` to serve"},
			&cli.StringFlag{Name: "log-level", Usage: "`LEVEL`: debug, info, warn or error"},
			&cli.StringFlag{Name: "log-format", Usage: "`FORMAT`: text or json"},
		},
		Action: noArguments(func(ctx context.Context, cmd *cli.Command) error {
			cfg, err := configure(cmd)
			if err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return errors.New("serve needs root: it makes namespaces, mounts and control groups")
			}
			log := newLogger(cfg)
			slog.SetDefault(log)
			sys.Umask(0o022) // modes do not depend on who starts the daemon
			tuneMemory()
			ctx, stop := untilSignal(ctx, log)
			defer stop()
			return serve(ctx, cfg, log, assemble)
		}),
	}
}

// configure loads the configuration and lays the flags over it.
func configure(cmd *cli.Command) (*config.Config, error) {
	cfg, err := config.Load(cmd.String("config"))
	if err != nil {
		return nil, err
	}
	for flag, field := range map[string]*string{
		"root": &cfg.Root, "state": &cfg.State, "listen": &cfg.Listen,
		"log-level": &cfg.LogLevel, "log-format": &cfg.LogFormat,
	} {
		if cmd.IsSet(flag) {
			*field = cmd.String(flag)
		}
	}
	if problems := config.Validate(*cfg); len(problems) > 0 {
		return nil, fmt.Errorf("with the flags given: %w", problems)
	}
	return cfg, nil
}

// newLogger logs to standard error, where systemd picks it up.
func newLogger(cfg *config.Config) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.LogLevel)) // validated
	o := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, o))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o))
}
