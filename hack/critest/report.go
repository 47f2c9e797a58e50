package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// suiteReport is the part of Ginkgo's JSON report that is needed here.
type suiteReport struct {
	SuiteConfig                struct{ RandomSeed int64 }
	RunTime                    time.Duration
	SpecialSuiteFailureReasons []string
	SpecReports                []specReport
}

type specReport struct {
	ContainerHierarchyTexts []string
	LeafNodeText            string
	LeafNodeType            string
	State                   string
	RunTime                 time.Duration
	Failure                 struct {
		Message  string
		Location struct {
			FileName   string
			LineNumber int
		}
	}
}

func (s specReport) name() string {
	if s.LeafNodeType != "It" { // BeforeSuite and the like
		return s.LeafNodeType
	}
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

// result is a specification in the summary.
type result struct {
	Name    string  `json:"name"`
	Why     string  `json:"why,omitempty"`   // first line of the failure, or why it was skipped
	Where   string  `json:"where,omitempty"` // FILE:LINE of the failed assertion
	Known   string  `json:"known,omitempty"` // why a failure was expected
	Seconds float64 `json:"seconds"`
}

// summary is what is written as report.json.
type summary struct {
	Seed          int64    `json:"seed"`
	Seconds       float64  `json:"seconds"`
	Passed        int      `json:"passed"`
	Failed        []result `json:"failed"`
	Skipped       []result `json:"skipped"`
	UnlistedCount int      `json:"failed_unlisted"`
	KnownPassed   []string `json:"known_failures_that_passed,omitempty"`
	Problems      []string `json:"problems,omitempty"`
}

func readReport(path string) (suiteReport, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return suiteReport{}, err
	}
	var all []suiteReport
	if err := json.Unmarshal(raw, &all); err != nil {
		return suiteReport{}, fmt.Errorf("%s: %w", path, err)
	}
	if len(all) != 1 {
		return suiteReport{}, fmt.Errorf("%s: %d suites; want 1", path, len(all))
	}
	return all[0], nil
}

// summarize sorts a report. Specifications that FOCUS or SKIP left out do not count; those in excluded do, with
// the reason that stands there.
func summarize(r suiteReport, known, excluded list) summary {
	s := summary{Seed: r.SuiteConfig.RandomSeed, Seconds: r.RunTime.Seconds(), Failed: []result{}, Skipped: []result{}}
	for _, spec := range r.SpecReports {
		name := spec.name()
		x := result{Name: name, Seconds: spec.RunTime.Seconds()}
		switch {
		case spec.State == "passed" && spec.LeafNodeType != "It":
		case spec.State == "passed":
			s.Passed++
			if _, ok := known[name]; ok {
				s.KnownPassed = append(s.KnownPassed, name)
			}
		case spec.State == "skipped" || spec.State == "pending":
			x.Why = firstLine(spec.Failure.Message)
			if e, ok := excluded[name]; ok {
				x.Why = e.reason
			} else if x.Why == "" {
				continue
			}
			s.Skipped = append(s.Skipped, x)
		default:
			x.Why = spec.State + ": " + firstLine(spec.Failure.Message)
			x.Where = fmt.Sprintf("%s:%d", spec.Failure.Location.FileName, spec.Failure.Location.LineNumber)
			if e, ok := known[name]; ok && strings.Contains(spec.Failure.Message, e.symptom) {
				x.Known = e.reason
			} else {
				s.UnlistedCount++
			}
			s.Failed = append(s.Failed, x)
		}
	}
	if s.Passed+len(s.Failed)+len(s.Skipped) == 0 {
		s.Problems = append(s.Problems, "no specification was run")
	}
	for _, reason := range r.SpecialSuiteFailureReasons {
		if reason != "" && len(s.Failed) == 0 {
			s.Problems = append(s.Problems, reason)
		}
	}
	return s
}

func (s summary) ok() bool { return s.UnlistedCount == 0 && len(s.Problems) == 0 }

// firstLine is the first line of a failure, and the error's where Gomega puts it further down: below a line that the
// specification chose and one that names the type.
func firstLine(message string) string {
	var first, cause string
	isCause := false
	for line := range strings.Lines(message) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line == "Unexpected error:":
		case strings.HasPrefix(line, "<*") && strings.HasSuffix(line, ">:"):
			isCause = true
			continue
		case isCause && cause == "":
			cause = line
		case first == "":
			first = line
		}
		isCause = false
	}
	switch {
	case first == "":
		return cause
	case cause == "" || strings.Contains(first, cause):
		return first
	}
	return first + ": " + cause
}

func (s summary) write(path string) error {
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}

func (s summary) print(w io.Writer) {
	for _, x := range s.Skipped {
		fmt.Fprintf(w, "skipped: %s\n         %s\n", x.Name, x.Why)
	}
	for _, x := range s.Failed {
		state := "FAILED"
		if x.Known != "" {
			state = "known failure"
		}
		fmt.Fprintf(w, "%s: %s\n         %s\n         %s\n", state, x.Name, x.Why, x.Where)
		if x.Known != "" {
			fmt.Fprintf(w, "         listed: %s\n", x.Known)
		}
	}
	for _, name := range s.KnownPassed {
		fmt.Fprintf(w, "passed, but listed as a known failure: %s\n", name)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "problem: %s\n", p)
	}
	fmt.Fprintf(w, "critest: %d passed, %d failed (%d listed), %d skipped; %.0f s, seed %d\n",
		s.Passed, len(s.Failed), len(s.Failed)-s.UnlistedCount, len(s.Skipped), s.Seconds, s.Seed)
}
