package oci

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/cri-shim/cri-shim/oci/cgroup"
)

// DetectCgroupMounts finds what a container's /sys/fs/cgroup is made of. Group is left for the caller.
func DetectCgroupMounts(h *cgroup.Host) (CgroupMounts, error) {
	if h.Mode() == cgroup.V2 {
		return CgroupMounts{V2: true}, nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup"))
	if err != nil {
		return CgroupMounts{}, fmt.Errorf("find cgroup mounts: %w", err)
	}
	var out CgroupMounts
	for _, m := range mounts {
		if hi, ok := hierarchyOf(m, h.Controllers()); ok && !slices.ContainsFunc(out.Hierarchies, func(x Hierarchy) bool {
			return x.Name == hi.Name
		}) {
			out.Hierarchies = append(out.Hierarchies, hi)
		}
	}
	return out, nil
}

func hierarchyOf(m *mountinfo.Info, controllers []string) (Hierarchy, bool) {
	h := Hierarchy{Mountpoint: m.Mountpoint, Name: path.Base(m.Mountpoint)}
	for o := range strings.SplitSeq(m.VFSOptions, ",") {
		if name, ok := strings.CutPrefix(o, "name="); ok {
			h.Named = name
		} else if slices.Contains(controllers, o) {
			h.Controllers = append(h.Controllers, o)
		}
	}
	return h, h.Named != "" || len(h.Controllers) > 0
}
