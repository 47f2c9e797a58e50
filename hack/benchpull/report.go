package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// columns are what is reported of the pulls.
var columns = []struct {
	head, format string
	get          func(result) float64
}{
	{"wall s", "%.2f", func(r result) float64 { return r.wall.Seconds() }},
	{"on disk s", "%.2f", func(r result) float64 { return r.synced.Seconds() }},
	{"CPU s", "%.2f", func(r result) float64 { return r.cpu.Seconds() }},
	{"written MB", "%.0f", func(r result) float64 { return float64(r.written) / 1e6 }},
	{"disk MB", "%.0f", func(r result) float64 { return float64(r.disk) / 1e6 }},
}

func values(rs []result, get func(result) float64) []float64 {
	v := make([]float64, len(rs))
	for i, r := range rs {
		v[i] = get(r)
	}
	return v
}

// times is how many times b is a: the median over the rounds, since a machine is not as fast in all of them.
func times(a, b []float64) float64 {
	q := make([]float64, min(len(a), len(b)))
	for i := range q {
		q[i] = b[i] / a[i]
	}
	return median(q)
}

// report prints a table for each case.
func report(out io.Writer, cases []benchCase, peers []peer, all map[string][]result) {
	fmt.Fprintf(out, "\nMedians. \"on disk\" is until all has reached the disk; x is how many times %s's of the same round.\n", peers[0].name)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, c := range cases {
		fmt.Fprintf(w, "\n%s\tpulls\t", c.name)
		for _, col := range columns {
			fmt.Fprintf(w, "%s\tx\t", col.head)
		}
		fmt.Fprintln(w)
		base := all[c.name+"/"+peers[0].name]
		for _, p := range peers {
			rs := all[c.name+"/"+p.name]
			fmt.Fprintf(w, "%s\t%d\t", p.name, len(rs))
			for _, col := range columns {
				v, first := values(rs, col.get), values(base, col.get)
				switch {
				case len(rs) == 0:
					fmt.Fprint(w, "-\t-\t")
				case len(base) == 0 || slices.Contains(first, 0):
					fmt.Fprintf(w, col.format+"\t-\t", median(v))
				default:
					fmt.Fprintf(w, col.format+"\t%.2f\t", median(v), times(first, v))
				}
			}
			fmt.Fprintln(w)
		}
	}
	w.Flush()
}
