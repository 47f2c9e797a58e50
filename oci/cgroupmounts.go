package oci

import (
	"path"
	"strings"

	"github.com/cri-shim/cri-shim/oci/cgroup"
)

// MountsOf says what a container's /sys/fs/cgroup is made of. Group is left for the caller.
func MountsOf(h *cgroup.Host) CgroupMounts {
	if h.Mode() == cgroup.V2 {
		return CgroupMounts{V2: true}
	}
	var out CgroupMounts
	for _, m := range h.Mounts() {
		hi := Hierarchy{Mountpoint: m.Path, Name: path.Base(m.Path)}
		for _, c := range m.Controllers {
			if name, ok := strings.CutPrefix(c, "name="); ok {
				hi.Named = name
			} else {
				hi.Controllers = append(hi.Controllers, c)
			}
		}
		out.Hierarchies = append(out.Hierarchies, hi)
	}
	return out
}
