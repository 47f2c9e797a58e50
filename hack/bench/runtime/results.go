package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// operations are the rows: run is create and start together, from nothing to a workload that is executed.
var operations = []string{"create", "start", "run", "exec", "delete"}

// cpuTime reads a cgroup's usage; 0 without a file.
func cpuTime(file string) (time.Duration, error) {
	if file == "" {
		return 0, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return parseUsage(string(text))
}

// parseUsage understands cpuacct.usage (nanoseconds) and cpu.stat (microseconds).
func parseUsage(text string) (time.Duration, error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		unit := time.Nanosecond
		if len(f) == 2 && f[0] == "usage_usec" {
			f, unit = f[1:], time.Microsecond
		}
		if len(f) == 1 {
			n, err := strconv.ParseInt(f[0], 10, 64)
			return time.Duration(n) * unit, err
		}
	}
	return 0, errors.New("neither cpuacct.usage nor cpu.stat")
}

// percentile of durations by the nearest-rank method, 0 of none; percentile 0 is the least.
func percentile(p int, of []time.Duration) time.Duration {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func print(w io.Writer, o *options, all []*measured) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(title string, cell func(*measured) string) {
		fmt.Fprint(t, title)
		for _, m := range all {
			fmt.Fprint(t, "\t", cell(m))
		}
		fmt.Fprintln(t)
	}
	row(fmt.Sprintf("ms, %d rounds: minimum / median / 95th percentile", o.rounds), func(m *measured) string { return m.name })
	for _, what := range operations {
		row(what, func(m *measured) string {
			took := m.took[what]
			return fmt.Sprintf("%.2f / %.2f / %.2f", ms(percentile(0, took)), ms(percentile(50, took)), ms(percentile(95, took)))
		})
	}
	fmt.Fprintln(t)
	if o.cpu != "" {
		row("CPU of runtime and container, ms: median", func(m *measured) string { return m.name })
		for _, what := range operations {
			row(what, func(m *measured) string { return fmt.Sprintf("%.2f", ms(percentile(50, m.cpu[what]))) })
		}
		fmt.Fprintln(t)
	}
	row("times as long as "+all[0].name+": of minima / of medians", func(m *measured) string { return m.name })
	for _, what := range operations {
		row(what, func(m *measured) string {
			return ratio(0, m.took[what], all[0].took[what]) + " / " + ratio(50, m.took[what], all[0].took[what])
		})
	}
	return t.Flush()
}

func ratio(p int, of, to []time.Duration) string {
	if percentile(p, to) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f", float64(percentile(p, of))/float64(percentile(p, to)))
}
