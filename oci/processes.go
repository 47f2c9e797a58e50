package oci

import (
	"bytes"
	"context"
	"os"
	"strconv"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
	"github.com/cri-shim/cri-shim/internal/usage"
)

// maxLinks bounds how many open files of a group are looked at: a container that opens a million sockets must not
// keep the daemon busy. What is beyond counts as files.
const maxLinks = 10_000

// Processes counts the processes of a group and, where open says so, what they have open. One that ends meanwhile
// has nothing open.
func (r *Runtime) Processes(_ context.Context, cgroupPath string, open bool) (usage.Processes, error) {
	g, err := r.cgroups.Open(cgroupPath)
	if err != nil {
		return usage.Processes{}, err
	}
	pids, err := g.Pids()
	if err != nil {
		return usage.Processes{}, err
	}
	n := usage.Processes{Count: uint64(len(pids)), MaxFiles: usage.Unlimited}
	if !open || len(pids) == 0 {
		return n, nil
	}
	limits, _ := os.ReadFile("/proc/" + strconv.Itoa(pids[0]) + "/limits")
	n.MaxFiles = maxOpenFiles(limits)
	for _, pid := range pids {
		countFiles("/proc/"+strconv.Itoa(pid)+"/fd", &n)
	}
	return n, nil
}

// countFiles adds the descriptors in a /proc/PID/fd. Its entries are the kernel's; nothing is opened through them.
func countFiles(dir string, n *usage.Processes) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			n.Files++
			if n.Files > maxLinks {
				continue
			}
			if to, err := os.Readlink(dir + "/" + name); err == nil && len(to) > 7 && to[:7] == "socket:" {
				n.Sockets++
			}
		}
		if err != nil {
			return
		}
	}
}

// maxOpenFiles reads the soft limit from /proc/PID/limits (proc(5)), Unlimited if there is none.
func maxOpenFiles(limits []byte) uint64 {
	const name = "Max open files"
	for line := range bytes.Lines(limits) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			if fields := bytes.Fields(rest); len(fields) > 0 {
				if v, ok := cgroupfile.Uint(fields[0]); ok {
					return v
				}
			}
		}
	}
	return usage.Unlimited
}
