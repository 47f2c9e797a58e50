// Package cgroup makes, limits, measures, kills and removes the control groups of pods and containers, on cgroup v1 and
// v2.
//
// A Host is what Detect found on the machine; its Create and Open give a Group. The name of a group says who makes it: a
// path below the root of every hierarchy ("/kubepods/burstable/podX/ctrY") is made by writing the kernel's files (the
// "cgroupfs driver"); slice:prefix:name ("kubepods-podX.slice:cri-shim:Y") is a scope that systemd makes, and a bare
// "kubepods-podX.slice" is a slice of systemd's (the "systemd driver", cgroup v2 only; see Unit).
//
// Limits are written directly, not through a library: on the way of a pod's start each file costs one open, one write
// and one close relative to a directory descriptor that the Host keeps, and a refusal can name the limit, the file and
// the value.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Mode says which kind of control groups limits processes here.
type Mode int

const (
	// V1 is a hierarchy for each controller. A machine in hybrid mode (an additional v2 hierarchy without controllers)
	// counts as V1.
	V1 Mode = iota + 1
	// V2 is the one unified hierarchy.
	V2
)

func (m Mode) String() string {
	switch m {
	case V1:
		return "v1"
	case V2:
		return "v2"
	}
	return fmt.Sprintf("Mode(%d)", int(m))
}

// Host is the machine's control group hierarchies. It is safe for concurrent use.
type Host struct {
	mode        Mode
	hierarchies []*hierarchy
	byName      map[string]*hierarchy
	primary     *hierarchy // where processes are listed first
	beside      *hierarchy // on V1 the v2 hierarchy of a machine in hybrid mode: other runtimes make groups there, which Remove removes; or nil
	pageSizes   []string   // huge pages, as in file names: "2MB"
	bfqTimes    bool       // v1: the scheduler BFQ counts times and merged requests (CONFIG_BFQ_CGROUP_DEBUG)
	programs    programs
	systemd     *systemd
}

// hierarchy is one mounted tree.
type hierarchy struct {
	controllers []string // v1: as mounted, "name=systemd" for the nameless; v2: cgroup.controllers of the root
	mount       string
	root        sys.DirFD
}

