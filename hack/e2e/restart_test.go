package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRestart: pods do not notice that the daemon ends, in whatever way, and starts.
func TestRestart(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.runPod(t)
	p.serveWeb(t)
	counter := p.run(t, counting)
	shared := n.runPod(t, namespaces(func(o *pb.NamespaceOption) { o.Pid = pb.NamespaceMode_POD })).sleeping(t)
	created := p.create(t, sh("echo started later"))
	pid := counter.exec(t, "cut -d' ' -f22 /proc/1/stat")
	before := counter.status(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		ends := p.run(t, sh("sleep 0.2; exit 7"))
		if err := n.stop(sig); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
		if s := ends.status(t); s.State != pb.ContainerState_CONTAINER_EXITED || s.ExitCode != 7 || s.FinishedAt == 0 {
			t.Errorf("%s: what ended meanwhile: %v; want exited with 7", sig, s)
		}
		if s := ends.status(t); s.FinishedAt-s.StartedAt > int64(450*time.Millisecond) {
			t.Errorf("%s: what ended meanwhile took %s; want when it ended, not when that was seen", sig, time.Duration(s.FinishedAt-s.StartedAt))
		}
		if s := p.status(t); s.State != pb.PodSandboxState_SANDBOX_READY || s.Network.Ip == "" {
			t.Errorf("%s: the pod is %v; want ready", sig, s)
		}
		if s := counter.status(t); s.String() != before.String() {
			t.Errorf("%s: the container's status = %v; want it as it was, %v", sig, s, before)
		}
		if got := counter.exec(t, "cut -d' ' -f22 /proc/1/stat"); got != pid {
			t.Errorf("%s: PID 1 began at %s; want %s, the same process", sig, got, pid)
		}
		get(t, p.ip(t)+":8080")
		shared.exec(t, "true")
		size := func() int64 { return fileSize(t, counter.logPath) }
		old := size()
		eventually(t, "the log grows", func() bool { return size() > old })
	}
	if s := created.startIt(t).wait(t); s.ExitCode != 0 {
		t.Errorf("a container that an earlier daemon created: %v; want it to run", s)
	}
	counter.stopIt(t, 0)
	if count := checkCount(t, counter.rawLog(t)); count < 500 {
		t.Errorf("the log counts to %d only", count)
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

// TestKillDuringChurn kills the daemon at any moment while pods come and go. Whatever was begun, all can be
// removed, and nothing is left (which newNode's clean-up checks).
func TestKillDuringChurn(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 8 {
		stop, cancel := context.WithCancel(t.Context())
		var workers sync.WaitGroup
		for range 3 {
			workers.Go(func() { n.churn(stop) })
		}
		time.Sleep(time.Duration(random.IntN(250)) * time.Millisecond)
		if err := n.stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		cancel()
		workers.Wait()
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
	}
	if c := n.condition(t, "RuntimeReady"); !c.Status {
		t.Errorf("RuntimeReady = %v; want true", c)
	}
	p := n.runPod(t)
	if got := p.output(t, "echo works"); got != "works\n" {
		t.Errorf("a pod afterwards says %q; want works", got)
	}
	get(t, n.webPod(t)+":8080")
}

// webPod runs a web server in a pod and returns its address.
func (n *node) webPod(t *testing.T) string {
	p := n.runPod(t)
	p.serveWeb(t)
	return p.ip(t)
}

// churn makes, uses and removes pods until ctx ends; every call may fail, since the daemon may die.
func (n *node) churn(ctx context.Context) {
	for ctx.Err() == nil {
		config := n.podConfig()
		resp, err := n.RunPodSandbox(ctx, &pb.RunPodSandboxRequest{Config: config})
		if err != nil {
			n.remember(strings.Repeat("x", 64)+config.Metadata.Name, config) // its cgroup may be there
			continue
		}
		p := &pod{node: n, id: resp.PodSandboxId, config: config}
		n.remember(p.id, config)
		c, err := n.CreateContainer(ctx, &pb.CreateContainerRequest{
			PodSandboxId: p.id, Config: p.containerConfig("c", sh("sleep 0.02; echo done")), SandboxConfig: config,
		})
		if err == nil {
			_, err = n.StartContainer(ctx, &pb.StartContainerRequest{ContainerId: c.ContainerId})
		}
		if err == nil {
			_, err = n.ExecSync(ctx, &pb.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: []string{"/bin/true"}})
		}
		if err == nil {
			_ = n.removePod(ctx, p.id)
		}
	}
}

// TestSecondDaemon: a folder has one daemon, whatever else differs.
func TestSecondDaemon(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	for _, same := range []string{"root", "state", "listen"} {
		args := []string{"serve", "--config", n.path("config.toml")}
		for _, other := range []string{"root", "state", "listen"} {
			if other != same {
				args = append(args, "--"+other, n.path("second", other))
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		cmd := commandContext(ctx, n.program, args...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err == nil || ctx.Err() != nil {
			t.Fatalf("a second daemon with the same %s: %v; want it to end by itself with an error\n%s", same, err, out.String())
		}
		text := strings.Trim(n.config[same], `"`)
		if !strings.Contains(out.String(), text) {
			t.Errorf("a second daemon with the same %s says %q; want it to name %s", same, out.String(), text)
		}
		if same != "listen" && !strings.Contains(out.String(), strconv.Itoa(n.daemon.Process.Pid)) {
			t.Errorf("a second daemon with the same %s says %q; want it to name process %d", same, out.String(), n.daemon.Process.Pid)
		}
	}
	n.runPod(t) // the first one goes on
}

// TestCorruptRecord: a record that cannot be read costs its object and is reported.
func TestCorruptRecord(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	good, bad := n.runPod(t), n.runPod(t)
	healthy := good.sleeping(t)
	if err := n.stop(stopSignal); err != nil {
		t.Fatal(err)
	}
	record := n.record(t, bad.id)
	original, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, []byte("\x00{not a record"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	resp, err := n.RuntimeServiceClient.Status(ctx(t), &pb.StatusRequest{Verbose: true})
	if err != nil || !strings.Contains(resp.Info["problems"], record) {
		t.Errorf("verbose Status() = %v, %v; want a problem that names %s", resp.GetInfo()["problems"], err, record)
	}
	healthy.exec(t, "true")
	n.runPod(t)
	// Put right, so that the pod can be removed.
	if err := n.stop(stopSignal); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, original, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	if s := bad.status(t); s.State != pb.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod whose record was put right is %v; want ready", s.State)
	}
}

// record is the file that a pod is recorded in.
func (n *node) record(t *testing.T, id string) string {
	t.Helper()
	for _, pattern := range []string{"root/pods/*", "root/*/pods/*", "root/records/*"} {
		found, err := filepath.Glob(n.path(pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			if strings.HasPrefix(filepath.Base(path), id) {
				return path
			}
		}
	}
	t.Fatal(fmt.Errorf("no record of %s below %s", id, n.path("root")))
	return ""
}

// TestSupervisorKilled: containers outlive their supervisor, exec goes on and they can be stopped; other pods do not notice.
func TestSupervisorKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t, map[string]string{"pods_per_supervisor": "1"})
	first, second := n.runPod(t), n.runPod(t)
	victim, other := first.sleeping(t), second.sleeping(t)
	pid := parentOf(t, processesOf("sleep\x001000000"), victim)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an exec through another supervisor", func() bool {
		r, err := victim.execSync(t, 10, "sh", "-c", "echo $$ >&2; ps")
		if err == nil && !strings.Contains(string(r.Stdout), "sleep 1000000") {
			t.Fatalf("exec in an orphan sees %q; want the container's processes", r.Stdout)
		}
		return err == nil
	})
	if s := victim.status(t); s.State != pb.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a container whose supervisor was killed: %v; want it to run on", s)
	}
	other.exec(t, "true")
	victim.stopIt(t, 0)
	if s := victim.status(t); s.State != pb.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 && s.ExitCode != 255 {
		t.Errorf("stopped: %v; want 137, or 255 on a kernel that does not tell", s)
	}
	n.runPod(t).sleeping(t)
}

// parentOf is the parent of the process of a container, which is one of pids.
func parentOf(t *testing.T, pids []string, c *container) int {
	t.Helper()
	for _, pid := range pids {
		cgroup, err := os.ReadFile("/proc/" + pid + "/cgroup")
		if err != nil || !strings.Contains(string(cgroup), c.id) {
			continue
		}
		text, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			t.Fatal(err)
		}
		parent, err := strconv.Atoi(statusField(string(text), "PPid"))
		if err != nil || parent <= 1 {
			t.Fatalf("parent of %s = %d, %v", pid, parent, err)
		}
		return parent
	}
	t.Fatalf("no process of container %s among %v", c.id, pids)
	return 0
}
