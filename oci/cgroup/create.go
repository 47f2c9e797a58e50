package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// undoTimeout bounds the removal of a group that could not be set up; nothing has run in it.
const undoTimeout = 2 * time.Second

// delegated are the v2 controllers that a new group gets when the root has them.
var delegated = []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"}

// Create makes the group of that name in every hierarchy, missing parents too, and applies r (nil: no limits). A group
// that already exists is adopted, but for a scope. On error everything that this call made is removed again, parents
// included. ctx bounds the wait for systemd; the kernel does not make anyone wait. A new group is for Release.
//
// r.Devices decides about devices: nil leaves them to the parent group; otherwise everything is denied that its rules,
// applied in order, do not allow.
func (h *Host) Create(ctx context.Context, name string, r *specs.LinuxResources) (_ *Group, err error) {
	if IsUnit(name) {
		return h.createUnit(ctx, name, r)
	}
	path := name
	g, err := h.group(path)
	if err != nil {
		return nil, err
	}
	p, err := h.plan(r, freshGroup)
	if err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", path, err)
	}
	var made made
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("create cgroup %s: %w", path, err), made.undo())
		}
	}()
	for _, hi := range h.hierarchies {
		if err := made.mkdirAll(hi, g.rel); err != nil {
			return nil, err
		}
	}
	g.made = true
	refused, err := g.prepare()
	if err != nil {
		return nil, err
	}
	if err := g.apply(p, refused); err != nil {
		return nil, err
	}
	return g, nil
}

// freshGroup answers for the files of a group that nobody has changed.
func freshGroup(string, string) (string, error) { return "", nil }

// prepare makes the group's controllers usable: v2 must enable them from the root down, v1 cpuset must be given CPUs
// and memory nodes before a process may enter.
func (g *Group) prepare() (refused map[string]error, err error) {
	if g.host.mode == V2 {
		return g.host.primary.enableControllers(g.rel)
	}
	if hi := g.host.byName["cpuset"]; hi != nil {
		return nil, hi.seedCpuset(g.rel)
	}
	return nil, nil
}

// made records the directories that one Create has made, in order.
type made []madeDir

type madeDir struct {
	hi  *hierarchy
	rel string
}

func (m *made) mkdirAll(hi *hierarchy, rel string) error {
	err := hi.root.Mkdir(rel)
	if errors.Is(err, fs.ErrNotExist) && path.Dir(rel) != "." {
		if err := m.mkdirAll(hi, path.Dir(rel)); err != nil {
			return err
		}
		err = hi.root.Mkdir(rel)
	}
	switch {
	case err == nil:
		*m = append(*m, madeDir{hi, rel})
	case !errors.Is(err, fs.ErrExist):
		return fmt.Errorf("mkdir %s/%s: %w", hi.mount, rel, err)
	}
	return nil
}

