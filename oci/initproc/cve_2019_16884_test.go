package initproc_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestCVE_2019_16884 (and CVE-2025-52881): a volume at /proc with files of the
// right names must not swallow what the init writes to procfs, neither must a link in
// it send that elsewhere.
func TestCVE_2019_16884(t *testing.T) {
	fake := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	writeTo(t, victim, "", 0o666)
	for _, f := range []string{"self/oom_score_adj", "self/timens_offsets", "thread-self/attr/exec", "thread-self/attr/apparmor/exec", "sys/kernel/shmmni"} {
		os.MkdirAll(filepath.Dir(filepath.Join(fake, f)), 0o755)
		os.Symlink(victim, filepath.Join(fake, f))
	}
	b := newBox(t, `cat /real/self/oom_score_adj /real/sys/kernel/shmmni`)
	b.m.Masked, b.m.Readonly = nil, nil
	b.m.Mounts = append([]initmsg.Mount{
		{Source: fake, File: -1, Target: "/proc"},
		{FSType: "proc", File: -1, Target: "/real"},
	}, b.m.Mounts[1:]...)
	b.m.Process.OOMScoreAdj = ptr[int32](321)
	b.m.Sysctls = []initmsg.Sysctl{{Name: "kernel/shmmni", Value: "123"}}
	want(t, "the real values", b.ok(), "321\n123")
	want(t, "the fake file", read(t, victim), "")

	// An exec enters with the fake already mounted.
	swallowed := filepath.Join(fake, "self/oom_score_adj")
	os.Remove(swallowed)
	writeTo(t, swallowed, "", 0o666)
	pid := sleeper(t, func(s *box) { s.m.Mounts, s.m.Masked, s.m.Readonly = b.m.Mounts, nil, nil })
	e := newExec(t, pid, `cat /real/self/oom_score_adj`)
	want(t, "the real value of an exec", e.ok(), "700")
	want(t, "the fake file", read(t, swallowed), "")
}
