package oci

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// TestCVE_2016_9962: a process of the container must not get at what the init of an exec holds while it has rights that the
// container has not: an init that the server forks, and one that is started in the pod's user namespace, where that
// process is root too.
func TestCVE_2016_9962(t *testing.T) {
	t.Run("fork", func(t *testing.T) { attackExec(t, func(*Params) {}) })
	t.Run("user namespace", func(t *testing.T) { attackExec(t, func(p *Params) { usernsPod(t, p) }) })
}

func attackExec(t *testing.T, edit func(*Params)) {
	n := newNode(t, Config{})
	// It looks all the time, from the init's first moment on.
	attack := `b=/bin/busybox; until $b test -e /tmp/stop; do for p in /proc/[0-9]*; do
		read c 2>/dev/null < $p/comm && [ "$c" = cri-shim-init ] || continue
		[ -n "$($b readlink $p/fd/0 2>/dev/null)" ] && echo entered fd
		$b ls $p/root/ >/dev/null 2>&1 && echo entered root
		$b touch /tmp/looked
	done; done; echo done`
	p := n.params(attack)
	edit(&p)
	c := n.prepare(p)
	attacker := n.start(c)
	e, err := n.runtime.Exec(t.Context(), ExecParams{
		ContainerID: p.ContainerID, CgroupPath: p.CgroupPath, Spec: c.Spec, PID: attacker.process.Pid, Command: []string{"/bin/busybox", "true"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	// Held before execve, at a FIFO that nobody opens.
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	gate, err := os.OpenFile(fifo, sys.OpenPath, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	e.Message.StartFile = int32(len(e.Files))
	e.Files = append(e.Files, gate)
	child, held := n.launch(e)
	if _, err := child.Ready(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { attacker.process.Kill() })
	defer timer.Stop()
	looked := filepath.Join(n.rootfs, "tmp/looked")
	for range 3 { // the first may have begun before the init was ready
		os.Remove(looked)
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if _, err := os.Stat(looked); err == nil {
				break
			}
		}
	}
	if _, err := os.Stat(looked); err != nil {
		t.Error("the attacker has not seen the init")
	}
	if err := os.WriteFile(filepath.Join(n.rootfs, "tmp/stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	held.process.Kill()
	held.wait()
	attacker.wait()
	if got := attacker.out.String(); got != "done\n" {
		t.Errorf("the attacker says %q; want it to get at nothing", got)
	}
}
