package initproc_test

import (
	"os"
	"testing"
)

// TestCVE_2024_21626: a host directory that the parent has leaked is no way
// out: not as the working directory, not in the command, not as a descriptor.
func TestCVE_2024_21626(t *testing.T) {
	leak := func(b *box) {
		dir, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dir.Close() })
		for range 5 {
			b.file(dir)
		}
	}
	for fd := 3; fd < 16; fd++ {
		b := newBox(t, "pwd; ls")
		leak(b)
		b.m.Process.Cwd = "/proc/self/fd/" + itoa(fd)
		if r := b.run(); r.failure == nil {
			t.Errorf("cwd %s: the workload ran in %q", b.m.Process.Cwd, r.out)
		}
		b = newBox(t, "")
		leak(b)
		b.m.Process.Args = []string{"/proc/self/fd/" + itoa(fd) + busybox, "true"}
		b.fails("exec", 0, "/proc/self/fd/")
		pid := sleeper(t, nil)
		b = newExec(t, pid, "pwd; ls")
		leak(b)
		b.m.Process.Cwd = "/proc/self/fd/" + itoa(fd)
		if r := b.run(); r.failure == nil {
			t.Errorf("exec with cwd %s: the workload ran in %q", b.m.Process.Cwd, r.out)
		}
	}
	b := newBox(t, "cd /proc/self/fd; echo *")
	leak(b)
	want(t, "descriptors", b.ok(), "0 1 2 3")
}
