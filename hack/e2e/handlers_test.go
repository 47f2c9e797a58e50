package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// handlerEnv has all tests run their pods by another runtime, as in CRI_SHIM_E2E_HANDLER=runc. What only the built-in
// runtime has then fails.
const handlerEnv = "CRI_SHIM_E2E_HANDLER"

// peers are programs, and Debian's packages, that tests have as handlers.
var peers = []string{"runc", "crun"}

// runtimesTable is the configuration of those runtimes that are installed.
func runtimesTable(t *testing.T, names ...string) string {
	var list []string
	for _, name := range names {
		if path := peerPath(t, name); path != "" {
			list = append(list, fmt.Sprintf("%s = { path = %q }", name, path))
		}
	}
	return "{ " + strings.Join(list, ", ") + " }"
}

// peerPath is where a runtime is installed, "" for nowhere.
func peerPath(t *testing.T, name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	const hybrid = "/sys/fs/cgroup/unified"
	if controllers, err := os.ReadFile(hybrid + "/cgroup.controllers"); name != "crun" || err != nil || len(bytes.TrimSpace(controllers)) == 0 {
		return path
	}
	// crun refuses to run beside a v2 hierarchy that has controllers, so that is taken from its sight.
	wrapper := filepath.Join(t.TempDir(), name)
	script := fmt.Sprintf("#!/bin/sh\nexec unshare -m sh -c 'umount %[1]s && mount -t tmpfs none %[1]s && exec \"$@\"' sh %[2]s \"$@\"\n", hybrid, path)
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return wrapper
}

// onPeers runs a test with each of the other runtimes.
func onPeers(t *testing.T, test func(t *testing.T, n *node, handler string)) {
	t.Parallel()
	n := newNode(t, map[string]string{"runtimes": runtimesTable(t, peers...), "pods_per_supervisor": "1"})
	for _, name := range peers {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Skipf("needs the package %s: %v", name, err)
			}
			test(t, n, name)
		})
	}
}

// stdin is an edit that gives a container an input.
func stdin(c *pb.ContainerConfig) { c.Stdin = true }

func TestHandlers(t *testing.T) {
	onPeers(t, func(t *testing.T, n *node, handler string) {
		p := n.runPodAs(t, handler)
		if got := p.status(t).RuntimeHandler; got != handler {
			t.Errorf("the pod's handler is %q; want %s", got, handler)
		}
		t.Run("life", func(t *testing.T) { handlerLife(t, p) })
		t.Run("surroundings", func(t *testing.T) { handlerSurroundings(t, p) })
		t.Run("exec", func(t *testing.T) { handlerExec(t, p) })
		t.Run("streams", func(t *testing.T) { handlerStreams(t, p) })
		t.Run("attach", func(t *testing.T) { handlerAttach(t, p) })
		t.Run("limits", func(t *testing.T) { handlerLimits(t, p) })
		t.Run("PID namespaces", func(t *testing.T) { handlerPID(t, n, handler) })
	})
}

func handlerLife(t *testing.T, p *pod) {
	c := p.run(t, sh("echo out; echo err >&2; sleep 0.2; exit 42"))
	if s := c.wait(t); s.ExitCode != 42 || s.Reason != "Error" || s.FinishedAt < s.StartedAt {
		t.Errorf("after its end: %v; want 42, Error", s)
	}
	if out, errs := c.log(t, "stdout"), c.log(t, "stderr"); out != "out\n" || errs != "err\n" {
		t.Errorf("log = %q and %q; want out and err", out, errs)
	}
	eventually(t, "an ended container leaves nothing", func() bool { return len(handlerTraces(c)) == 0 })
	// One that has ended before its start is answered.
	for range 5 {
		if s := p.run(t, []string{"/bin/true"}).wait(t); s.ExitCode != 0 || s.Reason != "Completed" {
			t.Errorf("true: %v; want 0, Completed", s)
		}
	}
	c = p.run(t, sh("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"))
	eventually(t, "ready", func() bool { return strings.Contains(c.rawLog(t), "ready") })
	c.stopIt(t, 30)
	if s := c.status(t); s.ExitCode != 3 {
		t.Errorf("stopped: %d; want the 3 of its trap", s.ExitCode)
	}
	c = p.run(t, []string{"/bin/sleep", "1000061"})
	c.stopIt(t, 0)
	if s := c.status(t); s.ExitCode != 137 {
		t.Errorf("killed: %d; want 137", s.ExitCode)
	}
	for name, command := range map[string][]string{"/bin/nothing-here": {"/bin/nothing-here"}, "ermission denied": {"/etc/passwd"}} {
		err := p.createAndStart(t, p.containerConfig("bad-"+strings.Fields(name)[0][1:4], command))
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("a container that runs %s: %v; want the runtime's own words with %q", command, err, name)
		}
	}
}

