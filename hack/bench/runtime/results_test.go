package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPrint(t *testing.T) {
	a := &measured{name: "a", took: map[string][]time.Duration{}, cpu: map[string][]time.Duration{}}
	b := &measured{name: "b", took: map[string][]time.Duration{}, cpu: map[string][]time.Duration{}}
	for _, what := range operations {
		a.add(what, 2*time.Millisecond, time.Millisecond)
		b.add(what, 30*time.Millisecond, 9*time.Millisecond)
		b.add(what, 10*time.Millisecond, 7*time.Millisecond)
	}
	var out strings.Builder
	if err := print(&out, &options{rounds: 2, cpu: "x"}, []*measured{a, b}); err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "run") || strings.HasPrefix(line, "ms") {
			got = append(got, strings.Join(strings.Fields(line), " "))
		}
	}
	want := []string{
		"ms, 2 rounds: minimum / median / 95th percentile a b", "run 2.00 / 2.00 / 2.00 10.00 / 10.00 / 30.00",
		"run 1.00 7.00", "run 1.0 / 1.0 5.0 / 5.0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("print (-want +got):\n%s", diff)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-n", "3", "-dir", "/x", "runc=/usr/bin/runc"})
	if err != nil || o.rounds != 3 || len(o.commands) != 1 || o.commands[0].path != "/usr/bin/runc" {
		t.Errorf("parse = %+v, %v", o, err)
	}
	for _, args := range [][]string{{}, {"-dir", "/x", "runc"}, {"-dir", "/x", "-n", "0"}, {"-dir", "/x", "=y"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("parse(%q): no error", args)
		}
	}
}

func FuzzParseUsage(f *testing.F) {
	f.Add("1234\n")
	f.Add("usage_usec 12\nuser_usec 3\n")
	f.Add("usage_usec x")
	f.Fuzz(func(t *testing.T, text string) {
		if d, err := parseUsage(text); err != nil && d != 0 && !strings.Contains(err.Error(), "range") {
			t.Errorf("parseUsage(%q) = %v, %v", text, d, err)
		}
	})
}
