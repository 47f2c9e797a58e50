package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/gpu"
)

func gpuCommand() *cli.Command {
	return &cli.Command{
		Name:  "gpu",
		Usage: "GPUs and other devices: what there is, who has it, what is wrong",
		Commands: []*cli.Command{{
			Name:  "ls",
			Usage: "list devices with their CDI names, and the pods that have them",
			Description: "Looks at this node itself, as the daemon would; only who has a device is asked of the daemon,\n" +
				"and left out where none runs.",
			Flags:  []cli.Flag{configFlag(), endpointFlag(), &cli.BoolFlag{Name: "json", Usage: "print everything that is known, as JSON"}},
			Action: listDevices,
		}, {
			Name:      "spec",
			Usage:     "print the CDI specifications that are made here, for kinds that no file has",
			ArgsUsage: "[KIND]",
			Description: "What a specification cannot say, and the runtime does: the loader's cache of the container gets the\n" +
				"libraries in it.",
			Flags:  []cli.Flag{configFlag()},
			Action: printSpecs,
		}, {
			Name:   "check",
			Usage:  "say what is wrong with drivers, device nodes and CDI files; exits 1 if anything is",
			Flags:  []cli.Flag{configFlag()},
			Action: checkDevices,
		}},
	}
}

func deviceRegistry(cmd *cli.Command, args int) (*gpu.Registry, error) {
	if cmd.Args().Len() > args {
		return nil, fmt.Errorf("%s: unexpected argument %s", cmd.FullName(), cmd.Args().Get(args))
	}
	cfg, err := configure(cmd)
	if err != nil {
		return nil, err
	}
	return newRegistry(cfg), nil
}

// listing is what gpu ls shows.
type listing struct {
	*gpu.Report
	// InUse is null where no daemon could be asked.
	InUse []cri.DeviceUse `json:"in_use"`
}

func listDevices(ctx context.Context, cmd *cli.Command) error {
	r, err := deviceRegistry(cmd, 0)
	if err != nil {
		return err
	}
	report, err := r.Report()
	if err != nil {
		return err
	}
	l := listing{Report: report}
	note := ""
	if conn, err := connect(cmd); err != nil {
		note = "who has which is not known: " + message(err)
	} else {
		defer conn.Close()
		if l.InUse, err = cri.NewAdminClient(conn).DevicesInUse(ctx); err != nil {
			note = "who has which is not known: " + message(err)
		}
	}
	out := cmd.Root().Writer
	if cmd.Bool("json") {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(l)
	}
	if err := l.print(out); err != nil {
		return err
	}
	if note != "" {
		fmt.Fprintln(out, note)
	}
	return nil
}

func (l listing) print(out io.Writer) error {
	if l.NVIDIA == nil && len(l.Others) == 0 && len(l.Files) == 0 {
		fmt.Fprintln(out, "no devices were found")
	}
	if n := l.NVIDIA; n != nil {
		kind := map[bool]string{true: ", open kernel module"}[n.Open]
		fmt.Fprintf(out, "NVIDIA driver %s%s; %d libraries in %s\n", n.Version, kind, len(l.Driver.Libraries), l.Driver.Root)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	rows := l.rows()
	if len(rows) > 0 {
		fmt.Fprintln(w, "DEVICE\tMODEL OR DRIVER\tPCI\tNUMA\tNODES\tPODS")
	}
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, at := range slices.Sorted(maps.Keys(l.Files)) {
		fmt.Fprintf(out, "%s: %s\n", at, strings.Join(l.Files[at], ", "))
	}
	for _, p := range l.Problems {
		fmt.Fprintf(out, "problem: %s\n", p)
	}
	return nil
}

func (l listing) rows() [][]string {
	var rows [][]string
	add := func(name, model, pci string, numa int, nodes ...gpu.Node) {
		where := "-"
		if numa >= 0 {
			where = fmt.Sprint(numa)
		}
		var paths []string
		for _, n := range nodes {
			paths = append(paths, n.Path)
		}
		rows = append(rows, []string{name, cmp.Or(model, "-"), cmp.Or(pci, "-"), where, cmp.Or(strings.Join(paths, " "), "-"), l.holders(nodes)})
	}
	if n := l.NVIDIA; n != nil {
		for _, g := range n.GPUs {
			add(fmt.Sprintf("%s=%d", gpu.KindNVIDIA, g.Index), g.Model+" "+g.UUID, g.PCI, g.NUMANode, g.Node)
			for _, m := range g.MIG {
				add(fmt.Sprintf("%s=%d:%d", gpu.KindNVIDIA, g.Index, m.Index), fmt.Sprintf("MIG gi%d ci%d", m.GPUInstance, m.ComputeInstance),
					g.PCI, g.NUMANode, m.Nodes...)
			}
		}
		for _, c := range n.Channels {
			add(fmt.Sprintf("%s=%d", gpu.KindIMEX, c.Number), "", "", -1, c.Node)
		}
	}
	for _, o := range l.Others {
		add(o.Kind+"="+o.Names[0], o.Driver, o.PCI, o.NUMANode, o.Nodes...)
	}
	return rows
}

// holders are the containers that have all of the nodes.
func (l listing) holders(nodes []gpu.Node) string {
	var out []string
	for _, u := range l.InUse {
		if holdsAll(u, nodes) {
			name := u.Pod + ":" + u.Container
			if u.Privileged {
				name += " (privileged)"
			}
			out = append(out, name)
		}
	}
	return cmp.Or(strings.Join(out, " "), "-")
}

func printSpecs(_ context.Context, cmd *cli.Command) error {
	r, err := deviceRegistry(cmd, 1)
	if err != nil {
		return err
	}
	all, err := r.Specs()
	if err != nil {
		return err
	}
	kind, shown := cmd.Args().First(), 0
	enc := json.NewEncoder(cmd.Root().Writer)
	enc.SetIndent("", "  ")
	for _, s := range all {
		if kind != "" && s.Kind != kind {
			continue
		}
		shown++
		if err := enc.Encode(s); err != nil {
			return err
		}
	}
	switch {
	case shown > 0:
		return nil
	case kind != "":
		return fmt.Errorf("gpu spec: none is made here of kind %s (a file may have it: see gpu ls)", kind)
	}
	return errors.New("gpu spec: no device was found that is not in a file (see gpu ls)")
}

func checkDevices(_ context.Context, cmd *cli.Command) error {
	r, err := deviceRegistry(cmd, 0)
	if err != nil {
		return err
	}
	report, err := r.Report()
	if err != nil {
		return err
	}
	out := cmd.Root().Writer
	for _, p := range report.Problems {
		fmt.Fprintln(out, p)
	}
	if n := len(report.Problems); n > 0 {
		return fmt.Errorf("gpu check: %d problems", n)
	}
	gpus := 0
	if report.NVIDIA != nil {
		gpus = len(report.NVIDIA.GPUs)
	}
	fmt.Fprintf(out, "no problem found: %d NVIDIA GPUs, %d other devices, %d CDI files\n", gpus, len(report.Others), len(report.Files))
	return nil
}
