package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// crash lets go of everything at once, as a daemon that is killed.
func (m *Manager) crash() {
	os.Remove(m.cfg.Root) // a symbolic link: it writes nothing more
	m.background.mu.Lock()
	m.background.closed = true
	m.background.mu.Unlock()
	m.stop()
	m.pool.mu.Lock()
	m.pool.closed = true
	m.pool.mu.Unlock()
	for _, c := range m.pool.all() {
		c.conn.Close()
	}
}

// supervisorPID is the process that holds a pod.
func supervisorPID(t *testing.T, m *Manager, pod string) int {
	t.Helper()
	p, err := m.Pod(pod)
	must(t, err)
	text, err := os.ReadFile(filepath.Join(m.pool.dir, p.Supervisor, "pid"))
	must(t, err)
	pid, err := strconv.Atoi(string(text))
	must(t, err)
	return pid
}

// processes are those of all supervisors; of one that is just ending it has the supervisor's own ID.
func processes(t *testing.T, m *Manager) (ids []string) {
	t.Helper()
	for _, c := range m.pool.all() {
		all, err := c.list(t.Context())
		if errors.Is(err, ErrUnavailable) {
			ids = append(ids, c.id)
			continue
		}
		must(t, err)
		for _, p := range all {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// A supervisor that does not run costs nobody more than his own deadline, and other pods nothing. What
// was asked of it meanwhile and given up does not happen when it goes on.
func TestStuckSupervisor(t *testing.T) {
	h := newHost(t)
	h.perSupervisor, h.operation = 1, 10*time.Second // a launch takes up to five on a busy emulated machine
	m := h.manager()
	stuckPod, err := m.RunPod(t.Context(), podConfig("stuck"))
	must(t, err)
	running, err := m.CreateContainer(t.Context(), stuckPod, containerConfig("running"))
	must(t, err)
	must(t, m.StartContainer(t.Context(), running))
	late, err := m.CreateContainer(t.Context(), stuckPod, containerConfig("late"))
	must(t, err)
	pid := supervisorPID(t, m, stuckPod)
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) })

	begun := time.Now()
	brief := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	if _, err := m.ExecSync(brief(), running, []string{"exit 0"}, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ExecSync = %v; want a deadline", err)
	}
	if err := m.StopPod(brief(), stuckPod); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("StopPod = %v; want a deadline", err)
	}
	other, err := m.RunPod(t.Context(), podConfig("other"))
	must(t, err)
	must(t, m.RemovePod(t.Context(), other))
	if took := time.Since(begun); took >= h.operation {
		t.Errorf("calls took %s; want the sum of their deadlines", took)
	}
	must(t, m.updatePod(m.pods[stuckPod], func(p *Pod) { p.StoppedAt = time.Time{} }))
	if err := m.StartContainer(t.Context(), late); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("StartContainer = %v; want a deadline", err)
	}
	must(t, syscall.Kill(pid, syscall.SIGCONT))
	eventually(t, "only the pod's init and no late launch", func() bool {
		ids := processes(t, m)
		return len(ids) == 1 && ids[0] == stuckPod
	})
	must(t, m.RemovePod(t.Context(), stuckPod))
}

// Senders queue behind one that cannot send, each for as long as its own context lasts.
func TestSendToStuckSupervisor(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	pod, err := m.RunPod(t.Context(), podConfig("p"))
	must(t, err)
	pid := supervisorPID(t, m, pod)
	c, err := m.pool.of(m.snapshot(m.pods[pod]).Supervisor)
	must(t, err)
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) })
	filler, cancel := context.WithCancel(t.Context())
	for range 50 { // more than a socket's buffer
		go c.call(filler, &api.Request{Op: api.OpList, After: strings.Repeat("z", 60000)})
	}
	time.Sleep(100 * time.Millisecond)
	ctx, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer stop()
	begun := time.Now()
	if _, _, err := c.call(ctx, &api.Request{Op: api.OpHello}); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 2*time.Second {
		t.Errorf("call = %v after %s; want a deadline after 200 ms", err, time.Since(begun))
	}
	cancel()
	eventually(t, "those that gave up stop sending", func() bool { return len(c.sending) == 0 })
	must(t, syscall.Kill(pid, syscall.SIGCONT))
	if _, _, err := c.call(t.Context(), &api.Request{Op: api.OpHello}); err != nil {
		t.Errorf("call after it goes on = %v", err)
	}
}

