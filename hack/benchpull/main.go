// Command benchpull measures pulls from a registry on this machine, by this store and by others, in turn: wall time,
// CPU time, bytes written, and what is on the disk afterwards. Each pull begins with an empty store.
//
// It is what make bench-pull runs, as root and in a mount namespace of its own: the others mount what they unpack to.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/image"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "pull-into" {
		if err := pullInto(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "benchpull:", err)
		os.Exit(1)
	}
}

// pullInto is the process in which this store is measured.
func pullInto(root string, refs []string) error {
	if name := os.Getenv("CPU_PROFILE"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	s, err := image.Open(context.Background(), image.Config{Root: root, RegistryConfigDir: []string{}, GzipProgram: os.Getenv("GZIP_PROGRAM")})
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if _, err := s.Pull(context.Background(), ref, nil, image.PullOptions{}); err != nil {
			return err
		}
	}
	fmt.Println("pulled")
	return s.Close()
}

type result struct {
	wall, synced, cpu time.Duration
	written, disk     int64
}

func run() error {
	dir := flag.String("dir", "", "directory on the file system to measure (default: a temporary one)")
	rounds := flag.Int("rounds", 3, "pulls of each image by each program")
	size := flag.Int("size", 200, "MB of the compressed image of 7 layers; the others are in proportion")
	only := flag.String("cases", "gzip,zstd,40 layers,shared", "what to pull")
	programs := flag.String("programs", "cri-shim,containerd,podman,skopeo", "whom to measure, where installed")
	flag.Parse()
	if *dir == "" {
		tmp, err := os.MkdirTemp("/var/tmp", "benchpull-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		*dir = tmp
	}
	r, err := registry.New(registry.Options{Root: filepath.Join(*dir, "registry")})
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.Listen("127.0.0.1:0"); err != nil {
		return err
	}
	cases, err := makeImages(r, *size, strings.Split(*only, ","))
	if err != nil {
		return err
	}
	var peers []peer
	for name := range strings.SplitSeq(*programs, ",") {
		if p := newPeer(name); p != nil {
			peers = append(peers, *p)
		} else {
			fmt.Printf("%s is not installed\n", name)
		}
	}
	syscall.Sync() // what making the images has left to write
	// What was measured until an interruption is reported too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	all := map[string][]result{}
	for round := range *rounds {
		for _, c := range cases {
			for _, p := range peers {
				if ctx.Err() != nil {
					continue
				}
				res, err := measure(p, filepath.Join(*dir, "store"), c.refs)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", p.name, c.name, err)
				}
				fmt.Fprintf(os.Stderr, "round %d  %-9s %-10s %6.2f s  CPU %6.2f s\n", round+1, c.name, p.name, res.wall.Seconds(), res.cpu.Seconds())
				all[c.name+"/"+p.name] = append(all[c.name+"/"+p.name], res)
			}
		}
	}
	report(cases, peers, all)
	return nil
}

// measure pulls into an empty directory.
func measure(p peer, dir string, refs []string) (result, error) {
	var res result
	defer func() {
		unmountBelow(dir)
		os.RemoveAll(dir)
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return res, err
	}
	stop, daemon, err := p.start(dir)
	if err != nil {
		return res, err
	}
	defer stop()
	before, err := usageOf(daemon)
	if err != nil {
		return res, err
	}
	begin := time.Now()
	done, err := p.pull(dir, refs)
	if err != nil {
		return res, err
	}
	res.wall = done.Sub(begin)
	f, err := os.Open(dir)
	if err != nil {
		return res, err
	}
	defer f.Close()
	if err := syncfs(f); err != nil {
		return res, err
	}
	res.synced = time.Since(begin)
	after, err := usageOf(daemon)
	if err != nil {
		return res, err
	}
	res.cpu, res.written = after.cpu-before.cpu, after.written-before.written
	res.disk, err = diskUse(dir)
	return res, err
}

func report(cases []benchCase, peers []peer, all map[string][]result) {
	fmt.Println("\nMedians. \"on disk\" adds the time until all of it has reached the disk; ratios are to cri-shim.")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, c := range cases {
		fmt.Fprintf(w, "\n%s\twall s\tx\ton disk s\tx\tCPU s\tx\twritten MB\tdisk MB\t\n", c.name)
		base := all[c.name+"/"+peers[0].name]
		for _, p := range peers {
			rs := all[c.name+"/"+p.name]
			if len(rs) == 0 || len(base) == 0 {
				continue
			}
			get := func(rs []result, f func(result) float64) float64 {
				v := make([]float64, 0, len(rs))
				for _, r := range rs {
					v = append(v, f(r))
				}
				slices.Sort(v)
				return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
			}
			wall := func(r result) float64 { return r.wall.Seconds() }
			synced := func(r result) float64 { return r.synced.Seconds() }
			cpu := func(r result) float64 { return r.cpu.Seconds() }
			fmt.Fprintf(w, "%s\t%.2f\t%.1f\t%.2f\t%.1f\t%.2f\t%.1f\t%.0f\t%.0f\t\n", p.name,
				get(rs, wall), get(rs, wall)/get(base, wall), get(rs, synced), get(rs, synced)/get(base, synced),
				get(rs, cpu), get(rs, cpu)/get(base, cpu),
				get(rs, func(r result) float64 { return float64(r.written) / 1e6 }), get(rs, func(r result) float64 { return float64(r.disk) / 1e6 }))
		}
	}
	w.Flush()
}
