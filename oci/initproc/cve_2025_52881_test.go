package initproc_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestCVE_2025_52881: the container has real files of procfs, of another process, mounted where the init of an exec would
// write. That the file system is a procfs is no proof then; only a procfs that nobody can mount on is.
func TestCVE_2025_52881(t *testing.T) {
	needRoot(t)
	victim := command("sleep", "1000")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { victim.Process.Kill(); victim.Wait() })
	target := "/proc/" + itoa(victim.Process.Pid) + "/oom_score_adj"
	before := read(t, target)
	fake := t.TempDir()
	os.Mkdir(filepath.Join(fake, "self"), 0o755)
	writeTo(t, filepath.Join(fake, "self/oom_score_adj"), "", 0o666)
	pid := sleeper(t, func(s *box) {
		s.m.Masked, s.m.Readonly = nil, nil
		s.m.Mounts = append([]initmsg.Mount{
			{Source: fake, File: -1, Target: "/proc"},
			{Source: target, File: -1, Target: "/proc/self/oom_score_adj"},
			{FSType: "proc", File: -1, Target: "/real"},
		}, s.m.Mounts[1:]...)
	})
	e := newExec(t, pid, `cat /real/self/oom_score_adj`)
	want(t, "the exec's own value", e.ok(), "700")
	want(t, "that of another process", read(t, target), before)
}