// A connection that breaks is taken up again: the supervisor is not given up with what it holds.
func TestReconnect(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	pod, id := mustStart(t, m)
	p, _ := m.Pod(pod)
	c, err := m.pool.of(p.Supervisor)
	must(t, err)
	c.conn.Close()
	eventually(t, "another connection", func() bool {
		again, err := m.pool.of(p.Supervisor)
		return err == nil && again != c
	})
	if r, err := m.ExecSync(t.Context(), id, []string{"exit 3"}, 0); err != nil || r.ExitCode != 3 {
		t.Errorf("ExecSync = %+v, %v; want code 3", r, err)
	}
	must(t, m.StopContainer(t.Context(), id, 0))
	if p, _ := m.Pod(pod); p.State() != PodReady {
		t.Errorf("pod is %s (%s); want ready", p.State(), p.Why)
	}
}

// A supervisor of another version is left alone, and the reason is said.
func TestRecoverOtherVersion(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(h.dir, "state/supervisors/future")
	must(t, os.MkdirAll(dir, 0o700))
	must(t, os.MkdirAll(filepath.Join(h.dir, "state/supervisors/dead"), 0o700))
	l, err := sys.ListenSeqpacket(filepath.Join(dir, "sock"))
	must(t, err)
	defer l.Close()
	go func() {
		for {
			conn, err := sys.Accept(l)
			if err != nil {
				return
			}
			conn.Recv(make([]byte, api.MaxFrame), 1)
			conn.Send([]byte("\x63{}"))
		}
	}()
	m := h.manager()
	if _, err := os.Stat(filepath.Join(dir, "sock")); err != nil {
		t.Errorf("the supervisor's socket was taken: %v", err)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "state/supervisors/dead")); err == nil {
		t.Error("the folder of a dead supervisor was left")
	}
	_, err = m.pool.connect(t.Context(), "future")
	if err == nil || !strings.Contains(err.Error(), "version 99, this program speaks 1") {
		t.Errorf("connect = %v; want the versions", err)
	}
	m.reconcile(t.Context())
	if len(m.pool.estranged) != 1 {
		t.Errorf("estranged = %v; want one supervisor", m.pool.estranged)
	}
}

// A launch that fails after its daemon died is told to the next one.
func TestRestartDuringFailingLaunch(t *testing.T) {
	h := newHost(t)
	restarted := filepath.Join(h.dir, "restarted")
	h.script = "after " + restarted + " fail /data: no such file"
	m := h.manager()
	_, id := mustCreate(t, m)
	go m.StartContainer(context.Background(), id)
	eventually(t, "process", func() bool { return len(processes(t, m)) == 2 })
	m.crash()
	m2 := h.manager()
	must(t, os.WriteFile(restarted, nil, 0o600))
	eventually(t, "failed start recorded", func() bool { c, _ := m2.Container(id); return c.State() == ContainerExited })
	if c, _ := m2.Container(id); c.ExitCode != exitStartError || c.Reason != reasonStartError || !strings.Contains(c.Message, "/data") {
		t.Errorf("exit = %d %s %q; want a StartError about /data", c.ExitCode, c.Reason, c.Message)
	}
}

