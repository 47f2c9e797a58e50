package cgroup

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// perm is a set of what may be done with a device node; the bits are the kernel's BPF_DEVCG_ACC_*.
type perm uint8

const (
	permMknod perm = 1 << iota
	permRead
	permWrite
	permAll = permMknod | permRead | permWrite
)

func (p perm) String() string {
	var b strings.Builder
	for _, x := range []struct {
		p perm
		c byte
	}{{permRead, 'r'}, {permWrite, 'w'}, {permMknod, 'm'}} {
		if p&x.p != 0 {
			b.WriteByte(x.c)
		}
	}
	return b.String()
}

// anyNumber is the wildcard for a major or minor number.
const anyNumber int64 = -1

// deviceKey names device nodes: kind 'b' or 'c', numbers or wildcards.
type deviceKey struct {
	kind         byte
	major, minor int64
}

func (k deviceKey) String() string {
	num := func(n int64) string {
		if n == anyNumber {
			return "*"
		}
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%c %s:%s", k.kind, num(k.major), num(k.minor))
}

// covers reports whether every device that o names is named by k.
func (k deviceKey) covers(o deviceKey) bool {
	return k.kind == o.kind && (k.major == anyNumber || k.major == o.major) && (k.minor == anyNumber || k.minor == o.minor)
}

// overlaps reports whether some device is named by both.
func (k deviceKey) overlaps(o deviceKey) bool {
	meet := func(a, b int64) bool { return a == b || a == anyNumber || b == anyNumber }
	return k.kind == o.kind && meet(k.major, o.major) && meet(k.minor, o.minor)
}

type deviceRule struct {
	key   deviceKey
	perm  perm
	allow bool
}

// deviceList is what a list of OCI device rules comes to: rules that are applied in order, the last that matches
// deciding for each permission, on top of a default. It is comparable by its text form (String).
type deviceList struct {
	allowAll bool // the default
	rules    []deviceRule
}

func (l *deviceList) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "default %t", l.allowAll)
	for _, r := range l.rules {
		fmt.Fprintf(&b, ";%t %s %s", r.allow, r.key, r.perm)
	}
	return b.String()
}

// parseDevices checks the rules and drops those that a later one makes void. Without a rule everything is denied.
func parseDevices(rules []specs.LinuxDeviceCgroup) (*deviceList, error) {
	l := &deviceList{}
	for i, r := range rules {
		parsed, err := parseRule(r)
		if err != nil {
			return nil, fmt.Errorf("devices[%d]: %w", i, err)
		}
		if parsed.key.kind == 'a' {
			if parsed.perm == permAll && parsed.key.major == anyNumber && parsed.key.minor == anyNumber {
				l.allowAll, l.rules = parsed.allow, nil
				continue
			}
			block, char := parsed, parsed
			block.key.kind, char.key.kind = 'b', 'c'
			l.append(block)
			l.append(char)
			continue
		}
		l.append(parsed)
	}
	return l, nil
}

func (l *deviceList) append(r deviceRule) {
	l.rules = slices.DeleteFunc(l.rules, func(o deviceRule) bool { return r.key.covers(o.key) && o.perm&^r.perm == 0 })
	l.rules = append(l.rules, r)
}

func parseRule(r specs.LinuxDeviceCgroup) (deviceRule, error) {
	d := deviceRule{allow: r.Allow, key: deviceKey{major: anyNumber, minor: anyNumber}}
	switch r.Type {
	case "", "a":
		d.key.kind = 'a'
	case "b", "c":
		d.key.kind = r.Type[0]
	case "u": // mknod(1): an unbuffered character device
		d.key.kind = 'c'
	default:
		return d, fmt.Errorf("type: %q is not a, b or c", r.Type)
	}
	// Linux has 12 bits of major and 20 of minor number.
	for _, n := range []struct {
		field string
		v     *int64
		to    *int64
		limit int64
	}{{"major", r.Major, &d.key.major, 1 << 12}, {"minor", r.Minor, &d.key.minor, 1 << 20}} {
		if n.v == nil || *n.v == anyNumber {
			continue
		}
		if *n.v < 0 || *n.v >= n.limit {
			return d, fmt.Errorf("%s: %d is not between -1 (any) and %d", n.field, *n.v, n.limit-1)
		}
		*n.to = *n.v
	}
	if r.Access == "" {
		d.perm = permAll // OCI leaves it open; every runtime takes it so
	}
	for _, c := range r.Access {
		switch c {
		case 'r':
			d.perm |= permRead
		case 'w':
			d.perm |= permWrite
		case 'm':
			d.perm |= permMknod
		default:
			return d, fmt.Errorf("access: %q is not made of r, w and m", r.Access)
		}
	}
	return d, nil
}

// DefaultDevices are the rules for what every container has in /dev by the OCI runtime specification
// (config-linux.md, "Default Devices"), and for making, not using, any other node.
func DefaultDevices() []specs.LinuxDeviceCgroup {
	rule := func(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if major != anyNumber {
			r.Major = &major
		}
		if minor != anyNumber {
			r.Minor = &minor
		}
		return r
	}
	return []specs.LinuxDeviceCgroup{
		rule("c", anyNumber, anyNumber, "m"),
		rule("b", anyNumber, anyNumber, "m"),
		rule("c", 1, 3, "rwm"),           // null
		rule("c", 1, 5, "rwm"),           // zero
		rule("c", 1, 7, "rwm"),           // full
		rule("c", 1, 8, "rwm"),           // random
		rule("c", 1, 9, "rwm"),           // urandom
		rule("c", 5, 0, "rwm"),           // tty
		rule("c", 5, 1, "rwm"),           // console
		rule("c", 5, 2, "rwm"),           // ptmx
		rule("c", 136, anyNumber, "rwm"), // pts
	}
}

// AllDevices is the rule that allows everything: a privileged container's.
func AllDevices() []specs.LinuxDeviceCgroup {
	return []specs.LinuxDeviceCgroup{{Allow: true, Type: "a", Access: "rwm"}}
}

func (g *Group) applyDevices(l *deviceList) error {
	if g.host.mode == V2 {
		return g.applyDevicesV2(l)
	}
	return g.applyDevicesV1(l)
}
