package oci

import (
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// TestCVE_2022_0811: a sysctl that a pod may have is no way to one that it may not: neither by what separates the parts of a
// name, nor by what separated one setting from the next where a helper program parsed them.
func TestCVE_2022_0811(t *testing.T) {
	for _, name := range []string{
		"kernel.core_pattern", "kernel/core_pattern", "kernel.shm_rmid_forced=1+kernel.core_pattern", "kernel.shmmax+kernel.core_pattern",
		"net/../kernel/core_pattern", "net.../kernel.core_pattern", "net//../../sysrq-trigger", "net/./../kernel/core_pattern",
		"/kernel/core_pattern", "net\x00/../kernel/core_pattern", "fs.mqueue/../../kernel/core_pattern", "fs/mqueue/../../kernel/core_pattern",
		"", ".", "..", "/", "net", "net.", "net/", "kernel.core_pattern ", "net/ipv4/../../kernel/core_pattern",
	} {
		pod := &workload.Pod{Sysctls: map[string]string{name: "|/evil"}}
		err := CheckSysctls(pod)
		if err == nil {
			p, _ := sysctlPath(name)
			t.Errorf("CheckSysctls(%q) = nil, for the path %q; want it refused", name, p)
		}
	}
	// The separator is part of the name, and there is no such file.
	p, err := sysctlPath("net.ipv4.ip_forward+kernel.core_pattern")
	if err != nil || strings.Contains(p, "..") || !strings.HasPrefix(p, "net/") {
		t.Errorf("sysctlPath = %q, %v; want a path below net", p, err)
	}
	err = CheckSysctls(&workload.Pod{Sysctls: map[string]string{"kernel.shm_rmid_forced": "1\x00+kernel.core_pattern=|/evil"}})
	wantField(t, err, "sysctls[kernel.shm_rmid_forced]", "NUL byte")
}