// The daemon is killed after each step; the next one leaves nothing of what was not finished.
func TestCrashAtEveryStep(t *testing.T) {
	for _, step := range []string{
		"files", "namespaces", "setup", "network", "hosts", "pod init", "check", "hold", "hold image", "layer", "log",
		"rootfs", "root file system", "cgroup", "prepare", "log file", "supervisor", "launch",
	} {
		t.Run(step, func(t *testing.T) {
			h := newHost(t)
			m := h.manager()
			arrived := make(chan struct{})
			h.mu.Lock()
			h.fail, h.die = step, func() { close(arrived); select {} } // the operation never goes on
			h.mu.Unlock()
			go func() {
				if pod, err := m.RunPod(context.Background(), podConfig("p")); err == nil {
					if id, err := m.CreateContainer(context.Background(), pod, containerConfig("c")); err == nil {
						m.StartContainer(context.Background(), id)
					}
				}
			}()
			select {
			case <-arrived:
			case <-time.After(10 * time.Second):
				t.Fatal("the step was never reached")
			}
			m.crash()
			m2 := h.manager()
			for _, c := range m2.Containers() {
				if c.State() == ContainerCreated && !c.LaunchedAt.IsZero() {
					t.Errorf("container %+v is neither created nor started", c)
				}
				if c.State() == ContainerRunning {
					must(t, m2.StopContainer(t.Context(), c.ID, 0))
				}
			}
			for _, p := range m2.recorded() {
				if p.State() == PodCreating {
					t.Errorf("pod %+v was not undone", p)
				}
				must(t, m2.RemovePod(t.Context(), p.ID))
			}
			eventually(t, "nothing left", func() bool { return len(h.residue()) == 0 && len(processes(t, m2)) == 0 })
		})
	}
}

// An exit file that says nothing is no exit with code 0.
func TestRecoverGarbledExitFile(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	_, id := mustStart(t, m)
	c, err := m.Container(id)
	must(t, err)
	m.crash()
	for _, garbage := range []string{"", "{", `{"id":"x","code":0}`} {
		must(t, os.WriteFile(m.exitFile(id), []byte(garbage), 0o600))
		if e, err := m.readExit(id); e != nil || err == nil {
			t.Errorf("readExit of %q = %+v, %v; want an error", garbage, e, err)
		}
	}
	m2 := h.manager()
	if now, err := m2.Container(id); err != nil || now.State() != ContainerRunning || now.PIDStart != c.PIDStart {
		t.Errorf("container = %+v, %v; want it running", now, err)
	}
}

// TestRecoverFailedLaunch: why a launch failed is known to a daemon that was not there when it did.
func TestRecoverFailedLaunch(t *testing.T) {
	h := newHost(t)
	h.script, h.initScript = "exec sleep 3", "exec sleep 3" // nobody kills them here
	m := h.manager()
	pod, id := mustStart(t, m)
	must(t, m.updateContainer(m.ctrs[id], func(c *ctr) { c.StartedAt, c.PID = time.Time{}, 0 })) // as if the launch were under way
	must(t, syscall.Kill(supervisorPID(t, m, pod), syscall.SIGKILL))
	m.crash()
	must(t, os.WriteFile(m.exitFile(id), []byte(`{"id":"`+id+`","code":128,"failed":"exec: /no/such: no such file","at":"2026-01-02T03:04:05Z"}`), 0o600))
	m2 := h.manager()
	c, err := m2.Container(id)
	if err != nil || c.State() != ContainerExited || c.ExitCode != exitStartError || c.Reason != reasonStartError || c.Message != "exec: /no/such: no such file" {
		t.Errorf("container = %+v, %v; want a start error with its cause", c, err)
	}
	must(t, m2.RemovePod(t.Context(), pod))
}

