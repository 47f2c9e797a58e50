package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCVE_2020_15257: a container in the node's network namespace, and root there, finds no socket of the runtime's that it could
// connect to: none is abstract, and none of those with a path is anybody's but root's.
func TestCVE_2020_15257(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork)
	c := p.sleeping(t)
	var ours int
	for line := range strings.Lines(c.exec(t, "cat /proc/net/unix")) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		if strings.HasPrefix(f[7], "@") {
			t.Errorf("an abstract socket: %s", line)
		}
		if strings.HasPrefix(f[7], n.dir) {
			ours++
		}
	}
	if ours == 0 {
		t.Error("the container sees none of the daemon's sockets; the test looks in the wrong place")
	}
	err := filepath.WalkDir(n.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Type()&os.ModeSocket == 0 {
			return nil // pods come and go
		}
		if fi, err := d.Info(); err == nil && fi.Mode().Perm()&0o007 != 0 {
			t.Errorf("socket %s has mode %v; want it closed to others", path, fi.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
