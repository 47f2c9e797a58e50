package sys

import (
	"bytes"
	"fmt"
	"io/fs"
	"strconv"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/usage"
)

// Counters are those of one network namespace's interfaces, or why there are none.
type Counters struct {
	Interfaces []usage.Interface
	Err        error
}

// NetworkCounters reads the counters of the interfaces in the network namespaces at paths, loopback aside, in the
// kernel's order. One thread goes through all of them; no process is made for it.
func NetworkCounters(paths ...string) []Counters {
	all := make([]Counters, len(paths))
	err := onThread(func() (doomed bool, err error) {
		own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, fmt.Errorf("open own net namespace: %w", err)
		}
		defer unix.Close(own)
		defer func() { doomed = doomed && unix.Setns(own, unix.CLONE_NEWNET) != nil }()
		buf := make([]byte, 0, 4096)
		for i, path := range paths {
			var entered bool
			all[i].Interfaces, entered, buf, all[i].Err = countersOf(path, buf)
			doomed = doomed || entered
		}
		return doomed, nil
	})
	for i := range all {
		if err != nil && all[i].Err == nil {
			all[i] = Counters{Err: err}
		}
		if all[i].Err != nil {
			all[i].Err = fmt.Errorf("network counters of %s: %w", paths[i], all[i].Err)
		}
	}
	return all
}

// countersOf leaves the thread in the namespace at path.
func countersOf(path string, buf []byte) (all []usage.Interface, entered bool, _ []byte, err error) {
	ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, buf, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(ns)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return nil, false, buf, fmt.Errorf("setns: %w", err)
	}
	// The thread's own: /proc/net shows the namespace of the process.
	buf, err = ReadFile("/proc/thread-self/net/dev", buf[:0])
	if err != nil {
		return nil, true, buf, fmt.Errorf("read /proc/thread-self/net/dev: %w", err)
	}
	all, err = parseNetDev(buf)
	return all, true, buf, err
}

// maxInterfaces bounds what is told of one namespace: a pod may make as many as it likes.
const maxInterfaces = 128

// parseNetDev reads /proc/net/dev (proc(5)): two lines of headings, then a line for each interface. Its name, which may
// come from a container, has no colon in it (dev_valid_name of the kernel).
func parseNetDev(data []byte) ([]usage.Interface, error) {
	var all []usage.Interface
	for i, line := range bytes.Split(data, []byte{'\n'}) {
		name, rest, ok := bytes.Cut(line, []byte{':'})
		if i < 2 || !ok {
			continue
		}
		if len(all) == maxInterfaces {
			break
		}
		n := usage.Interface{Name: string(bytes.TrimSpace(name))}
		if !utf8.ValidString(n.Name) {
			n.Name = strconv.QuoteToASCII(n.Name) // different names stay different
		}
		if n.Name == "lo" {
			continue
		}
		var v [12]uint64
		fields := bytes.Fields(rest)
		if len(fields) < len(v) {
			return nil, fmt.Errorf("line %d: %d fields", i+1, len(fields))
		}
		for at := range v {
			var err error
			if v[at], err = strconv.ParseUint(string(fields[at]), 10, 64); err != nil {
				return nil, fmt.Errorf("line %d, field %d: %w", i+1, at+1, err)
			}
		}
		n.RxBytes, n.RxPackets, n.RxErrors, n.RxDropped = v[0], v[1], v[2], v[3]
		n.TxBytes, n.TxPackets, n.TxErrors, n.TxDropped = v[8], v[9], v[10], v[11]
		all = append(all, n)
	}
	return all, nil
}
