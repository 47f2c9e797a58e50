package e2e

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *container) execSync(t *testing.T, timeout int64, command ...string) (*pb.ExecSyncResponse, error) {
	t.Helper()
	return c.ExecSync(ctx(t), &pb.ExecSyncRequest{ContainerId: c.id, Cmd: command, Timeout: timeout})
}

func TestExecSync(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t)
	c := p.sleeping(t, func(c *pb.ContainerConfig) {
		asApp(c)
		c.Envs, c.WorkingDir = []*pb.KeyValue{{Key: "MY", Value: []byte("own")}}, "/mnt"
		c.Linux.Resources.OomScoreAdj = 300
	})
	resp, err := c.execSync(t, 0, sh("echo out; echo err >&2; exit 7")...)
	if err != nil || resp.ExitCode != 7 || string(resp.Stdout) != "out\n" || string(resp.Stderr) != "err\n" {
		t.Errorf("ExecSync() = %v, %v; want out, err and 7", resp, err)
	}
	resp, err = c.execSync(t, 0, "/bin/sh", "-c", "kill -9 $$")
	if err != nil || resp.ExitCode != 137 {
		t.Errorf("ExecSync() of what kills itself = %v, %v; want 137", resp, err)
	}
	got := c.exec(t, "id -u; pwd; echo $MY; cat /proc/self/oom_score_adj; grep -E '^(CapEff|Seccomp):' /proc/self/status; cat /proc/1/comm; test -r /proc/1/cgroup && cmp /proc/1/cgroup /proc/self/cgroup && echo same")
	if want := "1000\n/mnt\nown\n300\nCapEff:\t0000000000000000\nSeccomp:\t2\nsleep\nsame\n"; got != want {
		t.Errorf("an exec has %q; want all that the container has, %q", got, want)
	}
	if _, err := c.execSync(t, 0, "/no/such/program"); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("ExecSync() of nothing = %v; want an error that names it", err)
	}
	c.stopIt(t, 0)
	if _, err := c.execSync(t, 0, "/bin/true"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("ExecSync() in an exited container = %v; want FailedPrecondition", err)
	}
}

func TestExecSyncTimeout(t *testing.T) {
	t.Parallel()
	c := sharedNode(t).runPod(t).sleeping(t)
	begin := time.Now()
	_, err := c.execSync(t, 1, sh("sleep 1000021 & sleep 1000021")...)
	if took := time.Since(begin); status.Code(err) != codes.DeadlineExceeded || took < time.Second || took > 20*time.Second {
		t.Errorf("ExecSync() = %v after %s; want DeadlineExceeded after 1 s", err, took)
	}
	eventually(t, "the command and what it started are killed", func() bool { return len(processesOf("sleep\x001000021")) == 0 })
	if s := c.status(t); s.State != pb.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v; want running", s.State)
	}
}

func TestExecSyncOutput(t *testing.T) {
	t.Parallel()
	c := sharedNode(t).runPod(t).sleeping(t)
	resp, err := c.execSync(t, 60, sh("head -c 1000000 /dev/zero; head -c 900000 /dev/zero >&2; exit 3")...)
	if err != nil || len(resp.Stdout) != 1000000 || len(resp.Stderr) != 900000 || resp.ExitCode != 3 {
		t.Errorf("ExecSync() = %d and %d bytes, %d, %v; want all", len(resp.GetStdout()), len(resp.GetStderr()), resp.GetExitCode(), err)
	}
	resp, err = c.execSync(t, 60, sh("head -c 40000000 /dev/zero; exit 3")...)
	if n := len(resp.GetStdout()); err != nil || n < 8<<20 || n > 16<<20 || resp.ExitCode != 3 {
		t.Errorf("ExecSync() with 40 MB of output = %d bytes, %d, %v; want it cut at 16 MiB and the exit code", n, resp.GetExitCode(), err)
	}
}

// TestExecMany: execs beside one another, more than a daemon has threads at hand.
func TestExecMany(t *testing.T) {
	t.Parallel()
	c := sharedNode(t).runPod(t).sleeping(t)
	errs := make(chan error)
	for range 40 {
		go func() {
			_, err := c.ExecSync(t.Context(), &pb.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"/bin/true"}, Timeout: 30})
			errs <- err
		}()
	}
	for range 40 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestExecMeetsExit: an exec that comes while the container ends says so, whatever step it fails in.
func TestExecMeetsExit(t *testing.T) {
	t.Parallel()
	p := sharedNode(t).runPod(t, hostNetwork)
	for range 10 {
		c := p.run(t, sh("sleep 0.2"))
		for {
			if _, err := c.execSync(t, 10, "/bin/true"); err != nil {
				if !strings.Contains(err.Error(), "the container is exited") {
					t.Errorf("ExecSync() = %v; want that the container has ended", err)
				}
				break
			}
		}
	}
}
