package oci

import (
	"bytes"
	"context"
	"os"
	"strconv"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/usage"
)

// maxLinks bounds how many open files of a group are looked at: a container that opens a million sockets must not
// keep the daemon busy. What is beyond counts as files.
const maxLinks = 10_000

// Processes counts the processes of a group and, where open says so, what they have open. One that ends meanwhile
// has nothing open.
func (r *Runtime) Processes(_ context.Context, cgroupPath string, open bool) (usage.Processes, error) {
	g, err := r.cgroups.Named(cgroupPath)
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
	buf, _ := sys.ReadFile("/proc/"+strconv.Itoa(pids[0])+"/limits", make([]byte, 0, 4096))
	n.MaxFiles = maxOpenFiles(buf)
	for _, pid := range pids {
		countFiles("/proc/"+strconv.Itoa(pid)+"/fd", &n)
	}
	looks := 0
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid)
		buf, _ = sys.ReadFile(dir+"/stat", buf[:0]) // empty if it has ended
		if threads(buf) == 1 {
			looks++
			addTask(&n.Tasks, taskState(buf))
			continue
		}
		countTasks(dir+"/task", &n.Tasks, &looks)
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

// maxTasks bounds how many threads of a group are looked at, for the same reason. What is beyond counts as sleeping, as
// nearly all of so many do.
const maxTasks = 10_000

// countTasks adds the threads in a /proc/PID/task.
func countTasks(dir string, n *usage.TaskStates, looks *int) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	buf := make([]byte, 0, 1024)
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			state := byte('S')
			if *looks++; *looks <= maxTasks {
				var err error
				if buf, err = sys.ReadFile(dir+"/"+name+"/stat", buf[:0]); err != nil {
					continue // it has ended
				}
				state = taskState(buf)
			}
			addTask(n, state)
		}
		if err != nil {
			return
		}
	}
}

func addTask(n *usage.TaskStates, state byte) {
	switch state {
	case 'R':
		n.Running++
	case 'S', 'I':
		n.Sleeping++
	case 'T', 't':
		n.Stopped++
	case 'D':
		n.Uninterruptible++
	}
}

// threads is how many threads a /proc/PID/stat says that there are (proc(5), num_threads), 0 if it does not.
func threads(stat []byte) uint64 {
	const after = 17 // fields from the state on
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= after {
		return 0
	}
	n, _ := cgroupfile.Uint(fields[after])
	return n
}

// taskState is the state in a /proc/PID/stat, 0 if there is none. It follows the name, which may have anything in it.
func taskState(stat []byte) byte {
	if i := bytes.LastIndexByte(stat, ')'); i >= 0 && i+2 < len(stat) {
		return stat[i+2]
	}
	return 0
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