// After a reboot old pods are there to be collected, and their containers have ended.
func TestRecoverAfterReboot(t *testing.T) {
	h := newHost(t)
	h.initScript = "exec sleep 3" // nobody kills it here
	m := h.manager()
	pod, id := mustStart(t, m)
	must(t, m.updatePod(m.pods[pod], func(p *Pod) { p.Boot = "an earlier one" }))
	must(t, syscall.Kill(supervisorPID(t, m, pod), syscall.SIGSTOP)) // its events do not come now
	pid := supervisorPID(t, m, pod)
	m.crash()
	must(t, syscall.Kill(m.ctrs[id].PID, syscall.SIGKILL))
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	m2 := h.manager()
	if p, err := m2.Pod(pod); err != nil || p.State() != PodNotReady || !strings.Contains(p.Why, "rebooted") {
		t.Errorf("pod = %+v, %v; want not ready by a reboot", p, err)
	}
	if c, err := m2.Container(id); err != nil || c.State() != ContainerExited || c.ExitCode != exitUnknown || !strings.Contains(c.Message, "rebooted") {
		t.Errorf("container = %+v, %v; want exit 255 by a reboot", c, err)
	}
	must(t, m2.RemovePod(t.Context(), pod))
}

// The supervisor died while there was no daemon: its container is found by PID and start time.
func TestRecoverOrphan(t *testing.T) {
	h := newHost(t)
	h.initScript = "exec sleep 3"
	m := h.manager()
	pod, id := mustStart(t, m)
	pid := supervisorPID(t, m, pod)
	m.crash()
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	m2 := h.manager()
	if c, err := m2.Container(id); err != nil || c.State() != ContainerRunning {
		t.Fatalf("container = %+v, %v; want it running", c, err)
	}
	must(t, m2.StopContainer(t.Context(), id, 0)) // at once: it can be signalled already
	if c, _ := m2.Container(id); c.ExitCode != 137 && !strings.Contains(c.Message, "6.15") {
		t.Errorf("exit = %d %q; want 137, or 255 with the reason", c.ExitCode, c.Message)
	}
	must(t, m2.RemovePod(t.Context(), pod))
	eventually(t, "nothing left", func() bool { return len(h.residue()) == 0 })
}

