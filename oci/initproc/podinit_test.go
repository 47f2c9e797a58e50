package initproc_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

func newPodInit(t *testing.T) *box {
	needRoot(t)
	return &box{t: t, flags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, m: &initmsg.Message{
		Mode: initmsg.ModePodInit, StartFile: initmsg.NoFile,
		Root:    &initmsg.Root{File: initmsg.NoFile, Staging: t.TempDir()},
		Process: initmsg.Process{Caps: &initmsg.Capabilities{}},
	}}
}

func TestPodInit(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		c := newPodInit(t).start()
		if r := c.readReports(); len(r) != 0 {
			t.Fatal(r[0])
		}
		pid := strconv.Itoa(c.cmd.Pid)
		status := read(t, "/proc/"+pid+"/status")
		for _, line := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "Threads:\t1", "Name:\tpod-init"} {
			if !strings.Contains(status, line+"\n") {
				t.Errorf("status lacks %q:\n%s", line, status)
			}
		}
		if fds, err := os.ReadDir("/proc/" + pid + "/fd"); err != nil || len(fds) != 0 {
			t.Errorf("fds = %v, %v; want none", fds, err)
		}
		mounts := strings.Split(strings.TrimSpace(read(t, "/proc/"+pid+"/mountinfo")), "\n")
		if len(mounts) != 1 || !strings.Contains(mounts[0], " / / ro,nosuid,nodev,") {
			t.Errorf("mounts = %q; want one read-only root", mounts)
		}
		private := 0
		for _, m := range regexp.MustCompile(`(?m)^Private_(?:Clean|Dirty): +(\d+) kB`).FindAllStringSubmatch(read(t, "/proc/"+pid+"/smaps_rollup"), -1) {
			n, _ := strconv.Atoi(m[1])
			private += n
		}
		if private > 64 {
			t.Errorf("private memory = %d KiB; want at most 64", private)
		}
		t.Logf("private memory: %d KiB", private)
		if err := c.cmd.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		if err := c.cmd.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if _, err := c.cmd.Wait(); err != nil {
			t.Errorf("pod init after %v: %v; want exit status 0", sig, err)
		}
	}
}

// TestPodInitReaps leaves orphans in the namespace, which PID 1 inherits.
// TestPodInitLabel: a label is set or is an error. There is no such profile.
func TestPodInitLabel(t *testing.T) {
	b := newPodInit(t)
	b.m.Process.AppArmor = "cri-shim-no-such-profile"
	b.fails("lsm", 0, "cri-shim-no-such-profile")
}

func TestPodInitReaps(t *testing.T) {
	c := newPodInit(t).start()
	defer func() { c.cmd.Kill(); c.cmd.Wait() }()
	if r := c.readReports(); len(r) != 0 {
		t.Fatal(r[0])
	}
	pid := strconv.Itoa(c.cmd.Pid)
	// nsenter joins the PID namespace; its grandchildren are orphaned when the shell ends.
	sh := command("nsenter", "--target="+pid, "--pid", busybox, "sh", "-c",
		"for i in 1 2 3 4 5; do (/bin/busybox sleep 0.1 >/dev/null 2>&1 &) ; done")
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("nsenter: %v: %s", err, out)
	}
	children := filepath.Join("/proc", pid, "task", pid, "children")
	sawOne := false
	for range 200 {
		left := strings.TrimSpace(read(t, children))
		if left == "" && sawOne {
			return
		}
		sawOne = sawOne || left != ""
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("children after a second = %q, seen before: %v; want them reaped", read(t, children), sawOne)
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
