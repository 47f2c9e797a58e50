package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/oci"
)

func featuresCommand() *cli.Command {
	return &cli.Command{
		Name: "features", Usage: "print what this runtime supports (runtime-spec, features.md)",
		Action: func(_ context.Context, cmd *cli.Command) error {
			if err := arguments(cmd, 0, 0); err != nil {
				return err
			}
			text, err := json.MarshalIndent(oci.Features(), "", "    ")
			if err == nil {
				_, err = fmt.Fprintf(cmd.Root().Writer, "%s\n", text)
			}
			return err
		},
	}
}
