// Command mutants takes protections out of the code, one at a time, and sees that the test of each fails. The tree is left
// alone: the go command overlays the changed file. The list is mutants.txt; arguments pick entries by a part of their name.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// mutant is one change of a file and the test that has to fail with it.
type mutant struct {
	name, file string
	module     string   // folder of the module that pkg is in, "." for the one of the repository
	flags      []string // of go test there
	pkg, test  string
	hunks      []hunk
}

type hunk struct{ before, after string }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(only []string) error {
	text, err := os.ReadFile("hack/mutants/mutants.txt")
	if err != nil {
		return err
	}
	list, err := parse(string(text))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	survived := 0
	for _, m := range list {
		if !chosen(m.name, only) {
			continue
		}
		begin := time.Now()
		verdict, err := m.try(dir)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if verdict != "killed" {
			survived++
		}
		fmt.Printf("%-9s %s (%s, %s)\n", verdict, m.name, m.test, time.Since(begin).Round(time.Second))
	}
	if survived > 0 {
		return fmt.Errorf("%d mutants survived: their tests prove nothing", survived)
	}
	return nil
}

func chosen(name string, only []string) bool {
	for _, o := range only {
		if strings.Contains(name, o) {
			return true
		}
	}
	return len(only) == 0
}

// parse reads entries of the form "== NAME", "file FILE", "test PACKAGE TEST", and lines with "-" and "+" before them: what is
// replaced and by what. A "-" after a "+" begins another place. "module FOLDER FLAGS" is for a package of another module,
// relative to its folder, and the flags that go test needs there.
func parse(text string) (list []mutant, err error) {
	for n, line := range strings.Split(text, "\n") {
		key, rest, _ := strings.Cut(line, " ")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
			continue
		case key == "==":
			list = append(list, mutant{name: rest, module: "."})
			continue
		case len(list) == 0:
			return nil, fmt.Errorf("line %d is before the first entry", n+1)
		}
		m := &list[len(list)-1]
		switch {
		case key == "file":
			m.file = rest
		case key == "module":
			fields := strings.Fields(rest)
			if len(fields) == 0 {
				return nil, fmt.Errorf("line %d: module: no folder", n+1)
			}
			m.module, m.flags = fields[0], fields[1:]
		case key == "test":
			m.pkg, m.test, _ = strings.Cut(rest, " ")
		case line[0] == '-':
			if n := len(m.hunks); n == 0 || m.hunks[n-1].after != "" {
				m.hunks = append(m.hunks, hunk{})
			}
			m.hunks[len(m.hunks)-1].before += line[1:] + "\n"
		case line[0] == '+' && len(m.hunks) > 0:
			m.hunks[len(m.hunks)-1].after += line[1:] + "\n"
		default:
			return nil, fmt.Errorf("line %d: %q is no part of an entry", n+1, line)
		}
	}
	for _, m := range list {
		if m.file == "" || m.test == "" || len(m.hunks) == 0 {
			return nil, fmt.Errorf("%s: it needs a file, a test and what is to be replaced", m.name)
		}
	}
	return list, nil
}

// source is the file as the mutant changes it.
func (m *mutant) source(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	source := string(data)
	for _, h := range m.hunks {
		if n := strings.Count(source, h.before); n != 1 {
			return "", fmt.Errorf("%s has %d times what is to be replaced, %q", m.file, n, h.before)
		}
		source = strings.Replace(source, h.before, h.after, 1)
	}
	return source, nil
}

// try says "killed" where the test fails, as it should, and "SURVIVED" where it passes or is skipped.
func (m *mutant) try(dir string) (string, error) {
	root, err := os.Getwd()
	if err != nil {
		return "", err
	}
	source, err := m.source(m.file)
	if err != nil {
		return "", err
	}
	changed, overlay := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	mapping, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, m.file): changed}})
	if err != nil {
		return "", err
	}
	if err := errors.Join(
		os.WriteFile(changed, []byte(source), 0o644),
		os.WriteFile(overlay, mapping, 0o644),
	); err != nil {
		return "", err
	}
	args := append([]string{"test", "-overlay", overlay, "-vet=off", "-count=1", "-v"}, m.flags...)
	test := exec.Command("go", append(args, "-run", "^"+strings.ReplaceAll(m.test, "/", "$/^")+"$", m.pkg)...)
	test.Dir, test.Env = m.module, os.Environ()
	if m.module != "." {
		test.Env = append(test.Env, "CGO_ENABLED=0")
	} else if m.pkg == "./hack/e2e" || m.pkg == "./cmd/cri-shim-oci" {
		// These build all of bin themselves. What is left there is whole again before this returns.
		test.Env = append(test.Env, "GOFLAGS=-overlay="+overlay)
		defer exec.Command("make", "-s", "build").Run()
	} else {
		// The programs that other tests run are built aside, so that no other test runs them.
		build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-overlay", overlay, "-o", dir+"/",
			"./cmd/cri-shim-supervisor", "./cmd/cri-shim-init", "./cmd/cri-shim-classes") // all, or they are built from the tree
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("it does not build: %w\n%s", err, out)
		}
		test.Env = append(test.Env, "CRI_SHIM_LIBEXEC="+dir)
	}
	out, err := test.CombinedOutput()
	switch {
	case strings.Contains(string(out), "--- FAIL: "+m.test):
		return "killed", nil
	case err == nil:
		return "SURVIVED", nil
	}
	return "", fmt.Errorf("the test did not run: %w\n%s", err, out)
}
