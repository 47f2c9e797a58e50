package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPercentile(t *testing.T) {
	ten := []time.Duration{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}
	for _, tc := range []struct {
		p    int
		of   []time.Duration
		want time.Duration
	}{{50, nil, 0}, {50, []time.Duration{7}, 7}, {90, []time.Duration{7}, 7}, {50, ten, 5}, {90, ten, 9}, {50, []time.Duration{3, 1, 2}, 2}} {
		if got := percentile(tc.p, tc.of); got != tc.want {
			t.Errorf("percentile(%d, %v) = %d; want %d", tc.p, tc.of, got, tc.want)
		}
	}
	if ten[0] != 10 {
		t.Error("percentile sorts its argument")
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-n", "3", "-network", "cni", "a=unix:///x", "b=/y"})
	if err != nil {
		t.Fatal(err)
	}
	got := []string{o.targets[0].name, o.targets[0].socket, o.targets[1].name, o.targets[1].socket, o.networks[0]}
	if diff := cmp.Diff([]string{"a", "/x", "b", "/y", "cni"}, got); diff != "" || o.rounds != 3 {
		t.Errorf("parse: %d rounds, %s", o.rounds, diff)
	}
	for _, args := range [][]string{{}, {"x"}, {"=x"}, {"a="}, {"-n", "0", "a=b"}, {"-network", "wifi", "a=b"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("parse(%q): no error", args)
		}
	}
}

func TestPrint(t *testing.T) {
	a, b := results{idle: memory{1, 1 << 20}, loaded: memory{2, 11 << 20}}, results{}
	a.add("host", "RunPodSandbox", 2*time.Millisecond)
	a.add("host", "  pod: files", time.Millisecond)
	a.add("host", "stop", 3*time.Millisecond)
	a.add(ofLists, "ListContainers", 5*time.Millisecond)
	b.add("host", "stop", 4*time.Millisecond)
	var out strings.Builder
	err := print(&out, &options{rounds: 1, pods: 10, networks: []string{"host"}, targets: []*target{{name: "a", results: a}, {name: "b", results: b}}})
	if err != nil {
		t.Fatal(err)
	}
	want := `host network, ms: median of 1 (90th percentile)  a            b
RunPodSandbox                                    2.00 (2.00)  -
stop                                             3.00 (3.00)  4.00 (4.00)
  pod: files                                     1.00 (1.00)  -

10 idle pods, ms: median of 10 (90th percentile)  a            b
ListContainers                                    5.00 (5.00)  -

memory of the runtime's processes, MiB of PSS  a          b
no pods                                        1.0 in 1   0.0 in 0
10 idle pods                                   11.0 in 2  0.0 in 0
per pod, KiB                                   1024       0
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("print (-want +got):\n%s", diff)
	}
}

func FuzzParsePSS(f *testing.F) {
	f.Add("5581a1b2c000-7ffd [rollup]\nRss:  900 kB\nPss:   123 kB\n")
	f.Add("Pss: x kB")
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := parsePSS(text); err == nil && n%1024 != 0 {
			t.Errorf("parsePSS(%q) = %d; want whole KiB", text, n)
		}
	})
}