// handlerTraces is what there is of a container beside its record.
func handlerTraces(c *container) (left []string) {
	for _, dir := range []string{"state/bundles", "state/runtimes/runc", "state/runtimes/crun"} {
		for _, e := range entries(c.path(dir)) {
			if strings.Contains(e, c.id) {
				left = append(left, dir+"/"+e)
			}
		}
	}
	for _, mount := range mountsBelow(c.dir) {
		if strings.Contains(mount, c.id) {
			left = append(left, mount)
		}
	}
	for _, dir := range cgroupsBelow(c.cgroup) {
		if strings.Contains(dir, c.id) {
			left = append(left, dir)
		}
	}
	return left
}

// handlerSurroundings: what the CRI asks for is what the runtime is told.
func handlerSurroundings(t *testing.T, p *pod) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", []byte("of the node\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := p.output(t, "hostname; id -u; cat /volume/file; touch /volume/new 2>/dev/null || echo read-only; cat /image/bin/busybox | wc -c | grep -qv '^0$' && echo image; "+
		"grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; cat /etc/hostname; touch /own && echo writable; ip -o addr show eth0 | grep -c 'inet '; "+
		"echo $MY; mount | grep -c ' / '; cat /proc/self/oom_score_adj; head -c 1 /proc/kcore | wc -c",
		asApp, mount(&pb.Mount{HostPath: dir, ContainerPath: "/volume", Readonly: true}),
		mount(&pb.Mount{Image: &pb.ImageSpec{Image: busybox()}, ContainerPath: "/image", Readonly: true}),
		func(c *pb.ContainerConfig) {
			c.Envs = []*pb.KeyValue{{Key: "MY", Value: []byte("own")}}
			c.Linux.Resources.OomScoreAdj = 300
			c.Linux.SecurityContext.NoNewPrivs = true
		})
	want := p.config.Hostname + "\n1000\nof the node\nread-only\nimage\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n" +
		p.config.Hostname + "\n1\nown\n1\n300\n0\n"
	if got != want {
		t.Errorf("a container sees %q; want %q", got, want)
	}
	rro := p.containerConfig("rro", sh("true"), mount(&pb.Mount{HostPath: dir, ContainerPath: "/volume", Readonly: true, RecursiveReadOnly: true}))
	err := p.createAndStart(t, rro)
	if p.node.recursiveReadOnly(t, p.status(t).RuntimeHandler) != (err == nil) || err != nil && status.Code(err) != codes.InvalidArgument {
		t.Errorf("a recursive read-only mount: %v; want what the handler's features say", err)
	}
}

