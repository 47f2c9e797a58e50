package e2e

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestCVE_2024_25621 (and CVE-2021-41091, CVE-2021-41103): a user of the node who is not root gets at no file of an image or of a
// container, set-user-ID programs in them included, nor at records and sockets.
func TestCVE_2024_25621(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	if fi, err := os.Stat(n.path("root")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the root folder: %v, %v; want mode 0700", fi, err)
	}
	asNobody := func(args ...string) string {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	t.Run("made by the daemon", func(t *testing.T) { nobodyGetsAt(t, n, asNobody) })
	if out := asNobody("sh", "-c", "ls "+n.path("root")+" && echo entered"); strings.Contains(out, "entered") {
		t.Errorf("nobody lists the root folder: %s", out)
	}
	// A file system of its own has a root directory that all may read.
	t.Run("mount point", func(t *testing.T) {
		n := newNode(t, nil)
		if err := os.Chmod(n.path("root"), 0o755); err != nil {
			t.Fatal(err)
		}
		nobodyGetsAt(t, n, asNobody)
	})
}

// nobodyGetsAt looks for files that another user of the node can reach.
func nobodyGetsAt(t *testing.T, n *node, asNobody func(...string) string) {
	if err := os.Chmod(n.dir, 0o711); err != nil { // else what is below need not be protected
		t.Fatal(err)
	}
	if out := asNobody("sh", "-c", "test -x "+n.dir+" && echo passes"); out != "passes\n" {
		t.Fatalf("nobody does not even get to the node's folder: %s", out)
	}
	p := n.runPod(t)
	c := p.sleeping(t)
	c.exec(t, "cp /bin/busybox /root-shell && chmod 4755 /root-shell && echo secret >/dev/shm/shm-secret")
	var found []string
	for _, pattern := range []string{"root-shell", "busybox", "config.json", "*.sock", "shm-secret", "hosts", "resolv.conf"} {
		filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
			if ok, _ := filepath.Match(pattern, filepath.Base(path)); err == nil && ok {
				found = append(found, path)
			}
			return nil
		})
	}
	for _, name := range []string{"root-shell", "shm-secret"} {
		if !strings.Contains(strings.Join(found, " "), name) {
			t.Fatalf("the container's %s is not among %q; the test looks in the wrong place", name, found)
		}
	}
	// Searching, reading, executing and connecting, as nobody.
	for _, path := range found {
		if out := asNobody("sh", "-c", "test -r '"+path+"' -o -x '"+path+"' -o -w '"+path+"' && echo entered"); strings.Contains(out, "entered") {
			t.Errorf("nobody gets at %s", path)
		}
	}
}