// A pod whose init ends while it is being made is no ready pod.
func TestPodInitEndsEarly(t *testing.T) {
	h := newHost(t)
	h.initScript = "exit 3"
	m := h.manager()
	id, err := m.RunPod(t.Context(), podConfig("p"))
	if err == nil { // the exit may come just after
		eventually(t, "not ready", func() bool { p, _ := m.Pod(id); return p.State() == PodNotReady })
	} else if left := h.residue(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A container that is created while its pod is removed does not stay behind.
func TestCreateDuringRemovePod(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	pod, err := m.RunPod(t.Context(), podConfig("p"))
	must(t, err)
	h.mu.Lock()
	h.onCheck = func() { must(t, m.RemovePod(context.Background(), pod)) }
	h.mu.Unlock()
	if id, err := m.CreateContainer(t.Context(), pod, containerConfig("c")); !errors.Is(err, ErrState) {
		t.Errorf("CreateContainer = %q, %v; want ErrState", id, err)
	}
	if left := h.residue(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A pod stops and goes though its record cannot be written, as on a full disk.
func TestRemovePodWithoutRecording(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	pod, _ := mustStart(t, m)
	must(t, os.Remove(m.podFiles.path(pod)))
	must(t, os.Mkdir(m.podFiles.path(pod), 0o700)) // to open it for writing is an error
	must(t, m.StopPod(t.Context(), pod))
	must(t, m.RemovePod(t.Context(), pod))
	eventually(t, "nothing left", func() bool { return len(h.residue()) == 0 })
}

// A pod without an init of its own goes on after its supervisor died: another one
// takes its next containers.
func TestSupervisorReplaced(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	cfg := podConfig("p")
	cfg.Security.Namespaces.PID = "container"
	pod, err := m.RunPod(t.Context(), cfg)
	must(t, err)
	alone := func(name string) *workload.Container {
		c := containerConfig(name)
		c.Security.Namespaces.PID = workload.ModeContainer
		return c
	}
	// Asked to share what the pod has not, a container is refused when it is made, not when it is started.
	const field = "config.linux.security_context.namespace_options.pid: POD"
	if _, err := m.CreateContainer(t.Context(), pod, containerConfig("shared")); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), field) {
		t.Errorf("CreateContainer with the PID namespace of a pod that has none = %v; want ErrInvalid and %q", err, field)
	}
	first, err := m.CreateContainer(t.Context(), pod, alone("first"))
	must(t, err)
	must(t, m.StartContainer(t.Context(), first))
	before, _ := m.Pod(pod)
	must(t, syscall.Kill(supervisorPID(t, m, pod), syscall.SIGKILL))
	eventually(t, "loss noticed", func() bool { _, err := m.pool.of(before.Supervisor); return err != nil })
	must(t, m.StopContainer(t.Context(), first, 0))
	again, err := m.CreateContainer(t.Context(), pod, alone("again"))
	must(t, err)
	if err := m.StartContainer(t.Context(), again); err != nil {
		t.Fatalf("StartContainer after its supervisor died = %v", err)
	}
	must(t, m.RemovePod(t.Context(), pod))
	eventually(t, "nothing left", func() bool { return len(h.residue()) == 0 })
}

// Pods that come at once share supervisors that are being started.
func TestPodsAtOnceShareSupervisors(t *testing.T) {
	h := newHost(t)
	h.perSupervisor = 16
	m := h.manager()
	made := make(chan error)
	const pods = 12
	for i := range pods {
		go func() {
			_, err := m.RunPod(t.Context(), podConfig("p"+strconv.Itoa(i)))
			made <- err
		}()
	}
	for range pods {
		must(t, <-made)
	}
	if n := len(m.pool.all()); n > 2 { // one, and maybe a spare
		t.Errorf("%d supervisors for %d pods, 16 fit in one", n, pods)
	}
}

// An exit that could not be recorded is taken up again.
func TestExitNotRecorded(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	_, id := mustStart(t, m)
	path := m.ctrFiles.path(id)
	must(t, os.Rename(path, path+".away"))
	must(t, os.Mkdir(path, 0o700)) // to open it for writing is an error
	c, err := m.container(id)
	must(t, err)
	must(t, syscall.Kill(m.facts(c).PID, syscall.SIGKILL))
	eventually(t, "exit", func() bool { return m.facts(c).State() == ContainerExited })
	time.Sleep(50 * time.Millisecond)
	if _, err := os.Stat(m.exitFile(id)); err != nil {
		t.Errorf("the exit file is gone before the exit was recorded: %v", err)
	}
	must(t, os.Remove(path))
	must(t, os.Rename(path+".away", path))
	m.reconcile(t.Context())
	eventually(t, "exit file taken up", func() bool { _, err := os.Stat(m.exitFile(id)); return err != nil })
	m.crash()
	if c, err := h.manager().Container(id); err != nil || c.ExitCode != 137 {
		t.Errorf("container after a restart = %+v, %v; want exit code 137", c, err)
	}
}

// TestOlderSupervisor: an init reads the messages of its own build alone, so a daemon brings its own to the
// supervisors of the daemon before an upgrade.
func TestOlderSupervisor(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	pod, id := mustStart(t, m)
	m.crash()
	no, err := os.Open("/bin/false")
	must(t, err)
	defer no.Close()
	h.programs = Programs{Init: no, InitID: "two"}
	m2 := h.manager()
	if _, err := m2.ExecSync(t.Context(), id, []string{"true"}, 10*time.Second); err == nil {
		t.Error("an exec used the supervisor's own init; want the daemon's")
	}
	m2.crash()
	h.programs = Programs{InitID: "three"}
	m3 := h.manager()
	if _, err := m3.ExecSync(t.Context(), id, []string{"true"}, 10*time.Second); err != nil {
		t.Errorf("exec through an older supervisor: %v", err)
	}
	second, err := m3.CreateContainer(t.Context(), pod, containerConfig("second"))
	must(t, err)
	must(t, m3.StartContainer(t.Context(), second))
}

// TestStartPastAHangingPlugin: what cannot be put in order at once does not keep a daemon from its other pods.
func TestStartPastAHangingPlugin(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	arrived := make(chan struct{})
	h.mu.Lock()
	h.fail, h.die = "hosts", func() { close(arrived); select {} }
	h.mu.Unlock()
	go m.RunPod(context.Background(), podConfig("interrupted"))
	<-arrived
	m.crash()
	h.mu.Lock()
	h.die = nil
	h.mu.Unlock()
	h.hangTeardown = make(chan struct{})
	m2 := h.manager()
	if left := m2.recorded(); len(left) != 1 || left[0].Config.Metadata.Name != "interrupted" {
		t.Errorf("recorded are %+v; want the pod whose teardown hangs", left)
	}
	other, err := m2.RunPod(t.Context(), podConfig("other"))
	must(t, err)
	close(h.hangTeardown)
	eventually(t, "the interrupted pod is undone", func() bool { return len(m2.recorded()) == 1 })
	must(t, m2.RemovePod(t.Context(), other))
}

// TestStrayExitFile: a supervisor may write why a launch failed after the client has removed the container. Nobody would
// read the file; one that a record may need stays.
func TestStrayExitFile(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	stray, unread := strings.Repeat("a", 64), strings.Repeat("b", 64)
	must(t, os.WriteFile(m.ctrFiles.path(unread), []byte("{"), 0o600))
	for what, sweep := range map[string]func(){
		"told by its supervisor": func() {
			for _, id := range []string{stray, unread} {
				m.exited(nil, &api.Exit{ID: id, Code: exitStartError, Failed: "exec: no such file"})
			}
		},
		"found by the reconciler": func() { m.reconcile(t.Context()) },
	} {
		for _, id := range []string{stray, unread} {
			must(t, os.WriteFile(m.exitFile(id), []byte("{}"), 0o600))
		}
		sweep()
		eventually(t, what+": the stray exit file is gone", func() bool { _, err := os.Lstat(m.exitFile(stray)); return err != nil })
		time.Sleep(20 * time.Millisecond)
		if _, err := os.Lstat(m.exitFile(unread)); err != nil {
			t.Errorf("%s: the exit file of a container whose record cannot be read: %v; want it kept", what, err)
		}
	}
	must(t, os.Remove(m.ctrFiles.path(unread)))
	must(t, os.Remove(m.exitFile(unread)))
}

// TestUnpinnedNamespace: a pod whose network namespace somebody has deleted is not ready any more, as soon as a container
// cannot be started in it, or when records are next compared. Its client can make another.
func TestUnpinnedNamespace(t *testing.T) {
	for what, notice := range map[string]func(*testing.T, *Manager, string){
		"start": func(t *testing.T, m *Manager, ctr string) {
			if err := m.StartContainer(t.Context(), ctr); err == nil {
				t.Error("StartContainer = nil; want an error")
			}
		},
		"reconcile": func(t *testing.T, m *Manager, _ string) { m.reconcile(t.Context()) },
	} {
		t.Run(what, func(t *testing.T) {
			h := newHost(t)
			h.script = "fail cannot be started"
			m := h.manager()
			pod, ctr := mustCreate(t, m)
			facts, err := m.Pod(pod)
			must(t, err)
			path := m.namespacePath(facts, nsNetwork)
			must(t, syscall.Unmount(path, syscall.MNT_DETACH))
			must(t, os.Remove(path))
			notice(t, m, ctr)
			eventually(t, "the pod is not ready", func() bool {
				now, err := m.Pod(pod)
				return err == nil && now.State() == PodNotReady && strings.Contains(now.Why, path)
			})
			must(t, m.RemovePod(t.Context(), pod))
			if left := h.residue(); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
