package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

// list names specifications.
type list map[string]exception

// exception is why a specification cannot pass. Symptom is part of the message that it then fails with: the same
// specification may fail for another reason, which is no exception.
type exception struct{ symptom, reason string }

// readList reads lines "NAME | SYMPTOM | REASON", where NAME is the full name of a specification. Blank lines and
// those that begin with # are for people.
func readList(path string) (list, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := parseList(f)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	return l, nil
}

func parseList(r io.Reader) (list, error) {
	l := list{}
	s := bufio.NewScanner(r)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, " | ")
		if len(f) != 3 || slices.ContainsFunc(f, func(s string) bool { return strings.TrimSpace(s) == "" }) {
			return nil, fmt.Errorf("%d: want NAME | SYMPTOM | REASON", n)
		}
		if _, twice := l[f[0]]; twice {
			return nil, fmt.Errorf("%d: %q is listed twice", n, f[0])
		}
		l[f[0]] = exception{f[1], f[2]}
	}
	return l, s.Err()
}

// patterns are the regular expressions that match the listed names and nothing else.
func (l list) patterns() []string {
	var p []string
	for name := range l {
		p = append(p, regexp.QuoteMeta(name)+"$")
	}
	slices.Sort(p)
	return p
}
