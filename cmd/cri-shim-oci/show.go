package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/oci/container"
)

func (a *app) showCommands() []*cli.Command {
	format := &cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "table or json", Value: "table"}
	return []*cli.Command{
		{Name: "state", Usage: "print the state of a container", ArgsUsage: idArgument, Action: a.withContainer(state)},
		{
			Name: "list", Usage: "list containers", Action: a.list,
			Flags: []cli.Flag{format, &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "IDs alone"}},
		},
		{
			Name: "ps", Usage: "list the processes of a container", ArgsUsage: idArgument + " [ps options]",
			Flags: []cli.Flag{format}, Action: a.about(1, -1, ps),
		},
		{
			Name: "events", Usage: "print what a container uses, and when it runs out of memory", ArgsUsage: idArgument,
			Flags: []cli.Flag{
				&cli.DurationFlag{Name: "interval", Usage: "time between measurements", Value: 5 * time.Second},
				&cli.BoolFlag{Name: "stats", Usage: "measure once"},
			},
			Action: a.withContainer(events),
		},
	}
}

func state(_ context.Context, cmd *cli.Command, c *container.Container) error {
	s, err := c.State()
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		_, err = fmt.Fprintf(cmd.Root().Writer, "%s\n", text)
	}
	return err
}

func (a *app) list(_ context.Context, cmd *cli.Command) error {
	if err := arguments(cmd, 0, 0); err != nil {
		return err
	}
	all, err := a.rt.List()
	if err != nil {
		return err
	}
	out := cmd.Root().Writer
	if cmd.Bool("quiet") {
		for _, c := range all {
			fmt.Fprintln(out, c.ID)
		}
		return nil
	}
	var states []*container.State
	for _, c := range all {
		s, err := c.State()
		if err != nil {
			a.log.print("warning", fmt.Sprintf("state of %s: %v", c.ID, err))
			continue
		}
		uid, err := c.Owner()
		if err != nil { // deleted meanwhile
			continue
		}
		s.Owner = "#" + strconv.FormatUint(uint64(uid), 10)
		if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
			s.Owner = u.Username
		}
		states = append(states, s)
	}
	switch format := cmd.String("format"); format {
	case "table":
		return table(out, states)
	case "json":
		return json.NewEncoder(out).Encode(states)
	default:
		return fmt.Errorf("invalid format option: %q", format)
	}
}

func table(out io.Writer, states []*container.State) error {
	w := tabwriter.NewWriter(out, 12, 1, 3, ' ', 0)
	fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
	for _, s := range states {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.PID, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
	}
	return w.Flush()
}

func ps(ctx context.Context, cmd *cli.Command, c *container.Container) error {
	pids, err := c.Processes()
	if err != nil {
		return err
	}
	switch format := cmd.String("format"); format {
	case "json":
		return json.NewEncoder(cmd.Root().Writer).Encode(pids)
	case "table":
	default:
		return fmt.Errorf("invalid format option: %q", format)
	}
	args := cmd.Args().Slice()[1:]
	if len(args) == 0 {
		args = []string{"-ef"}
	}
	out, err := exec.CommandContext(ctx, "ps", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ps %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	column := slices.Index(strings.Fields(lines[0]), "PID")
	if column < 0 {
		return errors.New("couldn't find PID field in ps output")
	}
	fmt.Fprintln(cmd.Root().Writer, lines[0])
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if column >= len(f) {
			continue
		}
		if pid, err := strconv.Atoi(f[column]); err == nil && slices.Contains(pids, pid) {
			fmt.Fprintln(cmd.Root().Writer, line)
		}
	}
	return nil
}
