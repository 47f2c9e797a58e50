package main

import (
	"context"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/cri"
)

func metricsCommand() *cli.Command {
	return &cli.Command{
		Name:  "metrics",
		Usage: "print what the daemon counts, in Prometheus' text format",
		Description: "Pulls, calls, pods, containers, the pod network: see docs/metrics.md. With metrics_listen in the\n" +
			"configuration the daemon serves the same over HTTP.",
		Flags: []cli.Flag{endpointFlag()},
		Action: noArguments(func(ctx context.Context, cmd *cli.Command) error {
			conn, err := connect(cmd)
			if err != nil {
				return err
			}
			defer conn.Close()
			text, err := cri.NewAdminClient(conn).Metrics(ctx)
			if err != nil {
				return err
			}
			_, err = cmd.Root().Writer.Write(text)
			return err
		}),
	}
}
