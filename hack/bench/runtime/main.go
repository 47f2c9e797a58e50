// Command runtime measures low-level container runtimes side by side on one bundle: a Kubernetes container's mounts,
// masked paths, limits and default seccomp profile. Their rounds alternate, so that what else the machine does
// touches all alike.
//
//	runtime -dir DIR [-n 50] [-cgroup /NAME] [-cpu FILE] [NAME=COMMAND...]
//
// The first column is cri-shim's own runtime as its pods use it, in-process; each COMMAND is one with runc's command
// line. FILE is the usage of the cgroup /NAME, in which this program and all containers are, and gives the CPU time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	bench "github.com/cri-shim/cri-shim/hack/bench/command"
	"github.com/cri-shim/cri-shim/internal/sys"
)

func main() { bench.Main(run) }

type options struct {
	rounds           int
	dir, cgroup, cpu string
	commands         []command
}

func parse(args []string) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("runtime", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "n", 50, "rounds to measure")
	flags.StringVar(&o.dir, "dir", "", "empty folder for the bundle and the runtimes' state")
	flags.StringVar(&o.cgroup, "cgroup", "/cri-shim-bench", "cgroup of the containers")
	flags.StringVar(&o.cpu, "cpu", "", "cpuacct.usage or cpu.stat of that cgroup (default: CPU time is not measured)")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if o.rounds < 1 || o.dir == "" {
		return nil, errors.New("-n must be at least 1, and -dir is needed")
	}
	for _, arg := range flags.Args() {
		name, path, ok := strings.Cut(arg, "=")
		if !ok || name == "" || path == "" {
			return nil, fmt.Errorf("%q: want NAME=COMMAND", arg)
		}
		o.commands = append(o.commands, command{name: name, path: path})
	}
	return o, nil
}

// target is a runtime. What create makes, delete removes, however far it came.
type target interface {
	prepare(id string) error // what is not the runtime's to do, and not measured
	create(ctx context.Context, id string) error
	start(ctx context.Context, id string) error
	exec(ctx context.Context, id string) error
	delete(ctx context.Context, id string) error
}

// measured is a runtime and what was measured of it.
type measured struct {
	name   string
	target target
	took   map[string][]time.Duration
	cpu    map[string][]time.Duration
}

func (m *measured) add(what string, took, cpu time.Duration) {
	m.took[what], m.cpu[what] = append(m.took[what], took), append(m.cpu[what], cpu)
}

func run(ctx context.Context) error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	// The containers of the commands become children, to be waited for.
	if err := sys.Subreaper(); err != nil {
		return err
	}
	own, err := newInProcess(ctx, o)
	if err != nil {
		return err
	}
	defer own.close()
	all := []*measured{{name: "cri-shim", target: own}}
	for _, c := range o.commands {
		c.options, c.spec = o, own.spec
		all = append(all, &measured{name: c.name, target: &c})
	}
	for _, m := range all {
		m.took, m.cpu = map[string][]time.Duration{}, map[string][]time.Duration{}
	}
	for n := range o.rounds + 1 { // the first warms up and does not count
		for i := range all {
			m := all[(i+n)%len(all)] // nobody is always first
			if err := m.round(ctx, o, fmt.Sprintf("%s-%d", m.name, n), n > 0); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
		}
	}
	return print(os.Stdout, o, all)
}

// roundTimeout bounds one container's life.
const roundTimeout = time.Minute

func (m *measured) round(ctx context.Context, o *options, id string, count bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	gone := false
	defer func() {
		if !gone {
			err = errors.Join(err, m.target.delete(context.WithoutCancel(ctx), id))
		}
	}()
	if err := m.target.prepare(id); err != nil {
		return err
	}
	var run, runCPU time.Duration
	for _, step := range []struct {
		what string
		do   func(context.Context, string) error
	}{{"create", m.target.create}, {"start", m.target.start}, {"exec", m.target.exec}, {"delete", m.target.delete}} {
		cpu, err := cpuTime(o.cpu)
		if err != nil {
			return err
		}
		begin := time.Now()
		gone = step.what == "delete"
		if err := step.do(ctx, id); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		took := time.Since(begin)
		after, err := cpuTime(o.cpu)
		if err != nil {
			return err
		}
		if !count {
			continue
		}
		m.add(step.what, took, after-cpu)
		switch step.what {
		case "create":
			run, runCPU = took, after-cpu
		case "start":
			m.add("run", run+took, runCPU+after-cpu)
		}
	}
	return nil
}