// undo removes what was made, the deepest first. A parent that another call uses by now stays.
func (m made) undo() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	var errs []error
	for _, d := range slices.Backward(m) {
		err := d.hi.rmdir(ctx, d.rel, false)
		if err != nil && !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// enableControllers makes every delegated controller of the root available in the group rel. It asks the group first:
// once the parents are set up, as for every container but the first, that is one read. What the kernel refuses is
// returned as refused: it is an error only for a limit that needs the controller (cpu cannot be enabled while
// realtime threads run outside the root, and a pod that sets no CPU limit must not fail for it).
func (h *hierarchy) enableControllers(rel string) (refused map[string]error, err error) {
	missing, err := h.missingControllers(rel)
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	refused = map[string]error{}
	h.enableIn("", missing, refused)
	for i, c := range rel {
		if c == '/' {
			h.enableIn(rel[:i], missing, refused)
		}
	}
	return refused, nil
}

// missingControllers lists the delegated controllers that the root has and the group rel has not.
func (h *hierarchy) missingControllers(rel string) ([]string, error) {
	have, err := h.enabled(rel)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, c := range delegated {
		if h.has(c) && !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	return missing, nil
}

// enabled lists the controllers of the v2 group rel.
func (h *hierarchy) enabled(rel string) ([]string, error) {
	b, err := h.root.ReadFile(join(rel, "cgroup.controllers"), nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", h.file(rel, "cgroup.controllers"), err)
	}
	return strings.Fields(string(b)), nil
}

// enableIn enables controllers for the children of the group rel; one that the kernel refuses does not cost the others.
// Only the refusal nearest the root is recorded: those below follow from it.
func (h *hierarchy) enableIn(rel string, controllers []string, refused map[string]error) {
	file := join(rel, "cgroup.subtree_control")
	refuse := func(c string, err error) {
		if refused[c] == nil {
			refused[c] = fmt.Errorf("write %q to %s/%s: %w", "+"+c, h.mount, file, err)
		}
	}
	if h.keepsControllers(rel) {
		for _, c := range controllers {
			refuse(c, syscall.EBUSY)
		}
		return
	}
	if _, err := h.root.WriteFile(file, "+"+strings.Join(controllers, " +")); err == nil {
		return
	}
	for _, c := range controllers {
		if _, err := h.root.WriteFile(file, "+"+c); err != nil {
			refuse(c, err)
		}
	}
}

// keepsControllers reports whether the group rel has processes of its own and so cannot pass controllers on. The kernel
// says so (EBUSY) of memory and io alone: cpu, cpuset and pids it enables, which makes a threaded domain of the group,
// and no process may enter a group below it (cgroup-v2.rst, "Threads"). The machine's root, which has no type, may have
// both, and a group that is threaded already was meant to be.
func (h *hierarchy) keepsControllers(rel string) bool {
	if kind, err := readTrim(h.root, join(rel, "cgroup.type")); err != nil || kind != "domain" {
		return false
	}
	procs, err := readTrim(h.root, join(rel, "cgroup.procs"))
	return err == nil && procs != ""
}

// seedCpuset copies cpus and mems from the nearest ancestor that has them down to the group rel, and asks the kernel
// to do so itself for groups that are made below from now on.
func (h *hierarchy) seedCpuset(rel string) error {
	dir, err := h.root.Dir(rel)
	if err != nil {
		return fmt.Errorf("open %s/%s: %w", h.mount, rel, err)
	}
	defer dir.Close()
	cpus, errC := readTrim(dir, "cpuset.cpus")
	mems, errM := readTrim(dir, "cpuset.mems")
	if err := errors.Join(errC, errM); err != nil {
		return fmt.Errorf("read cpuset of %s/%s: %w", h.mount, rel, err)
	}
	if cpus != "" && mems != "" {
		return nil
	}
	parent := path.Dir(rel)
	if parent == "." {
		parent = ""
	} else if err := h.seedCpuset(parent); err != nil {
		return err
	}
	for _, f := range []struct{ name, have string }{{"cpuset.cpus", cpus}, {"cpuset.mems", mems}} {
		if f.have != "" {
			continue
		}
		v, err := readTrim(h.root, join(parent, f.name))
		if err != nil {
			return fmt.Errorf("read %s: %w", h.file(parent, f.name), err)
		}
		if _, err := dir.WriteFile(f.name, v); err != nil {
			return &LimitError{Limit: f.name + " of the parent", File: h.file(rel, f.name), Value: v, Err: err}
		}
	}
	if _, err := dir.WriteFile("cgroup.clone_children", "1"); err != nil {
		return &LimitError{Limit: "clone_children", File: h.file(rel, "cgroup.clone_children"), Value: "1", Err: err}
	}
	return nil
}

func readTrim(dir sys.DirFD, name string) (string, error) {
	b, err := dir.ReadFile(name, make([]byte, 0, 1024))
	return strings.TrimSpace(string(b)), err
}

// join is path.Join for a group that may be the root ("").
func join(rel, name string) string {
	if rel == "" {
		return name
	}
	return rel + "/" + name
}
