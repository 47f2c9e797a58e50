package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/oci/container"
)

func (a *app) limitCommands() []*cli.Command {
	number := func(name, usage string) cli.Flag { return &cli.Int64Flag{Name: name, Usage: usage} }
	return []*cli.Command{
		{
			Name: "pause", Usage: "suspend all processes of a container", ArgsUsage: idArgument,
			Action: a.withContainer(func(ctx context.Context, _ *cli.Command, c *container.Container) error { return c.Pause(ctx) }),
		},
		{
			Name: "resume", Usage: "let a paused container go on", ArgsUsage: idArgument,
			Action: a.withContainer(func(_ context.Context, _ *cli.Command, c *container.Container) error { return c.Resume() }),
		},
		{
			Name: "update", Usage: "change the limits of a container; what is not named stays", ArgsUsage: idArgument,
			Action: a.withContainer(update),
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "resources", Aliases: []string{"r"}, Usage: "a file with linux.resources, - is standard input; other flags do not count then"},
				number("blkio-weight", "weight of block I/O, 10 to 1000"),
				number("cpu-period", "CPU period in µs"),
				number("cpu-quota", "CPU time in each period in µs"),
				number("cpu-share", "CPU shares"),
				number("cpu-rt-period", "realtime period in µs"),
				number("cpu-rt-runtime", "realtime in each period in µs"),
				number("cpu-idle", "1 runs the container when a CPU is idle alone"),
				&cli.StringFlag{Name: "cpuset-cpus", Usage: "CPUs"},
				&cli.StringFlag{Name: "cpuset-mems", Usage: "memory nodes"},
				number("memory", "memory in bytes"),
				number("memory-reservation", "soft limit in bytes"),
				number("memory-swap", "memory and swap in bytes, -1 is no limit"),
				number("pids-limit", "processes"),
				&cli.StringFlag{Name: "l3-cache-schema", Usage: "not supported"},
				&cli.StringFlag{Name: "mem-bw-schema", Usage: "not supported"},
			},
		},
	}
}

func update(_ context.Context, cmd *cli.Command, c *container.Container) error {
	for _, name := range []string{"l3-cache-schema", "mem-bw-schema"} {
		if cmd.IsSet(name) {
			return fmt.Errorf("--%s: resctrl is not driven", name)
		}
	}
	if path := cmd.String("resources"); path != "" {
		r, err := readResources(path)
		if err != nil {
			return err
		}
		return c.Update(r)
	}
	r, err := flaggedResources(cmd)
	if err != nil {
		return err
	}
	return c.Update(r)
}

func readResources(path string) (*specs.LinuxResources, error) {
	var in io.Reader = os.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	r := new(specs.LinuxResources)
	if err := json.NewDecoder(in).Decode(r); err != nil {
		return nil, fmt.Errorf("--resources: %w", err)
	}
	r.Devices = nil // runc leaves them as they are
	return r, nil
}

// flaggedResources are the limits that flags name.
func flaggedResources(cmd *cli.Command) (*specs.LinuxResources, error) {
	var err error
	signed := func(name string) *int64 {
		if !cmd.IsSet(name) {
			return nil
		}
		v := cmd.Int64(name)
		return &v
	}
	unsigned := func(name string) *uint64 {
		v := signed(name)
		if v == nil {
			return nil
		}
		if *v < 0 {
			err = fmt.Errorf("--%s: %d is negative", name, *v)
		}
		u := uint64(*v)
		return &u
	}
	r := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{
			Shares: unsigned("cpu-share"), Quota: signed("cpu-quota"), Period: unsigned("cpu-period"),
			RealtimeRuntime: signed("cpu-rt-runtime"), RealtimePeriod: unsigned("cpu-rt-period"), Idle: signed("cpu-idle"),
			Cpus: cmd.String("cpuset-cpus"), Mems: cmd.String("cpuset-mems"),
		},
		Memory: &specs.LinuxMemory{Limit: signed("memory"), Reservation: signed("memory-reservation"), Swap: signed("memory-swap")},
	}
	if l := signed("pids-limit"); l != nil {
		r.Pids = &specs.LinuxPids{Limit: l}
	}
	if w := unsigned("blkio-weight"); w != nil {
		if *w > 1000 {
			err = fmt.Errorf("--blkio-weight: %d is not between 10 and 1000", *w)
		}
		weight := uint16(*w)
		r.BlockIO = &specs.LinuxBlockIO{Weight: &weight}
	}
	return r, err
}
