package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEntries: every entry still fits the code, and its test is there. Without it an entry that a change has left behind
// is found only by a run of all.
func TestEntries(t *testing.T) {
	text, err := os.ReadFile("mutants.txt")
	if err != nil {
		t.Fatal(err)
	}
	list, err := parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	const root = "../.."
	for _, m := range list {
		if _, err := m.source(filepath.Join(root, m.file)); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		name, _, _ := strings.Cut(m.test, "/")
		if _, err := os.Stat(filepath.Join(root, m.module, "go.mod")); err != nil {
			t.Errorf("%s: module: %v", m.name, err)
		}
		files, err := filepath.Glob(filepath.Join(root, m.module, m.pkg, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		is, found := regexp.MustCompile(`(?m)^func `+name+`\(`), false
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found = found || is.Match(source)
		}
		if !found {
			t.Errorf("%s: %s has no %s", m.name, m.pkg, name)
		}
	}
}
