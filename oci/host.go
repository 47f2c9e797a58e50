package oci

import (
	"fmt"
	"os"
	"strconv"
	"strings"
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
