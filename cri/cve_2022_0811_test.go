package cri

import (
	"strings"
	"testing"
)

// TestCVE_2022_0811: a sysctl that a pod may have is no way to one that it may not: neither by what separates the parts of a
// name, nor by what separated one setting from the next where a helper program parsed them.
func TestCVE_2022_0811(t *testing.T) {
	refused := func(name, value string) {
		t.Helper()
		c := goodPod()
		if _, err := podFromProto(c, ""); err != nil {
			t.Fatal(err)
		}
		c.Linux.Sysctls = map[string]string{name: value}
		if _, err := podFromProto(c, ""); err == nil || !strings.Contains(err.Error(), "config.linux.sysctls["+name+"]") {
			t.Errorf("a pod with the sysctl %q=%q: %v; want it refused", name, value, err)
		}
	}
	for _, name := range []string{
		"kernel.core_pattern", "kernel/core_pattern", "kernel.shm_rmid_forced=1+kernel.core_pattern", "kernel.shmmax+kernel.core_pattern",
		"net/../kernel/core_pattern", "net.../kernel.core_pattern", "net//../../sysrq-trigger", "net/./../kernel/core_pattern",
		"/kernel/core_pattern", "net\x00/../kernel/core_pattern", "fs.mqueue/../../kernel/core_pattern", "fs/mqueue/../../kernel/core_pattern",
		"", ".", "..", "/", "net", "net.", "net/", "kernel.core_pattern ", "net/ipv4/../../kernel/core_pattern",
	} {
		refused(name, "|/evil")
	}
	refused("kernel.shm_rmid_forced", "1\x00+kernel.core_pattern=|/evil")
	refused("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/evil")
}
