package cgroup

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
)

// exceptions is the form that v1 knows: a default and a set of exceptions from it, without order.
type exceptions struct {
	allowAll bool
	perms    map[deviceKey]perm
}

// exceptions brings the ordered rules into v1's form. What it cannot express, an exception from an exception ("all of
// major 1 but 1:3"), is an error.
func (l *deviceList) exceptions() (exceptions, error) {
	e := exceptions{allowAll: l.allowAll, perms: map[deviceKey]perm{}}
	for _, r := range l.rules {
		if r.allow != e.allowAll {
			e.perms[r.key] |= r.perm
			continue
		}
		for k, p := range e.perms {
			if p&r.perm == 0 {
				continue
			}
			if !r.key.covers(k) {
				if r.key.overlaps(k) {
					what := map[bool]string{true: "allow", false: "deny"}[r.allow]
					return e, &UnsupportedError{
						Feature: fmt.Sprintf("devices: %s %s %s inside %s", what, r.key, r.perm, k), Needs: "cgroup v2",
					}
				}
				continue
			}
			if p &^= r.perm; p == 0 {
				delete(e.perms, k)
			} else {
				e.perms[k] = p
			}
		}
	}
	e.fold()
	return e, nil
}

// fold gives an exception what the wider ones grant it: v1 wants one exception to hold all that an open asks for, so
// "1:* r" and "1:3 w" would not open 1:3 for both.
func (e exceptions) fold() {
	for k, p := range e.perms {
		for wide, q := range e.perms {
			if wide != k && wide.covers(k) && p&(permRead|permWrite) != 0 {
				p |= q
			}
		}
		e.perms[k] = p
	}
}

// applyDevicesV1 writes only what differs from the list in force, so that a running container never loses a device
// that both lists allow; the kernel refuses to replace the whole list of a group with children anyway.
func (g *Group) applyDevicesV1(l *deviceList) error {
	want, err := l.exceptions()
	if err != nil {
		return err
	}
	hi := g.host.byName["devices"]
	if hi == nil {
		if want.allowAll && len(want.perms) == 0 {
			return nil
		}
		return &UnsupportedError{Feature: "devices", Needs: "cgroup controller devices"}
	}
	dir, err := hi.group(g.rel, 3)
	if err != nil {
		return err
	}
	defer dir.close()
	b, err := dir.at.ReadFile(dir.prefix+"devices.list", make([]byte, 0, 1024))
	if err != nil {
		return fmt.Errorf("read %s: %w", hi.file(g.rel, "devices.list"), err)
	}
	have := parseDevicesList(b)
	switch {
	case want.allowAll:
		// An allowing list does not show its exceptions, so begin anew. With nested groups the kernel refuses that
		// (EINVAL); a list that allows everything already is then as good as it gets.
		err := g.writeDevices(hi, dir, "devices.allow", []string{"a"})
		if err != nil && !(errors.Is(err, syscall.EINVAL) && have.allowAll && len(want.perms) == 0) {
			return err
		}
		return g.writeDevices(hi, dir, "devices.deny", want.lines())
	case have.allowAll:
		if err := g.writeDevices(hi, dir, "devices.deny", []string{"a"}); err != nil {
			return err
		}
		return g.writeDevices(hi, dir, "devices.allow", want.lines())
	}
	if err := g.writeDevices(hi, dir, "devices.allow", want.minus(have).lines()); err != nil {
		return err
	}
	return g.writeDevices(hi, dir, "devices.deny", have.minus(want).lines())
}

func (g *Group) writeDevices(hi *hierarchy, dir groupDir, file string, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	n, err := dir.at.WriteFile(dir.prefix+file, lines...)
	if err != nil {
		return &LimitError{Limit: "devices", File: hi.file(g.rel, file), Value: lines[min(n, len(lines)-1)], Err: err}
	}
	return nil
}

// minus is what e excepts beyond o.
func (e exceptions) minus(o exceptions) exceptions {
	d := exceptions{perms: map[deviceKey]perm{}}
	for k, p := range e.perms {
		if p &^= o.perms[k]; p != 0 {
			d.perms[k] = p
		}
	}
	return d
}

// lines are what devices.allow and devices.deny take, in a fixed order.
func (e exceptions) lines() []string {
	lines := make([]string, 0, len(e.perms))
	for k, p := range e.perms {
		lines = append(lines, k.String()+" "+p.String())
	}
	slices.Sort(lines)
	return lines
}

// parseDevicesList reads devices.list; lines that it does not know are skipped.
func parseDevicesList(b []byte) exceptions {
	e := exceptions{perms: map[deviceKey]perm{}}
	cgroupfile.Lines(b, func(line []byte) {
		f := strings.Fields(string(line))
		if len(f) != 3 || len(f[0]) != 1 {
			return
		}
		if f[0] == "a" {
			e.allowAll = true
			return
		}
		major, minor, ok := strings.Cut(f[1], ":")
		k := deviceKey{kind: f[0][0]}
		var p perm
		for _, c := range f[2] {
			p |= map[rune]perm{'r': permRead, 'w': permWrite, 'm': permMknod}[c]
		}
		if ok && parseNumber(major, &k.major) && parseNumber(minor, &k.minor) && (k.kind == 'b' || k.kind == 'c') && p != 0 {
			e.perms[k] |= p
		}
	})
	return e
}

func parseNumber(s string, to *int64) bool {
	if s == "*" {
		*to = anyNumber
		return true
	}
	n, err := strconv.ParseUint(s, 10, 32)
	*to = int64(n)
	return err == nil
}
