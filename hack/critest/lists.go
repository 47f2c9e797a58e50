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

// list names specifications, each with a reason.
type list map[string]string

// readList reads lines "NAME: REASON", where NAME is the full name of a specification, up to the last ": ". Blank
// lines and those that begin with # are for people.
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
		i := strings.LastIndex(line, ": ")
		if i <= 0 {
			return nil, fmt.Errorf("%d: want NAME: REASON", n)
		}
		name, reason := line[:i], strings.TrimSpace(line[i+2:])
		if _, twice := l[name]; twice {
			return nil, fmt.Errorf("%d: %q is listed twice", n, name)
		}
		l[name] = reason
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
