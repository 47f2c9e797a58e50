package oci

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// DetectHost looks at this process and the node. Swap, Hugetlb, Seccomp and what is configuration are the caller's.
func DetectHost() (*Host, error) {
	h := &Host{AppArmor: apparmorEnabled()}
	var err error
	if h.Capabilities, err = ownCapabilities(); err != nil {
		return nil, fmt.Errorf("own capabilities: %w", err)
	}
	if h.SELinux, err = selinuxEnabled(); err != nil {
		return nil, fmt.Errorf("selinux: %w", err)
	}
	h.OOMScoreFloor = -1000
	if h.Capabilities&(1<<capSysResource) == 0 {
		if h.OOMScoreFloor, err = ownOOMScore(); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// allowedRlimits lowers default limits to what this process may give: without CAP_SYS_RESOURCE no
// hard limit can be raised (setrlimit(2)).
func allowedRlimits(in []specs.POSIXRlimit, mayRaise bool) ([]specs.POSIXRlimit, error) {
	if mayRaise {
		return in, nil
	}
	out := slices.Clone(in)
	for i := range out {
		n, ok := sys.Rlimits[out[i].Type]
		if !ok {
			return nil, fmt.Errorf("rlimit %q: unknown", out[i].Type)
		}
		hard, err := sys.HardLimit(n)
		if err != nil {
			return nil, fmt.Errorf("rlimit %s: %w", out[i].Type, err)
		}
		out[i].Hard = min(out[i].Hard, hard)
		out[i].Soft = min(out[i].Soft, out[i].Hard)
	}
	return out, nil
}

func ownOOMScore() (int, error) {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("own oom_score_adj: %w", err)
	}
	return n, nil
}
