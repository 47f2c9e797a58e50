package main

import (
	"strconv"
	"strings"
	"testing"
)

// TestCVE_2022_29162: what exec --cap adds is neither inheritable nor ambient.
func TestCVE_2022_29162(t *testing.T) {
	b := ours(t, "sleep 100")
	b.ok("run", "-d", "c")
	out := b.ok("exec", "--cap", "CAP_NET_ADMIN", "c", "cat", "/proc/self/status")
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		switch key {
		case "CapInh", "CapAmb":
			if value != "0000000000000000" {
				t.Errorf("%s = %s; want none", key, value)
			}
		case "CapEff":
			if n, err := strconv.ParseUint(value, 16, 64); err != nil || n&(1<<12) == 0 {
				t.Errorf("CapEff = %s; want the capability that was asked for", value)
			}
		}
	}
	b.ok("delete", "-f", "c")
}
