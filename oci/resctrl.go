package oci

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// resctrlRoot is where the kernel's documentation mounts it (Documentation/filesystems/resctrl.rst).
const resctrlRoot = "/sys/fs/resctrl"

// resctrl is what linux.intelRdt asks for: a group of allocation and, with monitoring, one below it to count in.
type resctrl struct {
	root, group string
	monitor     string // "" without monitoring
	schemata    []string
	own         bool // the group is the container's alone
}

// parseResctrl reads linux.intelRdt (config-linux.md, "IntelRdt").
func parseResctrl(rdt *specs.LinuxIntelRdt, root, id string) (*resctrl, error) {
	if rdt == nil {
		return nil, nil
	}
	r := &resctrl{root: cmp.Or(root, resctrlRoot)}
	name := rdt.ClosID
	switch {
	case name == "":
		name, r.own = id, true
	case name == "/":
		name = ""
	case name == "." || name == ".." || strings.ContainsAny(name, "/\n\x00") || len(name) > 255:
		return nil, fieldf("linux.intelRdt.closID", "%q is not a name", name)
	}
	r.group = filepath.Join(r.root, name)
	for _, s := range []struct{ field, text string }{
		{"schemata", strings.Join(rdt.Schemata, "\n")}, {"l3CacheSchema", rdt.L3CacheSchema}, {"memBwSchema", rdt.MemBwSchema},
	} {
		for line := range strings.SplitSeq(s.text, "\n") {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			if !strings.Contains(line, ":") {
				return nil, fieldf("linux.intelRdt."+s.field, "%q is not resource:values", line)
			}
			r.schemata = append(r.schemata, line)
		}
	}
	if r.own && len(r.schemata) == 0 && !rdt.EnableMonitoring {
		return nil, fieldf("linux.intelRdt", "neither a class (closID) nor a schema is named")
	}
	if r.own && len(r.schemata) == 0 {
		// Counting needs no classes of service, which are few.
		r.group, r.own = r.root, false
	}
	if rdt.EnableMonitoring {
		r.monitor = filepath.Join(r.group, "mon_groups", id)
	}
	return r, nil
}

// tasks is the file by which the init enters the group.
func (r *resctrl) tasks() string { return filepath.Join(cmp.Or(r.monitor, r.group), "tasks") }

// check finds what would make make fail: nothing is made. A class without a schema has to be there (runtime-spec: "MUST
// generate an error").
func (r *resctrl) check() error {
	if _, err := os.Stat(filepath.Join(r.root, "tasks")); err != nil {
		return fieldf("linux.intelRdt", "resctrl is not mounted at %s: %w", r.root, err)
	}
	if _, err := os.Stat(r.group); errors.Is(err, fs.ErrNotExist) && len(r.schemata) == 0 {
		return fieldf("linux.intelRdt.closID", "there is no class %s: %w", r.group, err)
	}
	return nil
}

// make makes the groups that are not there.
func (r *resctrl) make() error {
	if err := r.check(); err != nil {
		return err
	}
	_, err := os.Stat(r.group)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.Mkdir(r.group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return &FieldError{Field: "linux.intelRdt", Err: err}
		}
		if err := r.write(); err != nil {
			return errors.Join(err, os.Remove(r.group))
		}
	case err != nil:
		return &FieldError{Field: "linux.intelRdt", Err: err}
	case len(r.schemata) > 0:
		if err := r.compare(); err != nil {
			return err
		}
	}
	if r.monitor != "" {
		if err := os.Mkdir(r.monitor, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return &FieldError{Field: "linux.intelRdt.enableMonitoring", Err: err}
		}
	}
	return nil
}

// write sets the schema. What the kernel has against it is in info/last_cmd_status.
func (r *resctrl) write() error {
	err := os.WriteFile(filepath.Join(r.group, "schemata"), []byte(strings.Join(r.schemata, "\n")+"\n"), 0o644)
	if err == nil {
		return nil
	}
	why, _ := os.ReadFile(filepath.Join(r.root, "info", "last_cmd_status"))
	return fieldf("linux.intelRdt", "schema %q: %s: %w", r.schemata, strings.TrimSpace(string(why)), err)
}

// compare: of a class that is there the schema must be the one asked for; it is others' too.
func (r *resctrl) compare() error {
	b, err := os.ReadFile(filepath.Join(r.group, "schemata"))
	if err != nil {
		return &FieldError{Field: "linux.intelRdt", Err: err}
	}
	var have []string
	for line := range strings.Lines(string(b)) {
		have = append(have, normalSchema(line)...)
	}
	for _, line := range r.schemata {
		for _, want := range normalSchema(line) {
			if !slices.Contains(have, want) {
				return fieldf("linux.intelRdt", "the class %s exists without %s", r.group, want)
			}
		}
	}
	return nil
}

// normalSchema takes "L3:0=0f;1=f" apart: "L3:0=f", "L3:1=f".
func normalSchema(line string) []string {
	resource, values, _ := strings.Cut(strings.TrimSpace(line), ":")
	var out []string
	for v := range strings.SplitSeq(values, ";") {
		id, mask, _ := strings.Cut(strings.TrimSpace(v), "=")
		mask = cmp.Or(strings.TrimLeft(strings.ToLower(strings.TrimSpace(mask)), "0"), "0")
		out = append(out, fmt.Sprintf("%s:%s=%s", strings.TrimSpace(resource), strings.TrimSpace(id), mask))
	}
	return out
}

// MakeResctrl makes what linux.intelRdt asks for below root, where resctrl is mounted ("" is /sys/fs/resctrl). Compile has
// the init enter it.
func MakeResctrl(spec *specs.Spec, root, id string) error {
	if spec.Linux == nil {
		return nil
	}
	r, err := parseResctrl(spec.Linux.IntelRdt, root, id)
	if r == nil || err != nil {
		return err
	}
	return r.make()
}

// RemoveResctrl removes the groups that bear a container's name; nil where there is none.
func RemoveResctrl(root, id string) error {
	root = cmp.Or(root, resctrlRoot)
	if _, err := os.Stat(filepath.Join(root, "tasks")); err != nil {
		return nil // not mounted
	}
	dirs, err := filepath.Glob(filepath.Join(root, "*", "mon_groups", id))
	if err != nil {
		return err
	}
	dirs = append(dirs, filepath.Join(root, "mon_groups", id), filepath.Join(root, id))
	var errs []error
	for _, d := range dirs {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove resctrl group: %w", err))
		}
	}
	return errors.Join(errs...)
}