// recursiveReadOnly is what Status says of a handler.
func (n *node) recursiveReadOnly(t *testing.T, handler string) bool {
	t.Helper()
	s, err := n.RuntimeServiceClient.Status(ctx(t), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range s.RuntimeHandlers {
		if h.Name == handler {
			return h.Features.RecursiveReadOnlyMounts
		}
	}
	t.Fatalf("Status has no handler %s: %v", handler, s.RuntimeHandlers)
	return false
}

func handlerExec(t *testing.T, p *pod) {
	c := p.sleeping(t, asApp)
	resp, err := c.execSync(t, 0, sh("echo out; echo err >&2; id -u; grep Seccomp: /proc/self/status; exit 7")...)
	if err != nil || resp.ExitCode != 7 || string(resp.Stdout) != "out\n1000\nSeccomp:\t2\n" || string(resp.Stderr) != "err\n" {
		t.Errorf("ExecSync() = %v, %v; want out, err and 7", resp, err)
	}
	if resp, err = c.execSync(t, 0, "/bin/sh", "-c", "kill -9 $$"); err != nil || resp.ExitCode != 137 {
		t.Errorf("ExecSync() of what kills itself = %v, %v; want 137", resp, err)
	}
	for range 10 { // which have ended before anybody can ask for them
		if resp, err := c.execSync(t, 0, "/bin/true"); err != nil || resp.ExitCode != 0 {
			t.Errorf("ExecSync(true) = %v, %v; want 0", resp, err)
		}
	}
	if _, err := c.execSync(t, 0, "/no/such/program"); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("ExecSync() of nothing = %v; want an error that names it", err)
	}
	if _, err = c.execSync(t, 1, sh("sleep 1000063 & sleep 1000063")...); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("ExecSync() = %v; want DeadlineExceeded", err)
	}
	eventually(t, "the command and what it started are killed", func() bool { return len(processesOf("sleep\x001000063")) == 0 })
	errs := make(chan error)
	for range 12 {
		go func() {
			resp, err := c.ExecSync(t.Context(), &pb.ExecSyncRequest{ContainerId: c.id, Cmd: sh("exit 9"), Timeout: 60})
			if err == nil && resp.ExitCode != 9 {
				err = fmt.Errorf("exit code %d", resp.ExitCode)
			}
			errs <- err
		}()
	}
	for range 12 {
		if err := <-errs; err != nil {
			t.Errorf("an exec of twelve at once: %v; want 9", err)
		}
	}
	if s := c.status(t); s.State != pb.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v; want running", s.State)
	}
	for _, e := range entries(c.path("state/bundles", c.id)) {
		if n := entries(c.path("state/bundles", c.id, e)); strings.HasPrefix(e, "launch-") && len(n) > 0 && n[0] == "process.json" {
			t.Errorf("an exec has left %s with %v", e, n)
		}
	}
	c.stopIt(t, 0)
}

func handlerStreams(t *testing.T, p *pod) {
	c := p.sleeping(t)
	defer c.stopIt(t, 0)
	const size = 5 << 20
	want, got := sha256.New(), sha256.New()
	cmd := p.streamCommand(ctx(t), t, "exec", "-i", c.id, "/bin/sh", "-c", "cat; echo end >&2")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = io.TeeReader(pattern(size), want), got, &stderr
	if err := cmd.Run(); err != nil || stderr.String() != "end\n" || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Errorf("crictl exec cat: %v, %q; want what was sent, and end", err, stderr.String())
	}
	term := startTerminal(t, p.streamCommand(ctx(t), t, "exec", "-it", c.id, "/bin/sh"))
	term.write("test -t 0 && test -t 1 && test -t 2 && echo is-a-$((1+1))-tty\n")
	term.until("is-a-2-tty\r\n")
	term.resize(40, 123)
	term.write("until test \"$(stty size)\" = '40 123'; do sleep 0.05; done; echo size-$((1+1))\n")
	term.until("size-2\r\n")
	term.write("sleep 1000065\n")
	eventually(t, "sleep runs", func() bool { return len(processesOf("sleep\x001000065")) == 1 })
	term.write("\x03")
	eventually(t, "the interrupt key ends it", func() bool { return len(processesOf("sleep\x001000065")) == 0 })
	term.write("exit 3\n")
	term.until("exit code 3")
	if err := term.cmd.Wait(); err == nil {
		t.Error("crictl exec ends without an error; want the exit code's")
	}
}

