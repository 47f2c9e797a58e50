package initproc_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// TestCVE_2016_9962: a process of the container must not get at the init of an
// exec, which is in the container's PID namespace and has host rights and files.
func TestCVE_2016_9962(t *testing.T) {
	attacker := newBox(t, `read p; readlink /proc/$p/fd/0 || echo denied; ls /proc/$p/root/ 2>/dev/null`)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	attacker.stdinFile = r
	c := attacker.start()
	t.Cleanup(func() { c.cmd.Kill(); c.cmd.Wait() })
	if reports := c.readReports(); len(reports) > 0 {
		t.Fatal(reports[0])
	}

	gate := filepath.Join(t.TempDir(), "gate")
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(gate, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "gate")
	defer f.Close()
	b := newExec(t, c.cmd.Pid, "true")
	b.m.StartFile = b.file(f)
	b.m.Process.UID, b.m.Process.GID = 0, 0 // the attacker's, with no more rights
	e := b.start()
	frame := make([]byte, 4096)
	n, _ := e.sync.Read(frame)
	if ready, _, err := initmsg.DecodeReport(frame[:n]); err != nil || ready == nil || ready.Kind != initmsg.KindReady {
		t.Fatal("the init is not ready: ", ready, err)
	}
	child := strings.TrimSpace(read(t, "/proc/"+itoa(e.cmd.Pid)+"/task/"+itoa(e.cmd.Pid)+"/children"))
	inside := ""
	for line := range strings.SplitSeq(read(t, "/proc/"+child+"/status"), "\n") {
		if v, ok := strings.CutPrefix(line, "NSpid:"); ok {
			inside = strings.Fields(v)[1]
		}
	}
	if inside == "" {
		t.Fatalf("no pid of the init %q inside of the namespace", child)
	}
	w.WriteString(inside + "\n")
	w.Close()
	c.cmd.Wait()
	want(t, "what the attacker sees", c.out.String(), "denied")
	e.sync.Close()
	e.cmd.Wait() // the end of the namespace's PID 1 has ended it too
}
