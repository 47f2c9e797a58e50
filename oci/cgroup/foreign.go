package cgroup

import "path"

// Expected is a group that another runtime makes, and that limits, statistics and the end of a container find by its
// name as they find those made here.
type Expected struct {
	OOMFile, OOMParent string // see Group
	Dir                string // where its processes are listed
}

// Expect says where the group will be. The name is one of Foreign's, or what that was made from.
func (h *Host) Expect(name string) (Expected, error) {
	g, err := h.Named(name)
	if err != nil {
		return Expected{}, err
	}
	parent := g.OOMParent()
	if IsUnit(name) {
		g = g.scope()
	}
	return Expected{OOMFile: g.OOMFile(), OOMParent: parent, Dir: path.Clean(g.host.primary.file(g.rel, ""))}, nil
}

// Foreign names the group in which another runtime has a container's processes, given the name that is in its
// specification: runc and crun put them into a scope itself, not into a group below it.
func Foreign(name string) string {
	u, err := ParseUnit(name)
	if !IsUnit(name) || err != nil || u.Name == "" {
		return name
	}
	return path.Dir(u.Path())
}