func handlerAttach(t *testing.T, p *pod) {
	c := p.run(t, sh("while read line; do echo got $line; done; echo end; exit 4"), stdin,
		func(c *pb.ContainerConfig) { c.StdinOnce = true })
	cmd := p.streamCommand(ctx(t), t, "attach", "-i", c.id)
	cmd.Stdin = strings.NewReader("hello\n")
	if out, err := cmd.Output(); err != nil || string(out) != "got hello\nend\n" {
		t.Errorf("crictl attach = %q, %v; want got hello, end", out, err)
	}
	if s := c.wait(t); s.ExitCode != 4 {
		t.Errorf("exit code %d; want 4", s.ExitCode)
	}
	c = p.run(t, sh("test -t 0 && test -t 1 && test -t 2 && echo terminal; while read line; do echo got-$line; stty size; done"), stdin,
		func(c *pb.ContainerConfig) { c.Tty = true })
	eventually(t, "terminals", func() bool { return strings.Contains(c.rawLog(t), "stdout F terminal") })
	term := startTerminal(t, p.streamCommand(ctx(t), t, "attach", "-it", c.id))
	term.resize(31, 77)
	for range 20 { // until the size has come through
		term.write("line\n")
		time.Sleep(50 * time.Millisecond)
	}
	term.until("got-line\r\n")
	term.until("31 77\r\n")
	term.cmd.Process.Kill()
	term.cmd.Wait()
	c.stopIt(t, 0)
	if s := c.status(t); s.ExitCode != 137 {
		t.Errorf("a container with a terminal, killed: %d; want 137", s.ExitCode)
	}
}

func handlerLimits(t *testing.T, p *pod) {
	c := p.run(t, []string{"/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"}, func(c *pb.ContainerConfig) {
		c.Linux.Resources = &pb.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}
	})
	if s := c.wait(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("after using more than the limit: %d %s %s; want 137 OOMKilled", s.ExitCode, s.Reason, s.Message)
	}
	testUpdate(t, p.node, p)
	c = p.run(t, sh("dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; sleep 100000 & while :; do :; done"))
	eventually(t, "what a container does in its statistics", func() bool {
		s, err := p.ContainerStats(ctx(t), &pb.ContainerStatsRequest{ContainerId: c.id})
		return err == nil && s.Stats.WritableLayer.GetUsedBytes().GetValue() >= 3<<20 &&
			s.Stats.Cpu.GetUsageNanoCores().GetValue() > 1e7 && s.Stats.Memory.GetWorkingSetBytes().GetValue() > 0
	})
	c.stopIt(t, 0)
}

func handlerPID(t *testing.T, n *node, handler string) {
	p := n.runPodAs(t, handler, namespaces(func(o *pb.NamespaceOption) { o.Pid = pb.NamespaceMode_POD }))
	first, second := p.run(t, []string{"/bin/sleep", "1000071"}), p.run(t, []string{"/bin/sleep", "1000073"})
	for _, c := range []*container{first, second} {
		if got := c.exec(t, "ps"); !strings.Contains(got, "1000071") || !strings.Contains(got, "1000073") {
			t.Errorf("in a shared PID namespace ps shows %q; want both containers", got)
		}
	}
	// What a container leaves in a namespace that goes on is killed with it.
	left := p.run(t, sh("sleep 1000075 & exit 5"))
	if s := left.wait(t); s.ExitCode != 5 {
		t.Errorf("exit code %d; want 5", s.ExitCode)
	}
	eventually(t, "what a container left is killed", func() bool { return len(processesOf("sleep\x001000075")) == 0 })
	own := n.runPodAs(t, handler)
	target := own.run(t, []string{"/bin/sleep", "1000077"})
	debug := own.sleeping(t, func(c *pb.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &pb.NamespaceOption{Pid: pb.NamespaceMode_TARGET, TargetId: target.id}
	})
	if got := debug.exec(t, "ps"); !strings.Contains(got, "1000077") {
		t.Errorf("a container in another's PID namespace sees %q; want that", got)
	}
	host := n.runPodAs(t, handler, namespaces(func(o *pb.NamespaceOption) { o.Pid = pb.NamespaceMode_NODE }))
	if s := host.run(t, sh("kill -SEGV $$; sleep 10")).wait(t); s.ExitCode != 139 {
		t.Errorf("killed by SIGSEGV: %d; want 139", s.ExitCode)
	}
}

