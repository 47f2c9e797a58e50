package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// Measures that are made of several calls.
const (
	coldStart = "cold start (the three)"
	stop      = "stop"
)

// results are what was measured of one runtime.
type results struct {
	rows         []row
	idle, loaded memory
}

// row is one measure in all rounds.
type row struct {
	network, what string
	took          []time.Duration
}

func (r *results) add(network, what string, took ...time.Duration) {
	for i := range r.rows {
		if r.rows[i].network == network && r.rows[i].what == what {
			r.rows[i].took = append(r.rows[i].took, took...)
			return
		}
	}
	r.rows = append(r.rows, row{network, what, took})
}

func (r *results) merge(other results) {
	for _, o := range other.rows {
		r.add(o.network, o.what, o.took...)
	}
}

// get is what was measured, nil where the runtime has no such measure.
func (r *results) get(network, what string) []time.Duration {
	for _, row := range r.rows {
		if row.network == network && row.what == what {
			return row.took
		}
	}
	return nil
}

// percentile of durations by the nearest-rank method, 0 of none.
func percentile(p int, of []time.Duration) time.Duration {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func print(w io.Writer, o *options) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := func(title string) {
		fmt.Fprint(t, title)
		for _, target := range o.targets {
			fmt.Fprint(t, "\t", target.name)
		}
		fmt.Fprintln(t)
	}
	for _, network := range append(slices.Clone(o.networks), ofLists) {
		switch {
		case network != ofLists:
			head(fmt.Sprintf("%s network, ms: median of %d (90th percentile)", network, o.rounds))
		case o.pods > 0:
			head(fmt.Sprintf("%d idle pods, ms: median of %d (90th percentile)", o.pods, listRounds))
		}
		for _, what := range measures(o, network) {
			fmt.Fprint(t, what)
			for _, target := range o.targets {
				fmt.Fprint(t, "\t", cell(target.results.get(network, what)))
			}
			fmt.Fprintln(t)
		}
		fmt.Fprintln(t)
	}
	if o.pods > 0 {
		head("memory of the runtime's processes, MiB of PSS")
		printMemory(t, o)
	}
	return t.Flush()
}

// measures are the names of all runtimes' rows, calls before stages.
func measures(o *options, network string) (names []string) {
	var stages []string
	for _, t := range o.targets {
		for _, r := range t.results.rows {
			list := &names
			if r.what[0] == ' ' {
				list = &stages
			}
			if r.network == network && !slices.Contains(*list, r.what) {
				*list = append(*list, r.what)
			}
		}
	}
	return append(names, stages...)
}

func cell(took []time.Duration) string {
	if len(took) == 0 {
		return "-"
	}
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return fmt.Sprintf("%.2f (%.2f)", ms(percentile(50, took)), ms(percentile(90, took)))
}

func printMemory(w io.Writer, o *options) {
	for _, line := range []struct {
		title string
		value func(results) string
	}{
		{"no pods", func(r results) string { return r.idle.String() }},
		{fmt.Sprintf("%d idle pods", o.pods), func(r results) string { return r.loaded.String() }},
		{"per pod, KiB", func(r results) string {
			return fmt.Sprintf("%.0f", float64(r.loaded.pss-r.idle.pss)/1024/float64(o.pods))
		}},
	} {
		fmt.Fprint(w, line.title)
		for _, t := range o.targets {
			fmt.Fprint(w, "\t", line.value(t.results))
		}
		fmt.Fprintln(w)
	}
}

func (m memory) String() string {
	return fmt.Sprintf("%.1f in %d", float64(m.pss)/(1<<20), m.processes)
}
