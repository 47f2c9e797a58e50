package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// v1Controllers are the mount options that name a v1 controller; every other option is a flag of the mount.
var v1Controllers = []string{
	"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "net_cls", "net_prio", "perf_event",
	"hugetlb", "rdma", "misc",
}

// Detect reads once which hierarchies are mounted and where, and opens their roots.
func Detect() (*Host, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("detect cgroups: %w", err)
	}
	h, err := hostOf(mounts)
	if err != nil {
		return nil, fmt.Errorf("detect cgroups: %w", err)
	}
	h.pageSizes = hugePageSizes("/sys/kernel/mm/hugepages")
	return h, nil
}

func hostOf(mounts []*mountinfo.Info) (*Host, error) {
	v1, unified := selectMounts(mounts)
	h := &Host{mode: V1, byName: map[string]*hierarchy{}, systemd: newSystemd()}
	if len(v1) == 0 {
		if unified == "" {
			return nil, errors.New("no cgroup or cgroup2 filesystem is mounted")
		}
		h.mode = V2
		v1 = []v1Mount{{unified, nil}}
	}
	for _, m := range v1 {
		if err := h.add(m.mount, m.controllers); err != nil {
			return nil, errors.Join(err, h.Close())
		}
	}
	if h.mode == V1 && unified != "" {
		root, err := sys.OpenDirFD(unified)
		if err != nil {
			return nil, errors.Join(err, h.Close())
		}
		if ok, err := root.Exists("cgroup.controllers"); err != nil || !ok { // something else is mounted over it
			root.Close()
		} else {
			h.beside = &hierarchy{mount: unified, root: root}
		}
	}
	h.primary = h.hierarchies[0]
	for _, c := range []string{"pids", "memory", "devices", "freezer"} {
		if hi := h.byName[c]; hi != nil {
			h.primary = hi
			break
		}
	}
	if hi := h.byName["blkio"]; hi != nil && h.mode == V1 {
		ok, err := hi.root.Exists("blkio.bfq.io_service_time_recursive")
		h.bfqTimes = ok && err == nil
	}
	return h, nil
}

// add opens the hierarchy mounted at mount. On v2 its controllers are those of the root.
func (h *Host) add(mount string, controllers []string) error {
	root, err := sys.OpenDirFD(mount)
	if err != nil {
		return err
	}
	if h.mode == V2 {
		b, err := root.ReadFile("cgroup.controllers", nil)
		if err != nil {
			return errors.Join(fmt.Errorf("read %s/cgroup.controllers: %w", mount, err), root.Close())
		}
		controllers = strings.Fields(string(b))
	}
	hi := &hierarchy{controllers: controllers, mount: mount, root: root}
	h.hierarchies = append(h.hierarchies, hi)
	for _, c := range controllers {
		h.byName[c] = hi
	}
	return nil
}

type v1Mount struct {
	mount       string
	controllers []string
}

// selectMounts picks one mount for each hierarchy, the one below /sys/fs/cgroup if there are several (bind mounts, or
// the mounts that other containers' cgroup namespaces make visible).
func selectMounts(mounts []*mountinfo.Info) (v1 []v1Mount, unified string) {
	mounts = slices.Clone(mounts)
	slices.SortStableFunc(mounts, func(a, b *mountinfo.Info) int { return rank(a) - rank(b) })
	seen := map[string]bool{}
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			if unified == "" {
				unified = m.Mountpoint
			}
			continue
		}
		var names []string
		for o := range strings.SplitSeq(m.VFSOptions, ",") {
			if slices.Contains(v1Controllers, o) || strings.HasPrefix(o, "name=") {
				names = append(names, o)
			}
		}
		if key := strings.Join(names, ","); len(names) > 0 && !seen[key] {
			seen[key] = true
			v1 = append(v1, v1Mount{m.Mountpoint, names})
		}
	}
	// A lone name= hierarchy (systemd's, left mounted) limits nothing: with cgroup2 beside it the machine is V2.
	if unified != "" && !slices.ContainsFunc(v1, func(m v1Mount) bool { return !strings.HasPrefix(m.controllers[0], "name=") }) {
		return nil, unified
	}
	return v1, unified
}

func rank(m *mountinfo.Info) int {
	if m.Mountpoint == "/sys/fs/cgroup" || strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup/") {
		return 0
	}
	return 1
}

// hugePageSizes lists the huge page sizes of dir (/sys/kernel/mm/hugepages) in the form of cgroup file names: 2MB.
func hugePageSizes(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // a kernel without huge pages
	}
	var sizes []string
	for _, e := range entries {
		kb, ok := strings.CutPrefix(e.Name(), "hugepages-")
		kb, ok2 := strings.CutSuffix(kb, "kB")
		if n, err := strconv.ParseUint(kb, 10, 40); ok && ok2 && err == nil && n > 0 {
			sizes = append(sizes, pageSizeName(n))
		}
	}
	return sizes
}

func pageSizeName(kb uint64) string {
	switch {
	case kb >= 1<<20:
		return strconv.FormatUint(kb>>20, 10) + "GB"
	case kb >= 1<<10:
		return strconv.FormatUint(kb>>10, 10) + "MB"
	}
	return strconv.FormatUint(kb, 10) + "KB"
}
