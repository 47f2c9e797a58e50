package sys

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"unicode/utf8"

	"github.com/cri-shim/cri-shim/internal/usage"
)

// NetworkCounters reads the counters of the interfaces in the network namespace at path, loopback aside, in the
// kernel's order. No process is made for it.
func NetworkCounters(path string) (all []usage.Interface, err error) {
	err = WithNetns(path, func() error {
		// The thread's own: /proc/net shows the namespace of the process.
		data, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		all, err = parseNetDev(data)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network counters of %s: %w", path, err)
	}
	return all, nil
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
