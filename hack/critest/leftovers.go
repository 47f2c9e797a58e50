package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// leftovers names what the daemon still holds: the suite has removed all of its pods. The cgroups are those of the
// runner's own cgroup namespace.
func (n *node) leftovers() ([]string, error) {
	var left []string
	names := func(what, pattern string, own func(string) bool) error {
		found, err := filepath.Glob(pattern)
		for _, f := range found {
			if !own(filepath.Base(f)) {
				left = append(left, what+" left behind: "+f)
			}
		}
		return err
	}
	none := func(string) bool { return false }
	for _, err := range []error{
		names("network namespace", filepath.Join(n.dir, "netns", "*"), none),
		names("address", filepath.Join(n.dir, "ipam", "*", "*"), func(f string) bool {
			return f == "lock" || strings.HasPrefix(f, "last_reserved_ip")
		}),
		names("cgroup", "/sys/fs/cgroup/*/cri-shim/*", notAPod),
		names("cgroup", "/sys/fs/cgroup/cri-shim/*", notAPod),
	} {
		if err != nil {
			return nil, err
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		// The folder of the network namespaces is a mount of its own, as for ip netns.
		if len(f) > 4 && strings.HasPrefix(f[4], n.dir+"/") && f[4] != filepath.Join(n.dir, "netns") {
			left = append(left, fmt.Sprintf("mount left behind: %s", f[4]))
		}
	}
	return left, nil
}

// notAPod tells the groups of pods, which are called by their IDs, from the kernel's files and the supervisors' group.
func notAPod(name string) bool { return len(name) < 32 || strings.ContainsAny(name, "._") }
