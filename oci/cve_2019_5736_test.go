package oci

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// TestCVE_2019_5736: a process of the container gets hold of the init's program, while an exec's init is in its PID namespace,
// and overwrites it once nobody executes it any more. It has CAP_SYS_PTRACE, without which it would not even get that far.
func TestCVE_2019_5736(t *testing.T) {
	n := newNode(t, Config{})
	program, err := sys.SealedExecutable("cri-shim-init", io.NewSectionReader(n.init, 0, 1<<30))
	if err != nil {
		t.Skipf("needs memory files that can be executed: %v", err)
	}
	defer program.Close()
	before, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(int(program.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	n.server.Close()
	reapServer(t)
	n.init.Close()
	n.init = program
	if err := n.server.Warm(program); err != nil {
		t.Fatal(err)
	}
	p := n.params(`b=/bin/busybox
while :; do for p in /proc/[0-9]*; do
	read c 2>/dev/null < $p/comm && [ "$c" = cri-shim-init ] && exec 4<$p/exe && break 2
done; done
echo got
until echo overwritten 2>/tmp/why 1<>/proc/self/fd/4; do
	$b grep -q 'Text file busy' /tmp/why || break
	$b usleep 1000
done
$b cat /tmp/why
echo tried`)
	p.Container.Security.AddCapabilities = []string{"SYS_PTRACE"}
	c := n.prepare(p)
	attacker := n.start(c)
	timer := time.AfterFunc(20*time.Second, func() { attacker.process.Kill() })
	defer timer.Stop()
	held := n.heldExec(p, c, attacker)
	time.Sleep(100 * time.Millisecond) // the attacker looks all the time
	held.process.Kill()
	n.server.Close() // the last one that executes it
	held.wait()
	attacker.wait()
	out := attacker.out.String()
	if !strings.HasPrefix(out, "got\n") || !strings.HasSuffix(out, "tried\n") {
		t.Fatalf("the attacker says %q; want it to get hold of the program and to try", out)
	}
	after, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(int(program.Fd())))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the program has changed (%v), %d and %d bytes; the attacker says %q", err, len(before), len(after), out)
	}
}
