package cgroup

import (
	"fmt"
	"strings"
)

// A Unit is a group that systemd makes: a scope, or (with only a Slice) the slice itself. As text it is what runc takes as
// cgroupsPath with --systemd-cgroup, "kubepods-podX.slice:cri-shim:ID", or the name of a slice, "kubepods-podX.slice".
type Unit struct {
	Slice  string // "-.slice" is systemd's root
	Prefix string // may be empty
	Name   string // "" names the slice
}

const (
	sliceSuffix = ".slice"
	scopeSuffix = ".scope"
	rootSlice   = "-.slice"
	innerGroup  = "container"
	maxUnitName = 255 // systemd's UNIT_NAME_MAX is 256 with the final zero; it is a folder's name too
)

// IsUnit says whether a group's name is a Unit's, rather than a path from the root of the hierarchy.
func IsUnit(name string) bool {
	return !strings.HasPrefix(name, "/") && (strings.Contains(name, ":") || strings.HasSuffix(name, sliceSuffix))
}

// ParseUnit reads slice:prefix:name, or the name of a slice. An empty slice is "system.slice", as for runc.
func ParseUnit(s string) (Unit, error) {
	bad := func(why string) (Unit, error) { return Unit{}, fmt.Errorf("systemd cgroup %q: %s", s, why) }
	parts := strings.Split(s, ":")
	u := Unit{Slice: parts[0]}
	switch len(parts) {
	case 1:
		if u.Slice == "" || u.Slice == rootSlice {
			return bad("names no slice of its own")
		}
	case 3:
		u.Prefix, u.Name = parts[1], parts[2]
		if u.Name == "" {
			return bad("no name after the last colon")
		}
		if u.Slice == "" {
			u.Slice = "system.slice"
		}
	default:
		return bad("want slice:prefix:name")
	}
	if why := badSlice(u.Slice); why != "" {
		return bad(why)
	}
	if u.Name != "" {
		if why := badUnitName(u.String()); why != "" {
			return bad(why)
		}
	}
	return u, nil
}

// badSlice says why a name is no slice's (systemd.slice(5)).
func badSlice(name string) string {
	if name == rootSlice {
		return ""
	}
	stem, ok := strings.CutSuffix(name, sliceSuffix)
	switch {
	case !ok:
		return fmt.Sprintf("%q does not end in .slice", name)
	case stem == "" || strings.HasPrefix(stem, "-") || strings.HasSuffix(stem, "-") || strings.Contains(stem, "--"):
		return fmt.Sprintf("%q has an empty part between its dashes", name)
	}
	return badUnitName(name)
}

// badUnitName says why systemd would not take a name (systemd.unit(5)).
func badUnitName(name string) string {
	if len(name) > maxUnitName {
		return fmt.Sprintf("%.32q… is longer than %d bytes", name, maxUnitName)
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte(":-_.\\", c) >= 0:
		default:
			return fmt.Sprintf("%q: %q is not allowed in the name of a unit", name, c)
		}
	}
	return ""
}

// String is the unit's name: "cri-shim-ID.scope" or "kubepods-podX.slice".
func (u Unit) String() string {
	switch {
	case u.Name == "":
		return u.Slice
	case u.Prefix == "":
		return u.Name + scopeSuffix
	}
	return u.Prefix + "-" + u.Name + scopeSuffix
}

// Path is where the group is: a slice is below those that its name's dashes spell out, and a container is in a group
// of its own in its scope. That one is delegated to us; the scope's own files stay systemd's, which writes them again
// at each daemon-reload, the quota rounded and memory.oom.group (systemd 252) as 0.
func (u Unit) Path() string {
	p := slicePath(u.Slice)
	if u.Name != "" {
		p += "/" + u.String() + "/" + innerGroup
	}
	return p
}

func slicePath(slice string) string {
	if slice == rootSlice {
		return ""
	}
	stem := strings.TrimSuffix(slice, sliceSuffix)
	var b strings.Builder
	for i, c := range stem {
		if c == '-' {
			b.WriteString("/" + stem[:i] + sliceSuffix)
		}
	}
	b.WriteString("/" + slice)
	return b.String()
}

// Resolve is the path, from the root of the hierarchy, of a group's name.
func Resolve(name string) (string, error) {
	if !IsUnit(name) {
		return name, ValidatePath(name)
	}
	u, err := ParseUnit(name)
	if err != nil {
		return "", err
	}
	return u.Path(), ValidatePath(u.Path())
}
