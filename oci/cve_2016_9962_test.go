package oci

import (
	"os"
	"path/filepath"
	"strings"
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
	attack := `while :; do for p in /proc/[0-9]*; do
		read c 2>/dev/null < $p/comm && [ "$c" = cri-shim-init ] || continue
		/bin/busybox readlink $p/fd/0 || echo denied
		/bin/busybox ls $p/root/ >/dev/null 2>&1 && echo entered
		exit
	done; done`
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
	go held.wait() // the end of its PID namespace ends it, and is not complete before it was reaped
	attacker.wait()
	if got := attacker.out.String(); !strings.HasSuffix(got, "denied\n") {
		t.Errorf("the attacker sees %q; want denied", got)
	}
}