// TestHandlerSystemd: runc has systemd make a scope, and tells it of new limits. (crun needs the system bus for that.)
func TestHandlerSystemd(t *testing.T) {
	n := systemdNode(t)
	if peerPath(t, "runc") == "" {
		t.Skip("needs the package runc")
	}
	n.config["runtimes"] = runtimesTable(t, "runc")
	n.restart(t, syscall.SIGTERM)
	t.Cleanup(func() { _ = exec.Command("systemctl", "stop", "crishime2e.slice").Run() })
	p := n.runPodAs(t, "runc", hostNetwork, inSlice(t))
	c := p.sleeping(t)
	unit := "cri-shim-" + c.id + ".scope"
	if got := systemctl(t, "is-active", unit); got != "active" {
		t.Errorf("systemctl is-active %s = %q", unit, got)
	}
	if resp, err := c.execSync(t, 60, sh("exit 5")...); err != nil || resp.ExitCode != 5 {
		t.Errorf("ExecSync() = %v, %v; want 5", resp, err)
	}
	if _, err := c.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &pb.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(c.exec(t, "cat /sys/fs/cgroup/memory.max")); got != fmt.Sprint(96<<20) {
		t.Errorf("memory.max after an update = %s; want %d", got, 96<<20)
	}
	if got := systemctl(t, "show", "-P", "MemoryMax", unit); got != fmt.Sprint(96<<20) {
		t.Errorf("MemoryMax of %s after an update = %s; want %d", unit, got, 96<<20)
	}
	if s, err := c.ContainerStats(ctx(t), &pb.ContainerStatsRequest{ContainerId: c.id}); err != nil || s.Stats.Memory.GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("ContainerStats = %v, %v; want its memory", s, err)
	}
	c.stopIt(t, 0)
	eventually(t, "an ended container leaves nothing", func() bool { return len(handlerTraces(c)) == 0 })
	if out, _ := exec.Command("systemctl", "is-active", unit).Output(); strings.TrimSpace(string(out)) == "active" {
		t.Errorf("%s is left", unit)
	}
}

// TestHandlerRestart: containers of another runtime do not notice that the daemon ends, nor that their supervisor does.
func TestHandlerRestart(t *testing.T) {
	onPeers(t, func(t *testing.T, n *node, handler string) {
		p := n.runPodAs(t, handler)
		counter := p.run(t, counting)
		shared := n.runPodAs(t, handler, namespaces(func(o *pb.NamespaceOption) { o.Pid = pb.NamespaceMode_POD })).sleeping(t)
		created := p.create(t, sh("echo started later"))
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			ends := p.run(t, sh("sleep 0.2; exit 7"))
			before := counter.status(t)
			if err := n.stop(sig); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond)
			if err := n.start(); err != nil {
				t.Fatal(err)
			}
			if s := ends.wait(t); s.ExitCode != 7 {
				t.Errorf("%s: what ended meanwhile: %v; want 7", sig, s)
			}
			eventually(t, "what ended meanwhile leaves nothing", func() bool { return len(handlerTraces(ends)) == 0 })
			if s := counter.status(t); s.String() != before.String() {
				t.Errorf("%s: the container's status = %v; want it as it was, %v", sig, s, before)
			}
			old := fileSize(t, counter.logPath)
			eventually(t, "the log grows", func() bool { return fileSize(t, counter.logPath) > old })
			for _, c := range []*container{counter, shared} {
				if resp, err := c.execSync(t, 30, sh("exit 6")...); err != nil || resp.ExitCode != 6 {
					t.Errorf("%s: an exec afterwards: %v, %v; want 6", sig, resp, err)
				}
			}
		}
		if s := created.startIt(t).wait(t); s.ExitCode != 0 {
			t.Errorf("a container that an earlier daemon created: %v; want it to run", s)
		}
		counter.stopIt(t, 0)
		checkCount(t, counter.rawLog(t))
		handlerSupervisorKilled(t, n, handler)
	})
}

