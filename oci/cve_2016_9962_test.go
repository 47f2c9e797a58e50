package oci

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
)

// TestCVE_2016_9962: a process of the container must not get at what the init of an exec holds while it has rights that the
// container has not: an init that the server forks into the container's PID namespace, and one that is started in the pod's
// user namespace, where that process is root too, and may trace whatever is that root's.
func TestCVE_2016_9962(t *testing.T) {
	t.Run("fork", func(t *testing.T) { attackExec(t, func(*Params) {}) })
	t.Run("user namespace", func(t *testing.T) {
		attackExec(t, func(p *Params) {
			usernsPod(t, p)
			p.Container.Security.AddCapabilities = []string{"SYS_PTRACE"}
		})
	})
}

func attackExec(t *testing.T, edit func(*Params)) {
	n := newNode(t, Config{})
	// It looks all the time, from the init's first moment on.
	// The name that the kernel gives the init depends on the kernel; the container's own processes have these.
	attack := `b=/bin/busybox; until $b test -e /tmp/stop; do for p in /proc/[0-9]*; do
		read c 2>/dev/null < $p/comm || continue
		case "$c" in sh|busybox) continue; esac
		[ -n "$($b readlink $p/fd/0 2>/dev/null)" ] && echo entered fd
		$b ls $p/root/ >/dev/null 2>&1 && echo entered root
		$b touch /tmp/looked
	done; done; echo done`
	p := n.params(attack)
	edit(&p)
	c := n.prepare(p)
	attacker := n.start(c)
	held := n.heldExec(p, c, attacker)
	timer := time.AfterFunc(2*time.Minute, func() { attacker.process.Kill() })
	defer timer.Stop()
	looked := filepath.Join(n.rootfs, "tmp/looked")
	for range 3 { // the first may have begun before the init was ready
		os.Remove(looked)
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
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
	// One that has ended by itself has nothing that could be looked at.
	if err := held.wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the init was not held all the time: %v, %q", err, held.out.String())
	}
	attacker.wait()
	if got := attacker.out.String(); got != "done\n" {
		t.Errorf("the attacker says %q; want it to get at nothing", got)
	}
}

// TestExecIsNotSeenBeforeItsRightsAreDropped: CAP_SYS_PTRACE in the node's user namespace is stronger than not being dumpable, so
// while an init has more than the container's rights, descriptors or calls, a container with that capability must not have a
// number for it. The container looks for numbers while execs come and go, and says what it finds in them.
func TestExecIsNotSeenBeforeItsRightsAreDropped(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*workload.Security)
	}{
		{"no_new_privs", func(s *workload.Security) { s.NoNewPrivs = true }},
		{"filter before the user", func(*workload.Security) {}},
	} {
		t.Run(tt.name, func(t *testing.T) { traceExecs(t, tt.edit) })
	}
}

func traceExecs(t *testing.T, edit func(*workload.Security)) {
	n := newNode(t, Config{})
	// Nothing but builtins of the shell: it looks at a process within microseconds of its birth. Its own children, which end
	// the loop, look as it does itself.
	p := n.params(`look() { eff= seccomp= uid=; while read -r k v; do case $k in
		CapEff:) eff=$v;; Seccomp:) seccomp=$v;; NoNewPrivs:) nnp=$v;; esac; done 2>/dev/null < $1/status; }
	look /proc/1; mine="$eff $seccomp $nnp"; echo looking > /tmp/looking
	until [ -e /tmp/stop ]; do for p in /proc/[0-9]*; do
		[ $p = /proc/1 ] && continue
		look $p
		[ -z "$seccomp" ] || [ "$eff $seccomp $nnp" = "$mine" ] || echo "rights: $eff $seccomp $nnp, mine $mine"
		for fd in 3 4 5 6 7 8 9 10 11 12 13 14 60 61 62 63; do [ -L $p/fd/$fd ] && echo "descriptor $fd"; done
	done; done; echo done`)
	p.Container.Security.AddCapabilities = []string{"SYS_PTRACE"}
	p.Container.Security.Seccomp = &workload.Profile{Kind: workload.ProfileRuntimeDefault}
	edit(&p.Container.Security)
	c := n.prepare(p)
	attacker := n.start(c)
	timer := time.AfterFunc(60*time.Second, func() { attacker.process.Kill() })
	defer timer.Stop()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Join(n.rootfs, "tmp/looking")); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the attacker does not look: %q %q", attacker.failures, attacker.out.String())
		}
	}
	const execs = 200
	for range execs {
		e, err := n.runtime.Exec(t.Context(), ExecParams{
			ContainerID: p.ContainerID, CgroupPath: p.CgroupPath, Spec: c.Spec, PID: attacker.process.Pid, LatePID: true,
			Command: []string{"/bin/busybox", "true"},
		})
		if err != nil {
			t.Fatal(err)
		}
		x := n.start(e)
		e.Close()
		if err := x.wait(); err != nil || len(x.failures) > 0 {
			t.Fatalf("exec: %v, %q", err, x.failures)
		}
	}
	if err := os.WriteFile(filepath.Join(n.rootfs, "tmp/stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	attacker.wait()
	if got := attacker.out.String(); got != "done\n" {
		t.Errorf("the attacker says %q; want it to find nothing that it has not itself", got)
	}
}

// heldExec is an exec in the container, held before execve, at a FIFO that nobody opens.
func (n *node) heldExec(p Params, c *Prepared, in *running) *running {
	n.t.Helper()
	e, err := n.runtime.Exec(n.t.Context(), ExecParams{
		ContainerID: p.ContainerID, CgroupPath: p.CgroupPath, Spec: c.Spec, PID: in.process.Pid, Command: []string{"/bin/busybox", "true"},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(e.Close)
	fifo := filepath.Join(n.t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		n.t.Fatal(err)
	}
	// Root of a user namespace is one of the others.
	if err := os.Chmod(fifo, 0o666); err != nil {
		n.t.Fatal(err)
	}
	gate, err := os.OpenFile(fifo, sys.OpenPath, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { gate.Close() })
	e.Message.StartFile = int32(len(e.Files))
	e.Files = append(e.Files, gate)
	child, held := n.launch(e)
	if _, err := child.Ready(); err != nil {
		n.t.Fatal(err)
	}
	return held
}
