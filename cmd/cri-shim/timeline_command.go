package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/sandbox"
)

func timelineCommand() *cli.Command {
	return &cli.Command{
		Name:      "timeline",
		Usage:     "show where the milliseconds went, stage by stage",
		ArgsUsage: "[POD|CONTAINER]",
		Description: "Takes the ID of a pod sandbox or container, or the beginning of one, as crictl prints them;\n" +
			"without one it shows all pods, the newest first.",
		Flags:  []cli.Flag{endpointFlag(), &cli.BoolFlag{Name: "json", Usage: "print JSON; times are in nanoseconds"}},
		Action: showTimelines,
	}
}

func showTimelines(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() > 1 {
		return errors.New("timeline: name one pod or container, or none for all pods")
	}
	conn, err := connect(cmd)
	if err != nil {
		return err
	}
	defer conn.Close()
	timelines, err := cri.NewAdminClient(conn).Timelines(ctx, cmd.Args().First())
	if err != nil {
		return err
	}
	out := cmd.Root().Writer
	if cmd.Bool("json") {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(timelines)
	}
	for i, t := range timelines {
		if i > 0 {
			fmt.Fprintln(out)
		}
		printStages(out, "", "pod "+t.Name, t.ID, t.Stages)
		for _, c := range t.Containers {
			printStages(out, "  ", "container "+c.Name, c.ID, c.Stages)
		}
	}
	return nil
}

// barWidth is how many characters stand for the whole time.
const barWidth = 30

func printStages(w io.Writer, indent, what, id string, stages []sandbox.Stage) {
	var total time.Duration
	name := 0
	for _, s := range stages {
		total += s.Took
		name = max(name, len(s.Name))
	}
	fmt.Fprintf(w, "%s%s (%.13s): %s\n", indent, what, id, milliseconds(total))
	for _, s := range stages {
		bar := ""
		if total > 0 {
			bar = strings.Repeat("#", int((s.Took*barWidth+total/2)/total))
		}
		line := fmt.Sprintf("%s  %-*s %12s  %s", indent, name, s.Name, milliseconds(s.Took), bar)
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.3f ms", float64(d)/float64(time.Millisecond))
}