func handlerSupervisorKilled(t *testing.T, n *node, handler string) {
	victim := n.runPodAs(t, handler).sleeping(t)
	victim.exec(t, "until grep -q sleep /proc/1/comm; do sleep 0.05; done") // the runtime's own init is executing it
	if err := syscall.Kill(parentOf(t, processesOf("sleep\x001000000"), victim), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an exec through another supervisor", func() bool {
		r, err := victim.execSync(t, 30, sh("exit 8")...)
		return err == nil && r.ExitCode == 8
	})
	if s := victim.status(t); s.State != pb.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a container whose supervisor was killed: %v; want it to run on", s)
	}
	victim.stopIt(t, 0)
	if s := victim.status(t); s.State != pb.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 && s.ExitCode != 255 {
		t.Errorf("stopped: %v; want 137, or 255 on a kernel that does not tell", s)
	}
}

// fakeRuntime writes a runtime that is a script.
func fakeRuntime(t *testing.T, n *node, name, script string) string {
	t.Helper()
	path := n.path(name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestHandlerErrors: runtimes that are unknown, missing, that fail and that hang.
func TestHandlerErrors(t *testing.T) {
	t.Parallel()
	n := newNode(t, map[string]string{"kill_timeout": `"2s"`})
	const says = `while [ $# -gt 0 ]; do case $1 in --log) log=$2; shift;; create) create=1;; esac; shift; done
test -z "$create" || { echo '{"level":"error","msg":"this one always fails"}' > "$log"; exit 1; }`
	fails := fakeRuntime(t, n, "fails", says)
	hangs := fakeRuntime(t, n, "hangs", "case \"$*\" in *create*) mkdir -p "+n.path("state/runtimes/hangs")+"/${0##*/}; sleep 1000081;; esac")
	lies := fakeRuntime(t, n, "lies", `while [ $# -gt 0 ]; do case $1 in --pid-file) echo $PPID > $2; shift;; esac; shift; done`)
	missing := n.path("missing")
	n.config["runtimes"] = fmt.Sprintf("{ fails = { path = %q }, hangs = { path = %q, timeout = '2s' }, lies = { path = %q }, missing = { path = %q } }",
		fails, hangs, lies, missing)
	if out, err := exec.Command(n.program, "config", "check", "--config", n.path("config.toml")).CombinedOutput(); err != nil {
		t.Fatalf("config check: %v\n%s", err, out)
	}
	n.restart(t, syscall.SIGTERM)
	if out, err := exec.Command(n.program, "config", "check", "--config", n.path("config.toml")).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "runtimes.missing.path: "+missing+": no such file") {
		t.Errorf("config check with a runtime that is missing: %v, %s; want an error with its path", err, out)
	}
	for handler, want := range map[string]struct {
		code codes.Code
		text string
	}{
		"unknown": {codes.InvalidArgument, `"unknown" is not configured; there is "", "fails", "hangs", "lies", "missing"`},
		"missing": {codes.FailedPrecondition, missing},
	} {
		_, err := n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{Config: n.podConfig(), RuntimeHandler: handler})
		if status.Code(err) != want.code || !strings.Contains(err.Error(), want.text) {
			t.Errorf("RunPodSandbox(%s) = %v; want %s with %q", handler, err, want.code, want.text)
		}
	}
	for handler, want := range map[string]string{
		"fails": "fails create: this one always fails", "hangs": "hangs create: " + hangs + " has not ended after 2s",
		"lies": " is not one that " + lies + " has made",
	} {
		p := n.runPodAs(t, handler, hostNetwork)
		if err := p.createAndStart(t, p.containerConfig("c", sh("true"))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a container of the runtime that %s: %v; want %q", handler, err, want)
		}
	}
	if left := processesOf("sleep\x001000081"); len(left) > 0 {
		t.Errorf("a runtime that hangs is left: %v", left)
	}
}

