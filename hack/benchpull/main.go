// Command benchpull measures pulls from a registry on this machine, by cri-shim and by others, in turn: wall time, CPU
// time, bytes written, and what is on the disk afterwards. Daemons are asked over the CRI. Each pull begins with an empty
// store and a page cache that has the registry's blobs and nothing else.
//
// It is what make bench-pull runs, as root and in namespaces of its own: the others mount what they unpack to.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/hack/bench/command"
	"github.com/cri-shim/cri-shim/hack/registry"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "pull-into" {
		command.Main(func(ctx context.Context) error { return pullInto(ctx, os.Args[2], os.Args[3:]) })
		return
	}
	command.Main(run)
}

// options are what the command line says.
type options struct {
	dir             string
	rounds, size    int
	cases, programs []string
	limit, budget   time.Duration
	cold, fresh     bool
}

var (
	allCases    = []string{"gzip", "zstd", "layers", "shared"}
	allPrograms = []string{"cri-shim", "containerd", "podman", "skopeo"}
)

func parse(args []string) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("benchpull", flag.ContinueOnError)
	flags.StringVar(&o.dir, "dir", "/var/tmp", "directory on the file system to measure")
	flags.IntVar(&o.rounds, "rounds", 3, "pulls of each case by each program")
	flags.IntVar(&o.size, "size", 200, "MB of the compressed image of 7 layers; the others are in proportion")
	cases := flags.String("cases", strings.Join(allCases, ","), "what to pull: 7 layers in gzip, the same in zstd, 40 layers, 10 images that share layers")
	programs := flags.String("programs", strings.Join(allPrograms, ","), "whom to measure, where installed; store is cri-shim's without its daemon, plain and directory are cri-shim with other formats of layers")
	flags.DurationVar(&o.limit, "limit", 3*time.Minute, "of one pull; one that takes longer is ended and counts as failed")
	flags.DurationVar(&o.budget, "budget", 12*time.Minute, "of all: no pull begins after it; 0 for none")
	flags.BoolVar(&o.cold, "cold", true, "drop the page cache before each pull")
	flags.BoolVar(&o.fresh, "fresh", true, "pull to ext4 made anew for each pull, in a file, and not to -dir itself")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	o.cases, o.programs = strings.Split(*cases, ","), strings.Split(*programs, ",")
	for _, list := range []struct {
		flag       string
		got, known []string
	}{{"-cases", o.cases, allCases}, {"-programs", o.programs, append([]string{"store", "plain", "directory"}, allPrograms...)}} {
		for _, name := range list.got {
			if !slices.Contains(list.known, name) {
				return nil, fmt.Errorf("%s: %q is none of %s", list.flag, name, strings.Join(list.known, ", "))
			}
		}
	}
	if flags.NArg() > 0 || o.rounds < 1 || o.size < 1 || o.limit <= 0 || o.budget < 0 {
		return nil, errors.New("-rounds and -size must be at least 1, -limit and -budget not negative, and there are no arguments")
	}
	return o, nil
}

func run(ctx context.Context) error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	start := time.Now()
	if o.dir, err = os.MkdirTemp(o.dir, "benchpull-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.dir)
	var peers []peer
	for _, name := range o.programs {
		p, err := newPeer(ctx, name)
		if err != nil {
			return err
		}
		if p == nil {
			fmt.Printf("%-10s is not installed\n", name)
			continue
		}
		fmt.Printf("%-10s %s\n", name, p.about)
		peers = append(peers, *p)
	}
	if len(peers) == 0 {
		return errors.New("nothing to measure")
	}
	r, err := registry.New(registry.Options{Root: filepath.Join(o.dir, "registry")})
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.Listen("127.0.0.1:0"); err != nil {
		return err
	}
	cases, err := makeImages(r, o.size, o.cases)
	if err != nil {
		return err
	}
	fmt.Println(conditions(o))
	b := &bench{options: o, blobs: filepath.Join(o.dir, "registry"), results: map[string][]result{}}
	if o.budget > 0 {
		b.end = start.Add(o.budget)
	}
	failed := b.all(ctx, cases, peers)
	report(os.Stdout, cases, peers, b.results)
	fmt.Printf("\ntook %s\n", time.Since(start).Round(time.Second))
	return failed
}

// conditions are what figures of another run may differ by.
func conditions(o *options) string {
	var fs syscall.Statfs_t
	kind := "?"
	if syscall.Statfs(o.dir, &fs) == nil {
		kind = map[int64]string{0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x01021994: "tmpfs"}[int64(fs.Type)]
		if kind == "" {
			kind = fmt.Sprintf("%#x", fs.Type)
		}
	}
	load, _ := os.ReadFile("/proc/loadavg") // only to be shown
	return fmt.Sprintf("%d CPUs, load %.14s, directory on %s, fresh ext4: %v, page cache dropped: %v", runtime.NumCPU(), load, kind, o.fresh, o.cold)
}

type bench struct {
	*options
	blobs   string
	end     time.Time // zero: none
	results map[string][]result
}

// all alternates the programs, so that what else the machine does touches all alike. What was measured until an
// interruption, or the end of the budget, counts.
func (b *bench) all(ctx context.Context, cases []benchCase, peers []peer) error {
	var errs []error
	failed := map[string]bool{}
	for round := range b.rounds {
		for _, c := range cases {
			for _, p := range peers {
				key := c.name + "/" + p.name
				if ctx.Err() != nil || failed[key] {
					continue
				}
				if !b.end.IsZero() && time.Now().After(b.end) {
					return errors.Join(append(errs, fmt.Errorf("-budget %s is used up in round %d, %s", b.budget, round+1, key))...)
				}
				res, err := b.measure(ctx, p, c.refs)
				if ctx.Err() != nil {
					continue
				}
				if err != nil {
					fmt.Fprintf(os.Stderr, "round %d  %-7s %-10s failed\n", round+1, c.name, p.name)
					failed[key] = true
					errs = append(errs, fmt.Errorf("%s, %s: %w", p.name, c.name, err))
					continue
				}
				fmt.Fprintf(os.Stderr, "round %d  %-7s %-10s %6.2f s  CPU %6.2f s  written %4d MB  disk %4d MB\n", round+1, c.name, p.name,
					res.wall.Seconds(), res.cpu.Seconds(), res.written/1e6, res.disk/1e6)
				b.results[key] = append(b.results[key], res)
			}
		}
	}
	return errors.Join(append(errs, context.Cause(ctx))...)
}