func (h *hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

// file is the absolute path of a file of the group rel.
func (h *hierarchy) file(rel, name string) string { return h.mount + "/" + rel + "/" + name }

// groupDir is where the files of a group are found: below the directory at, with a prefix to their names.
type groupDir struct {
	at     sys.DirFD
	prefix string
	opened bool
}

// group is the directory of the group rel for so many files: it is opened where that is cheaper than the way to each.
func (h *hierarchy) group(rel string, files int) (groupDir, error) {
	if files < 2 {
		return groupDir{at: h.root, prefix: rel + "/"}, nil
	}
	dir, err := h.root.Dir(rel)
	if err != nil {
		return groupDir{}, fmt.Errorf("open %s/%s: %w", h.mount, rel, err)
	}
	return groupDir{at: dir, opened: true}, nil
}

func (d groupDir) close() {
	if d.opened {
		d.at.Close()
	}
}

// Mode says which kind the machine has.
func (h *Host) Mode() Mode { return h.mode }

// Controllers lists the controllers that limits can be set with, sorted.
func (h *Host) Controllers() []string {
	var all []string
	for _, hi := range h.hierarchies {
		for _, c := range hi.controllers {
			if !strings.HasPrefix(c, "name=") {
				all = append(all, c)
			}
		}
	}
	slices.Sort(all)
	return all
}

// Mounted is a hierarchy of cgroup v1 and where it is found. Controllers has "name=systemd" for one without any.
type Mounted struct {
	Path        string
	Controllers []string
}

// Mounts are the hierarchies in which groups are made.
func (h *Host) Mounts() []Mounted {
	out := make([]Mounted, len(h.hierarchies))
	for i, hi := range h.hierarchies {
		out[i] = Mounted{hi.mount, hi.controllers}
	}
	return out
}

// SwapAccounting reports whether a memory+swap limit can be set. It depends on the kernel's configuration and its boot
// parameter swapaccount; on v2, whose root has no limits to look at, on those two alone.
func (h *Host) SwapAccounting() bool {
	if h.mode == V2 {
		_, err := os.Stat("/proc/swaps")
		boot, _ := os.ReadFile("/proc/cmdline")
		return err == nil && h.byName["memory"] != nil && !slices.Contains(strings.Fields(string(boot)), "swapaccount=0")
	}
	m := h.byName["memory"]
	if m == nil {
		return false
	}
	ok, err := m.root.Exists("memory.memsw.limit_in_bytes")
	return ok && err == nil
}

// Close releases the descriptors and device programs that h keeps; groups and their programs stay as they are.
func (h *Host) Close() error {
	h.systemd.close()
	errs := []error{h.programs.close()}
	for _, hi := range h.hierarchies {
		errs = append(errs, hi.root.Close())
	}
	if h.beside != nil {
		errs = append(errs, h.beside.root.Close())
	}
	return errors.Join(errs...)
}

// Group is one control group, in every hierarchy of its Host.
type Group struct {
	host *Host
	path string // absolute and clean: "/a/b"
	rel  string // path without the leading slash
	unit string // of systemd, "" without
	made bool   // by Create, so it is in every hierarchy

	parked *sys.Parked // see Release; nil but in a new scope
}

// Path is where the group is, from the root of the hierarchy.
func (g *Group) Path() string { return g.path }

// Open returns a group by its name, which exists in at least one hierarchy; otherwise the error matches fs.ErrNotExist.
func (h *Host) Open(name string) (*Group, error) {
	g, err := h.Named(name)
	if err != nil {
		return nil, err
	}
	path := g.path
	for _, hi := range h.hierarchies {
		ok, err := hi.root.Exists(g.rel)
		if err != nil {
			return nil, fmt.Errorf("open cgroup %s%s: %w", hi.mount, path, err)
		}
		if ok {
			return g, nil
		}
	}
	return nil, fmt.Errorf("open cgroup %s: %w", path, os.ErrNotExist)
}

// Named is a group by its name, whether it exists or not: if not, its Stats say so, and it has no Pids.
func (h *Host) Named(name string) (*Group, error) {
	if !IsUnit(name) {
		return h.group(name)
	}
	u, err := h.unit(name)
	if err != nil {
		return nil, err
	}
	g, err := h.group(u.Path())
	if err != nil {
		return nil, err
	}
	g.unit = u.String()
	return g, nil
}

// Remove kills what is left in the group of that name and removes it, with systemd's unit if it has one; nil when it is
// gone already.
func (h *Host) Remove(ctx context.Context, name string) error {
	g, err := h.Named(name)
	if err != nil {
		return err
	}
	if g.unit == "" && g.removeEmpty() {
		return nil
	}
	if err := g.Kill(ctx); err != nil {
		return err
	}
	return g.Remove(ctx)
}

func (h *Host) group(path string) (*Group, error) {
	if err := ValidatePath(path); err != nil {
		return nil, err
	}
	rel := strings.Trim(path, "/")
	return &Group{host: h, path: "/" + rel, rel: rel}, nil
}

// ValidatePath says why path cannot name a control group: it must be absolute, below the root, at most 4096 bytes with
// components of at most 255, and without empty, ".", ".." components, NUL or newline.
func ValidatePath(path string) error {
	bad := func(why string) error { return fmt.Errorf("cgroup path %q: %s", path, why) }
	switch {
	case !strings.HasPrefix(path, "/"):
		return bad("not absolute")
	case len(path) > 4096:
		return bad("longer than 4096 bytes")
	case strings.ContainsAny(path, "\x00\n"):
		return bad("contains NUL or newline")
	case strings.Trim(path, "/") == "":
		return bad("names the root")
	}
	for c := range strings.SplitSeq(strings.TrimSuffix(path[1:], "/"), "/") {
		switch {
		case c == "":
			return bad("empty component")
		case c == "." || c == "..":
			return bad(fmt.Sprintf("component %q", c))
		case len(c) > 255:
			return bad("component longer than 255 bytes")
		}
	}
	return nil
}

// UnsupportedError says that this kernel, or its configuration, cannot do what was asked. It matches
// errors.ErrUnsupported.
type UnsupportedError struct {
	Feature string // the limit or operation: "memory.swappiness"
	Needs   string // what would make it work: "cgroup v1", "controller hugetlb"
}

func (e *UnsupportedError) Error() string { return e.Feature + ": unsupported: needs " + e.Needs }

// Is makes errors.Is(err, errors.ErrUnsupported) true.
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

// LimitError says which limit the kernel refused, and why.
type LimitError struct {
	Limit string // the field of the OCI runtime specification's linux.resources: "memory.limit"
	File  string // absolute path
	Value string
	Err   error
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("set %s: write %q to %s: %v", e.Limit, e.Value, e.File, e.Err)
}

func (e *LimitError) Unwrap() error { return e.Err }