// TestHandlerGone: a runtime that hangs, or has gone, does not keep a container's processes alive, and a container goes
// when its runtime is there again or is not configured any more.
func TestHandlerGone(t *testing.T) {
	t.Parallel()
	path, err := exec.LookPath("runc")
	if err != nil {
		t.Skipf("needs the package runc: %v", err)
	}
	n := newNode(t, nil)
	wrapper := fakeRuntime(t, n, "wrapper", "exec "+path+` "$@"`)
	n.config["runtimes"] = fmt.Sprintf("{ w = { path = %q, timeout = '10s' } }", wrapper)
	n.restart(t, syscall.SIGTERM)
	for name, script := range map[string]string{"hangs": "sleep 1000083", "fails": "echo broken >&2; exit 1", "is missing": ""} {
		p := n.runPodAs(t, "w", hostNetwork)
		c := p.run(t, []string{"/bin/sleep", "1000085"})
		if fakeRuntime(t, n, "wrapper", script); script == "" {
			os.Remove(wrapper)
		}
		begin := time.Now()
		_, err := n.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: c.id})
		if err == nil || !strings.Contains(err.Error(), wrapper) || time.Since(begin) > time.Minute {
			t.Errorf("RemoveContainer() while the runtime %s = %v after %s; want an error that names it", name, err, time.Since(begin))
		}
		if left := processesOf("sleep\x001000085"); len(left) > 0 {
			t.Errorf("while the runtime %s its container's processes %v are left", name, left)
		}
		fakeRuntime(t, n, "wrapper", "exec "+path+` "$@"`)
		if _, err := n.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: c.id}); err != nil {
			t.Errorf("RemoveContainer() when the runtime is there again: %v", err)
		}
	}
	p := n.runPodAs(t, "w", hostNetwork)
	c := p.run(t, []string{"/bin/sleep", "1000087"})
	n.config["runtimes"] = "{}"
	n.restart(t, syscall.SIGTERM)
	if _, err := c.execSync(t, 5, "/bin/true"); err == nil || !strings.Contains(err.Error(), `handler "w" is not configured any more`) {
		t.Errorf("an exec in a container without its runtime: %v; want that it is not configured", err)
	}
	if _, err := n.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Errorf("RemoveContainer() of one whose runtime is not configured any more: %v", err)
	}
	if left := append(handlerTraces(c), entries(n.path("state/runtimes/w"))...); len(left) > 0 {
		t.Errorf("it has left %v", left)
	}
}

// TestHandlerFeatures: Status has each handler with what its runtime says of itself.
func TestHandlerFeatures(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	all := fakeRuntime(t, n, "all", `test "$3" = features || exit 1
echo '{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","mountOptions":["ro","rro"],"linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":true}}}}'`)
	none := fakeRuntime(t, n, "none", "echo what >&2; exit 1")
	n.config["runtimes"] = fmt.Sprintf("{ all = { path = %q }, none = { path = %q } }", all, none)
	n.restart(t, syscall.SIGTERM)
	s, err := n.RuntimeServiceClient.Status(ctx(t), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*pb.RuntimeHandlerFeatures{}
	for _, h := range s.RuntimeHandlers {
		got[h.Name] = h.Features
	}
	builtin := got[""]
	if a := got["all"]; builtin == nil || a == nil || a.RecursiveReadOnlyMounts != builtin.RecursiveReadOnlyMounts || a.UserNamespaces != builtin.UserNamespaces {
		t.Errorf("a runtime that can all has %v; want what this node can, %v", a, builtin)
	}
	if a := got["none"]; a == nil || a.RecursiveReadOnlyMounts || a.UserNamespaces {
		t.Errorf("a runtime that tells nothing has %v; want nothing", a)
	}
	_, err = n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{RuntimeHandler: "none", Config: n.podConfig(namespaces(func(o *pb.NamespaceOption) {
		ids := []*pb.IDMapping{{HostId: 100000, Length: 65536}}
		o.UsernsOptions = &pb.UserNamespace{Mode: pb.NamespaceMode_POD, Uids: ids, Gids: ids}
	}))})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `"none"`) {
		t.Errorf("a pod with a user namespace on a runtime without: %v; want InvalidArgument that names it", err)
	}
}
