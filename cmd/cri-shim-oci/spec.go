package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/oci/container"
)

func specCommand() *cli.Command {
	return &cli.Command{
		Name: "spec", Usage: "write a config.json to start from",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "the bundle's directory (default: the current one)"},
			&cli.BoolFlag{Name: "rootless", Usage: "for a user who is not root"},
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if err := arguments(cmd, 0, 0); err != nil {
				return err
			}
			spec := container.Example()
			if cmd.Bool("rootless") {
				container.Rootless(spec, uint32(os.Geteuid()), uint32(os.Getegid()))
			}
			return writeSpec(filepath.Join(cmd.String("bundle"), "config.json"), spec)
		},
	}
}

// writeSpec never overwrites.
func writeSpec(path string, spec *specs.Spec) error {
	text, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("file %s exists. Remove it first", filepath.Base(path))
	}
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}
