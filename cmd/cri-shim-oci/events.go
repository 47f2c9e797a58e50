package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/oci/cgroup"
	"github.com/cri-shim/cri-shim/oci/container"
)

// event is a line of `events`, in runc's format.
type event struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

// stats are runc's names for what it measures.
type stats struct {
	CPU      cpuStats               `json:"cpu"`
	CPUSet   struct{}               `json:"cpuset"`
	Memory   memoryStats            `json:"memory"`
	Pids     pidsStats              `json:"pids"`
	Blkio    blkioStats             `json:"blkio"`
	Hugetlb  map[string]memoryEntry `json:"hugetlb"`
	IntelRdt struct{}               `json:"intel_rdt"`
	Networks []struct{}             `json:"network_interfaces"`
}

type cpuStats struct {
	Usage struct {
		Total  uint64 `json:"total,omitempty"`
		Kernel uint64 `json:"kernel"`
		User   uint64 `json:"user"`
	} `json:"usage"`
	Throttling struct {
		Periods          uint64 `json:"periods,omitempty"`
		ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
		ThrottledTime    uint64 `json:"throttledTime,omitempty"`
	} `json:"throttling"`
}

type memoryEntry struct {
	Limit   uint64 `json:"limit,omitempty"`
	Usage   uint64 `json:"usage,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type memoryStats struct {
	Cache uint64            `json:"cache,omitempty"`
	Usage memoryEntry       `json:"usage"`
	Swap  memoryEntry       `json:"swap"`
	Raw   map[string]uint64 `json:"raw,omitempty"`
}

type pidsStats struct {
	Current uint64 `json:"current,omitempty"`
	Limit   uint64 `json:"limit,omitempty"`
}

type blkioStats struct {
	Bytes []blkioEntry `json:"ioServiceBytesRecursive,omitempty"`
	Ops   []blkioEntry `json:"ioServicedRecursive,omitempty"`
}

type blkioEntry struct {
	Major uint64 `json:"major,omitempty"`
	Minor uint64 `json:"minor,omitempty"`
	Op    string `json:"op,omitempty"`
	Value uint64 `json:"value,omitempty"`
}

func toStats(s *cgroup.Stats) stats {
	var out stats
	out.CPU.Usage.Total, out.CPU.Usage.Kernel, out.CPU.Usage.User = s.CPU.UsageNanos, s.CPU.SystemNanos, s.CPU.UserNanos
	out.CPU.Throttling.Periods, out.CPU.Throttling.ThrottledPeriods = s.CPU.Periods, s.CPU.ThrottledPeriods
	out.CPU.Throttling.ThrottledTime = s.CPU.ThrottledNanos
	m := s.Memory
	out.Memory = memoryStats{
		Cache: m.Cache, Usage: memoryEntry{Limit: m.Limit, Usage: m.Usage},
		Swap: memoryEntry{Limit: m.SwapLimit, Usage: m.SwapUsage},
		Raw:  map[string]uint64{"rss": m.RSS, "pgfault": m.PageFaults, "pgmajfault": m.MajorFaults, "oom_kill": m.OOMKills},
	}
	out.Pids.Current = s.Pids.Current
	if s.Pids.Limit != cgroup.Unlimited {
		out.Pids.Limit = s.Pids.Limit
	}
	for _, io := range s.IO {
		e := blkioEntry{Major: io.Major, Minor: io.Minor}
		for _, x := range []struct {
			to    *[]blkioEntry
			op    string
			value uint64
		}{
			{&out.Blkio.Bytes, "Read", io.ReadBytes}, {&out.Blkio.Bytes, "Write", io.WriteBytes},
			{&out.Blkio.Ops, "Read", io.ReadOps}, {&out.Blkio.Ops, "Write", io.WriteOps},
		} {
			e.Op, e.Value = x.op, x.value
			*x.to = append(*x.to, e)
		}
	}
	out.Hugetlb = map[string]memoryEntry{}
	for _, h := range s.Hugetlb {
		out.Hugetlb[h.PageSize] = memoryEntry{Limit: h.Limit, Usage: h.Usage, Failcnt: h.Failures}
	}
	return out
}

// oomPeriod is how often the kernel's counter of OOM kills is read.
const oomPeriod = time.Second

func events(ctx context.Context, cmd *cli.Command, c *container.Container) error {
	interval := cmd.Duration("interval")
	if interval <= 0 {
		return errors.New("duration interval must be greater than 0")
	}
	out := json.NewEncoder(cmd.Root().Writer)
	measure := func() error {
		s, err := c.Stats()
		if err != nil {
			return err
		}
		return out.Encode(event{Type: "stats", ID: c.ID, Data: toStats(s)})
	}
	if cmd.Bool("stats") {
		return measure()
	}
	if status, err := c.Status(); err != nil || status == specs.StateStopped {
		return errors.Join(err, fmt.Errorf("container with id %s is not running", c.ID))
	}
	return follow(ctx, c, out, interval, measure)
}

// follow prints events until the container has stopped.
func follow(ctx context.Context, c *container.Container, out *json.Encoder, interval time.Duration, measure func() error) error {
	kills, err := c.OOMKills()
	if err != nil {
		return err
	}
	stats, oom := time.NewTicker(interval), time.NewTicker(min(oomPeriod, interval))
	defer stats.Stop()
	defer oom.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-stats.C:
			err = measure()
		case <-oom.C:
			var now uint64
			if now, err = c.OOMKills(); err == nil && now > kills {
				kills = now
				err = out.Encode(event{Type: "oom", ID: c.ID})
			}
		}
		if status, statusErr := c.Status(); statusErr == nil && status == specs.StateStopped {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
