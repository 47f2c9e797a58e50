package main

import (
	"archive/tar"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseList(t *testing.T) {
	got, err := parseList(strings.NewReader("# why\n\na [x] b: c | sym: 1 | because\n"))
	want := list{"a [x] b: c": {"sym: 1", "because"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(exception{})); err != nil || diff != "" {
		t.Errorf("parseList: %v (-want +got):\n%s", err, diff)
	}
	for in, want := range map[string]string{
		"a | b":                     "1: want NAME | SYMPTOM | REASON",
		"\na |   | c":               "2: want NAME | SYMPTOM | REASON",
		"a | b | c\na | d | e":      `2: "a" is listed twice`,
		"a | b | c | d":             "1: want NAME | SYMPTOM | REASON",
		"no separator at all, none": "1: want NAME | SYMPTOM | REASON",
	} {
		if _, err := parseList(strings.NewReader(in)); err == nil || err.Error() != want {
			t.Errorf("parseList(%q) = %v; want %s", in, err, want)
		}
	}
}

func TestLists(t *testing.T) {
	for _, path := range []string{"known-failures.txt", "excluded.txt"} {
		if _, err := readList(path); err != nil {
			t.Error(err)
		}
	}
}

func TestPatterns(t *testing.T) {
	p := list{"a. [Conformance]": {}}.patterns()
	if len(p) != 1 {
		t.Fatalf("patterns = %q; want one", p)
	}
	for name, want := range map[string]bool{"a. [Conformance]": true, "a. [Conformance] b": false, "ab [Conformance]": false} {
		if got := regexp.MustCompile(p[0]).MatchString(name); got != want {
			t.Errorf("%s matches %q = %t; want %t", p[0], name, got, want)
		}
	}
}

const reportText = `[{"SuiteConfig": {"RandomSeed": 7}, "RunTime": 2000000000, "SpecReports": [
 {"LeafNodeType": "BeforeSuite", "State": "passed"},
 {"ContainerHierarchyTexts": ["[k8s.io] A", "b"], "LeafNodeText": "c", "LeafNodeType": "It", "State": "passed"},
 {"ContainerHierarchyTexts": ["A"], "LeafNodeText": "was known", "LeafNodeType": "It", "State": "passed"},
 {"LeafNodeText": "not in focus", "LeafNodeType": "It", "State": "skipped"},
 {"LeafNodeText": "excluded", "LeafNodeType": "It", "State": "skipped"},
 {"LeafNodeText": "no feature", "LeafNodeType": "It", "State": "skipped", "Failure": {"Message": "no AppArmor"}},
 {"LeafNodeText": "known", "LeafNodeType": "It", "State": "failed", "Failure": {"Message": "cannot exec\nUnexpected error:\n    <*status.Error | 0x1>: \n    rpc error: Unimplemented\n    {\n"}},
 {"LeafNodeText": "otherwise", "LeafNodeType": "It", "State": "failed", "Failure": {"Message": "rpc error: Internal"}},
 {"LeafNodeText": "hung", "LeafNodeType": "It", "State": "timedout", "Failure": {"Message": "A spec timeout occurred",
   "Location": {"FileName": "pod.go", "LineNumber": 3}}}]}]`

func TestSummarize(t *testing.T) {
	var all []suiteReport
	if err := json.Unmarshal([]byte(reportText), &all); err != nil {
		t.Fatal(err)
	}
	u := exception{"Unimplemented", "not yet"}
	got := summarize(all[0], list{"known": u, "otherwise": u, "A was known": u}, list{"excluded": {"", "no image"}})
	want := summary{
		Seed: 7, Seconds: 2, Passed: 2, KnownPassed: []string{"A was known"}, UnlistedCount: 2,
		Skipped: []result{{Name: "excluded", Why: "no image"}, {Name: "no feature", Why: "no AppArmor"}},
		Failed: []result{
			{Name: "known", Why: "failed: cannot exec: rpc error: Unimplemented", Where: ":0", Known: "not yet"},
			{Name: "otherwise", Why: "failed: rpc error: Internal", Where: ":0"},
			{Name: "hung", Why: "timedout: A spec timeout occurred", Where: "pod.go:3"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("summarize (-want +got):\n%s", diff)
	}
	if got.ok() {
		t.Error("ok() with failures that are not listed = true; want false")
	}
}

func TestSummarizeNothing(t *testing.T) {
	s := summarize(suiteReport{SpecialSuiteFailureReasons: []string{"Interrupted by User"}}, nil, nil)
	if diff := cmp.Diff([]string{"no specification was run", "Interrupted by User"}, s.Problems); diff != "" || s.ok() {
		t.Errorf("ok() = %t; want false. Problems (-want +got):\n%s", s.ok(), diff)
	}
}

func TestLayerOrder(t *testing.T) {
	tr := tree{}
	tr.link("a", "z")
	tr.file("z", "x", 0o755)
	tr.dir("zz", 0o755)
	tr.file("zz/y", "", 0o644)
	var got []string
	for r := tar.NewReader(strings.NewReader(string(tr.layer().Tar))); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		got = append(got, h.Name)
	}
	if diff := cmp.Diff([]string{"zz/", "z", "zz/y", "a"}, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestLibraries(t *testing.T) {
	for name, want := range map[string]string{
		"usr/lib/x86_64-linux-gnu/libssl.so.3":        "lib/x86_64-linux-gnu/libssl.so.3",
		"lib64/ld-linux-x86-64.so.2":                  "lib64/ld-linux-x86-64.so.2",
		"usr/lib/x86_64-linux-gnu/gconv/IBM1.so":      "",
		"usr/share/doc/libssl3/changelog.so":          "",
		"lib/x86_64-linux-gnu/libc.so.6":              "lib/x86_64-linux-gnu/libc.so.6",
		"usr/lib/x86_64-linux-gnu/perl-base/x.pl":     "",
		"usr/lib/x86_64-linux-gnu/pkgconfig/libc.so1": "",
	} {
		if got := libraries(name); got != want {
			t.Errorf("libraries(%s) = %q; want %q", name, got, want)
		}
	}
}
