package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// line is one event as test2json writes it.
func line(action, test, output string) string {
	return `{"Action":"` + action + `","Package":"p","Test":"` + test + `","Output":"` + output + `"}` + "\n"
}

func TestSummary(t *testing.T) {
	var s summary
	nobody := line("run", "TestRoot", "") + line("output", "TestRoot", `    a_test.go:5: needs root\n`) + line("skip", "TestRoot", "") +
		line("pass", "TestBoth", "") +
		line("output", "TestKernel", `    b_test.go:7: needs Linux 9.9\n`) + line("skip", "TestKernel", "") +
		line("pass", "TestBad", "")
	root := line("pass", "TestRoot", "") + line("pass", "TestBoth", "") +
		line("output", "TestKernel", `    b_test.go:7: needs Linux 9.9\n`) + line("skip", "TestKernel", "") +
		line("output", "TestBad", `    c_test.go:9: boom\n`) + line("fail", "TestBad", "")
	for _, run := range []struct{ name, events, status string }{{"nobody", nobody, "0"}, {"root", root, "1"}} {
		if err := s.addPackage("cni", run.name, strings.NewReader(run.events), run.status); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.addCheck("lint=0"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if s.print(&out) {
		t.Error("print = true with a failed test; want false")
	}
	want := `
--- failed: cni TestBad (root)
    c_test.go:9: boom

--- skipped: needs Linux 9.9
    cni TestKernel

3 passed, 1 failed, 1 skipped
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("print (-want +got):\n%s", diff)
	}
}

func TestSummaryCrashes(t *testing.T) {
	tests := []struct{ name, events, status, want string }{
		{"in a test", line("run", "TestA", "") + line("output", "TestA", `panic: oh\n`), "2", "--- failed: p TestA (root)\npanic: oh\n"},
		{"outside", line("pass", "TestA", ""), "3", "--- failed: p (root)\nexit status 3\n"},
		{"nothing ran", "", "0", "0 passed, 0 failed, 0 skipped"},
	}
	for _, tt := range tests {
		var s summary
		if err := s.addPackage("p", "root", strings.NewReader(tt.events), tt.status); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if s.print(&out) || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%s: print = %q; want false and %q", tt.name, &out, tt.want)
		}
	}
	var s summary
	if err := s.addCheck("lint=1"); err != nil {
		t.Fatal(err)
	}
	if s.print(&bytes.Buffer{}) {
		t.Error("print = true with a failed check; want false")
	}
}
