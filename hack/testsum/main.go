// Testsum judges test runs: it prints what the failed tests printed, lists the skipped ones with their
// reasons, and counts. It reads the list and the NAME.log and NAME.status files that hack/run-tests.sh leaves, one
// folder per run. A test that ran several times (as root, unprivileged) failed if it failed once, and was
// skipped if it was skipped every time. The last line is "N passed, N failed, N skipped"; the status is 0
// where something passed and nothing failed.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	var s summary
	flag.Func("check", "name=status of a check that is no test; counted as one", s.addCheck)
	flag.Parse()
	for _, dir := range flag.Args() {
		if err := s.addRun(dir); err != nil {
			fmt.Fprintln(os.Stderr, "testsum:", err)
			os.Exit(2)
		}
	}
	if !s.print(os.Stdout) {
		os.Exit(1)
	}
}

// event is a line of `go tool test2json`.
type event struct {
	Action, Package, Test, Output string
}

type result struct {
	outcome string // "pass", "fail" or "skip"; "" while it runs
	run     string // the run it comes from
	output  []string
}

type summary struct {
	names   []string // in the order first seen
	results map[string][]*result
}

func (s *summary) add(name string, r *result) {
	if s.results == nil {
		s.results = map[string][]*result{}
	}
	if s.results[name] == nil {
		s.names = append(s.names, name)
	}
	s.results[name] = append(s.results[name], r)
}

func (s *summary) addCheck(arg string) error {
	name, status, ok := strings.Cut(arg, "=")
	if !ok {
		return fmt.Errorf("%q: want name=status", arg)
	}
	r := &result{outcome: "pass", run: "check", output: []string{"its output is above\n"}}
	if status != "0" {
		r.outcome = "fail"
	}
	s.add(name, r)
	return nil
}

// addRun reads the logs in dir of the packages in its list, a line each: import path, folder, name (from hack/testbin.sh).
func (s *summary) addRun(dir string) error {
	list := filepath.Join(dir, "list")
	text, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) != 3 {
			return fmt.Errorf("%s: %q: want three fields", list, line)
		}
		log := filepath.Join(dir, fields[2]+".log")
		cmd := exec.Command("go", "tool", "test2json", "-p", fields[0])
		if cmd.Stdin, err = os.Open(log); err != nil {
			return err
		}
		events, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("test2json %s: %w", log, err)
		}
		status, err := os.ReadFile(filepath.Join(dir, fields[2]+".status"))
		if err != nil {
			return err
		}
		if err := s.addPackage(fields[1], filepath.Base(dir), bytes.NewReader(events), strings.TrimSpace(string(status))); err != nil {
			return fmt.Errorf("%s: %w", log, err)
		}
	}
	return nil
}

// addPackage takes the events of one package's tests and the exit status of their program.
func (s *summary) addPackage(folder, run string, events io.Reader, status string) error {
	tests := map[string]*result{}
	whole := &result{run: run} // what the package printed outside its tests
	var order []string
	scanner := bufio.NewScanner(events)
	scanner.Buffer(nil, 64<<20)
	for scanner.Scan() {
		var e event
		if err := json.Unmarshal(scanner.Bytes(), &e); err != nil {
			return err
		}
		r := whole
		if e.Test != "" {
			if r = tests[e.Test]; r == nil {
				r = &result{run: run}
				tests[e.Test] = r
				order = append(order, e.Test)
			}
		}
		switch e.Action {
		case "output":
			r.output = append(r.output, e.Output)
		case "pass", "fail", "skip":
			r.outcome = e.Action
		}
	}
	if err := scanner.Err(); err != nil {
		return err
	}
	failed := false
	for _, name := range order {
		r := tests[name]
		if r.outcome == "" { // it panicked, was killed or ran out of time
			r.outcome = "fail"
			r.output = append(r.output, whole.output...)
		}
		failed = failed || r.outcome == "fail"
		s.add(folder+" "+name, r)
	}
	if status != "0" && !failed { // TestMain failed, a goroutine panicked between two tests
		whole.outcome = "fail"
		whole.output = append(whole.output, "exit status "+status+"\n")
		s.add(folder, whole)
	}
	return nil
}

// outcome of all runs of one test together.
func outcome(results []*result) string {
	has := func(what string) bool {
		return slices.ContainsFunc(results, func(r *result) bool { return r.outcome == what })
	}
	switch {
	case has("fail"):
		return "fail"
	case has("pass"):
		return "pass"
	}
	return "skip"
}

// print reports whether all is well.
func (s *summary) print(w io.Writer) bool {
	count := map[string]int{}
	reasons := map[string][]string{}
	var order []string
	for _, name := range s.names {
		results := s.results[name]
		what := outcome(results)
		count[what]++
		switch what {
		case "fail":
			for _, r := range results {
				if r.outcome == "fail" {
					fmt.Fprintf(w, "\n--- failed: %s (%s)\n%s", name, r.run, strings.Join(r.output, ""))
				}
			}
		case "skip":
			// The run with the most rights, the last, says why.
			reason := skipReason(results[len(results)-1].output)
			if reasons[reason] == nil {
				order = append(order, reason)
			}
			reasons[reason] = append(reasons[reason], name)
		}
	}
	for _, reason := range order {
		fmt.Fprintf(w, "\n--- skipped: %s\n", reason)
		for _, name := range reasons[reason] {
			fmt.Fprintf(w, "    %s\n", name)
		}
	}
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
	return count["fail"] == 0 && count["pass"] > 0
}

// skipReason is what the test said last, less the place in the source.
func skipReason(output []string) string {
	for _, line := range slices.Backward(output) {
		text := strings.TrimSpace(line)
		if text == "" || strings.HasPrefix(text, "---") || strings.HasPrefix(text, "===") {
			continue
		}
		if place, reason, ok := strings.Cut(text, ": "); ok && strings.Contains(place, ".go:") {
			return reason
		}
		return text
	}
	return "no reason given"
}
