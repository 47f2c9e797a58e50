package initproc_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestCVE_2023_28642: a label that was written into a volume at /proc is a label that is not set. The profile does not exist,
// so a workload that runs is one without it.
func TestCVE_2023_28642(t *testing.T) {
	fake := t.TempDir()
	for _, f := range []string{"thread-self/attr/exec", "thread-self/attr/apparmor/exec", "self/attr/exec", "self/attr/apparmor/exec"} {
		os.MkdirAll(filepath.Dir(filepath.Join(fake, f)), 0o755)
		writeTo(t, filepath.Join(fake, f), "", 0o666)
	}
	attack := func(b *box) {
		b.m.Masked, b.m.Readonly = nil, nil
		b.m.Mounts = append([]initmsg.Mount{{Source: fake, File: -1, Target: "/proc"}}, b.m.Mounts[1:]...)
	}
	b := newBox(t, "true")
	attack(b)
	b.m.Process.AppArmor = "cri-shim-no-such-profile"
	b.fails("lsm", 0, "cri-shim-no-such-profile")
	b.m.Process.AppArmor, b.m.Process.SELinux = "", "no_u:no_r:no_t:s0"
	b.fails("lsm", 0, "no_u:no_r:no_t:s0")

	pid := sleeper(t, attack)
	e := newExec(t, pid, "true")
	e.m.Process.AppArmor = "cri-shim-no-such-profile"
	e.fails("lsm", 0, "cri-shim-no-such-profile")
	for _, f := range []string{"thread-self/attr/exec", "thread-self/attr/apparmor/exec", "self/attr/exec", "self/attr/apparmor/exec"} {
		want(t, "the fake "+f, read(t, filepath.Join(fake, f)), "")
	}
}
