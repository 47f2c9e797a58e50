// Package cgroupfile reads the text files of the kernel's control groups. It imports next to nothing, so that a
// supervisor can count OOM kills without the cgroup manager.
package cgroupfile

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// Max is what the word "max" (no limit) parses to.
const Max = ^uint64(0)

// ReadOOMKills returns how many processes of a control group the kernel's OOM killer has killed since the group was
// made: the oom_kill line of memory.events (cgroup v2, nested groups counted) or memory.oom_control (v1, since Linux 4.13).
func ReadOOMKills(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read oom kills: %w", err)
	}
	n, ok := Value(b, "oom_kill")
	if !ok {
		return 0, fmt.Errorf("read oom kills: %s has no oom_kill counter", path)
	}
	return n, nil
}

// Value finds key in a flat keyed file ("key value" lines) and returns its value; false when the key is absent or its
// value is no number.
func Value(data []byte, key string) (uint64, bool) {
	for line, rest := nextLine(data); line != nil; line, rest = nextLine(rest) {
		k, v, ok := bytes.Cut(line, []byte{' '})
		if ok && string(k) == key {
			return Uint(v)
		}
	}
	return 0, false
}

// Each calls f for every well-formed "key value" line of a flat keyed file; other lines are skipped.
func Each(data []byte, f func(key []byte, value uint64)) {
	for line, rest := nextLine(data); line != nil; line, rest = nextLine(rest) {
		k, v, ok := bytes.Cut(line, []byte{' '})
		if !ok {
			continue
		}
		if n, ok := Uint(v); ok {
			f(k, n)
		}
	}
}

// Lines calls f for every line, without its newline and surrounding blanks; empty lines are skipped.
func Lines(data []byte, f func(line []byte)) {
	for line, rest := nextLine(data); line != nil; line, rest = nextLine(rest) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			f(line)
		}
	}
}

// Uint parses a file or a field that holds one number or "max"; surrounding blanks are ignored.
func Uint(b []byte) (uint64, bool) {
	b = bytes.TrimSpace(b)
	if string(b) == "max" {
		return Max, true
	}
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b), 10, 64)
	return n, err == nil
}

// nextLine splits off the first line; line is nil at the end of data.
func nextLine(data []byte) (line, rest []byte) {
	if len(data) == 0 {
		return nil, nil
	}
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return data[:i:i], data[i+1:]
	}
	return data, nil
}
