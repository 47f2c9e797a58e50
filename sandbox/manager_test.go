package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// Every step of RunPod does its work and then errs: nothing is left, and a retry succeeds.
func TestRunPodBreakEveryStep(t *testing.T) {
	for _, step := range []string{"files", "namespaces", "setup", "network", "hosts", "pod init"} {
		t.Run(step, func(t *testing.T) {
			h := newHost(t)
			m := h.manager()
			h.fail = step
			if id, err := m.RunPod(t.Context(), podConfig("p")); !errors.Is(err, errBroken) {
				t.Fatalf("RunPod = %q, %v; want the broken step", id, err)
			}
			if left := h.residue(); len(left) != 0 {
				t.Fatalf("left behind: %q", left)
			}
			id, err := m.RunPod(t.Context(), podConfig("p"))
			if err != nil {
				t.Fatalf("retry: %v", err)
			}
			if p, err := m.Pod(id); err != nil || p.State() != PodReady {
				t.Fatalf("Pod = %+v, %v; want ready", p, err)
			}
			if err := m.RemovePod(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if left := h.residue(); len(left) != 0 {
				t.Fatalf("left behind by removal: %q", left)
			}
		})
	}
}

func TestCreateContainerBreakEveryStep(t *testing.T) {
	config := containerConfig("c")
	config.Mounts = append(config.Mounts, workload.Mount{ContainerPath: "/v", Image: &workload.ImageSpec{Image: "data"}})
	for _, step := range []string{"check", "hold", "hold image", "volumes", "image volumes", "prepare layer", "layer", "log"} {
		t.Run(step, func(t *testing.T) {
			h := newHost(t)
			m := h.manager()
			pod, err := m.RunPod(t.Context(), podConfig("p"))
			if err != nil {
				t.Fatal(err)
			}
			before := h.residue()
			h.fail = step
			if id, err := m.CreateContainer(t.Context(), pod, config); !errors.Is(err, errBroken) {
				t.Fatalf("CreateContainer = %q, %v; want the broken step", id, err)
			}
			if after := h.residue(); len(after) != len(before) {
				t.Fatalf("left behind: %q; before: %q", after, before)
			}
			if _, err := m.CreateContainer(t.Context(), pod, config); err != nil {
				t.Fatalf("retry: %v", err)
			}
		})
	}
}

// A start that fails leaves an exited container that says why, and nothing acquired.
func TestStartContainerBreakEveryStep(t *testing.T) {
	for _, step := range []string{"rootfs", "root file system", "cgroup", "prepare", "log file", "supervisor", "launch"} {
		t.Run(step, func(t *testing.T) {
			h := newHost(t)
			m := h.manager()
			_, id := mustCreate(t, m)
			h.fail = step
			if err := m.StartContainer(t.Context(), id); !errors.Is(err, errBroken) {
				t.Fatalf("StartContainer = %v; want the broken step", err)
			}
			c, err := m.Container(id)
			if err != nil || c.State() != ContainerExited || c.ExitCode != exitStartError || c.Reason != "StartError" {
				t.Fatalf("Container = %+v, %v; want exited by StartError", c, err)
			}
			eventually(t, "cgroup given back", func() bool { return !strings.Contains(strings.Join(h.left(), " "), "cgroup") })
			if err := m.RemoveContainer(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func mustCreate(t *testing.T, m *Manager) (pod, ctr string) {
	t.Helper()
	pod, err := m.RunPod(t.Context(), podConfig("p"))
	if err != nil {
		t.Fatal(err)
	}
	ctr, err = m.CreateContainer(t.Context(), pod, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	return pod, ctr
}

func mustStart(t *testing.T, m *Manager) (pod, ctr string) {
	t.Helper()
	pod, ctr = mustCreate(t, m)
	if err := m.StartContainer(t.Context(), ctr); err != nil {
		t.Fatal(err)
	}
	return pod, ctr
}

func TestInitErrorNamesTheStage(t *testing.T) {
	h := newHost(t)
	h.script = "fail /data: no such file or directory"
	m := h.manager()
	_, id := mustCreate(t, m)
	err := m.StartContainer(t.Context(), id)
	var e *api.Error
	if !errors.As(err, &e) || e.Stage != "mount" || !strings.Contains(e.Text, "/data") {
		t.Fatalf("StartContainer = %v; want an error of stage mount about /data", err)
	}
}

func TestExitCodes(t *testing.T) {
	for script, want := range map[string]Container{
		"exit 0":           {ExitCode: 0, Reason: "Completed"},
		"exit 7":           {ExitCode: 7, Reason: "Error"},
		"kill -KILL $$":    {ExitCode: 137, Reason: "Error"},
		"sleep 0.2;exit 3": {ExitCode: 3, Reason: "Error"},
	} {
		t.Run(script, func(t *testing.T) {
			h := newHost(t)
			h.script = script
			m := h.manager()
			_, id := mustStart(t, m)
			eventually(t, "exit", func() bool { c, _ := m.Container(id); return c.State() == ContainerExited })
			c, _ := m.Container(id)
			if c.ExitCode != want.ExitCode || c.Reason != want.Reason || c.FinishedAt.IsZero() {
				t.Errorf("exit = %d %s at %s; want %d %s", c.ExitCode, c.Reason, c.FinishedAt, want.ExitCode, want.Reason)
			}
		})
	}
}

// The retry of a call that its caller gave up on joins the one that runs.
func TestRunPodRetryJoins(t *testing.T) {
	h := newHost(t)
	h.hang, h.hanging = make(chan struct{}), make(chan struct{}, 1)
	m := h.manager()
	first, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	gaveUp := make(chan error, 1)
	go func() {
		_, err := m.RunPod(first, podConfig("p"))
		gaveUp <- err
	}()
	<-h.hanging
	giveUp()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), `"network"`) {
		t.Fatalf("RunPod = %v; want canceled at stage network", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := m.RunPod(ctx, podConfig("p"))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `"network"`) {
		t.Fatalf("RunPod = %v; want a deadline at stage network", err)
	}
	ids := make(chan string, 2)
	for range 2 {
		go func() {
			id, err := m.RunPod(context.Background(), podConfig("p"))
			if err != nil {
				id = err.Error()
			}
			ids <- id
		}()
	}
	time.Sleep(50 * time.Millisecond)
	close(h.hang)
	a, b := <-ids, <-ids
	if a != b || len(a) != 64 || len(m.Pods()) != 1 {
		t.Fatalf("retries gave %q and %q, pods %d; want one pod", a, b, len(m.Pods()))
	}
	if c, err := m.RunPod(t.Context(), podConfig("p")); c != a || err != nil {
		t.Errorf("RunPod again = %q, %v; want the ready pod %q", c, err, a)
	}
	other := podConfig("p")
	other.Hostname = "else"
	if _, err := m.RunPod(t.Context(), other); !errors.Is(err, ErrExists) {
		t.Errorf("RunPod with another configuration = %v; want ErrExists", err)
	}
}

func ignoresTERM(m *Manager, id string) bool {
	c, err := m.Container(id)
	if err != nil {
		return false
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID))
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "SigIgn:\t"); ok {
			mask, _ := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return mask>>(syscall.SIGTERM-1)&1 == 1
		}
	}
	return false
}

func TestStopContainer(t *testing.T) {
	h := newHost(t)
	h.script = `trap "" TERM; while :; do sleep 0.1; done`
	m := h.manager()
	_, id := mustStart(t, m)
	eventually(t, "the trap", func() bool { return ignoresTERM(m, id) })
	long := make(chan error, 1)
	go func() { long <- m.StopContainer(context.Background(), id, time.Hour) }()
	time.Sleep(100 * time.Millisecond)
	if err := m.StopContainer(t.Context(), id, 10*time.Millisecond); err != nil {
		t.Fatalf("StopContainer = %v", err)
	}
	if err := <-long; err != nil {
		t.Errorf("the longer StopContainer = %v", err)
	}
	c, _ := m.Container(id)
	if c.ExitCode != 137 {
		t.Errorf("exit code = %d; want 137", c.ExitCode)
	}
	for _, id := range []string{id, "unknown"} {
		if err := m.StopContainer(t.Context(), id, 0); err != nil {
			t.Errorf("StopContainer(%s) again = %v; want nil", id, err)
		}
	}
}

func TestExecSync(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	_, id := mustStart(t, m)
	r, err := m.ExecSync(t.Context(), id, []string{"echo out; echo err >&2; exit 5"}, 0)
	if err != nil || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.ExitCode != 5 {
		t.Fatalf("ExecSync = %+v, %v", r, err)
	}
	if _, err := m.ExecSync(t.Context(), id, []string{"exec sleep 100"}, 100*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ExecSync beyond its timeout = %v; want DeadlineExceeded", err)
	}
	late := filepath.Join(h.dir, "late")
	r, err = m.ExecSync(t.Context(), id, []string{"echo early; (sleep 5; touch " + late + ") & exit 0"}, time.Minute)
	if err != nil || string(r.Stdout) != "early\n" {
		t.Errorf("ExecSync with a child that keeps the pipe = %+v, %v", r, err)
	}
	if _, err := os.Stat(late); err == nil {
		t.Error("ExecSync waited for a child in the background")
	}
	if _, err := m.ExecSync(t.Context(), "nope", nil, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("ExecSync of an unknown container = %v; want ErrNotFound", err)
	}
}

// A restarted daemon finds its pods, takes up their containers, and learns what ended meanwhile.
func TestRestart(t *testing.T) {
	h := newHost(t)
	closed := filepath.Join(h.dir, "closed")
	h.script = "echo before; until [ -e " + closed + " ]; do sleep 0.1; done; echo after; exit 4"
	m := h.manager()
	cfg := podConfig("p")
	cfg.LogDirectory = filepath.Join(h.dir, "logs")
	pod, err := m.RunPod(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctrCfg := containerConfig("short")
	ctrCfg.LogPath = "c/0.log"
	short, err := m.CreateContainer(t.Context(), pod, ctrCfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.StartContainer(t.Context(), short); err != nil {
		t.Fatal(err)
	}
	h.script = "exec sleep 1000"
	long, err := m.CreateContainer(t.Context(), pod, containerConfig("long"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.StartContainer(t.Context(), long); err != nil {
		t.Fatal(err)
	}
	m.Close()
	must(t, os.WriteFile(closed, nil, 0o600))
	eventually(t, "exit file", func() bool { _, err := os.Stat(m.exitFile(short)); return err == nil })
	m2 := h.manager()
	if p, err := m2.Pod(pod); err != nil || p.State() != PodReady {
		t.Fatalf("Pod after a restart = %+v, %v", p, err)
	}
	if c, err := m2.Container(short); err != nil || c.State() != ContainerExited || c.ExitCode != 4 {
		t.Errorf("ended container = %+v, %v; want exit code 4", c, err)
	}
	c, err := m2.Container(long)
	if err != nil || c.State() != ContainerRunning {
		t.Fatalf("running container = %+v, %v", c, err)
	}
	log, err := os.ReadFile(filepath.Join(cfg.LogDirectory, "c/0.log"))
	if lines := strings.Split(string(log), "\n"); err != nil || len(lines) != 3 ||
		!strings.HasSuffix(lines[0], " stdout F before") || !strings.HasSuffix(lines[1], " stdout F after") {
		t.Errorf("log = %q, %v", log, err)
	}
	if err := m2.StopContainer(t.Context(), long, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if c, _ := m2.Container(long); c.ExitCode != 143 {
		t.Errorf("exit code after a restart = %d; want 143", c.ExitCode)
	}
}

// A supervisor that dies does not take its containers' exit codes along.
func TestSupervisorDies(t *testing.T) {
	h := newHost(t)
	h.script, h.initScript = "sleep 0.5; exit 9", "exec sleep 3"
	m := h.manager()
	pod, id := mustStart(t, m)
	p, _ := m.Pod(pod)
	pid, err := os.ReadFile(filepath.Join(m.pool.dir, p.Supervisor, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	killPID(t, string(pid))
	eventually(t, "exit", func() bool { c, _ := m.Container(id); return c.State() == ContainerExited })
	c, _ := m.Container(id)
	if c.ExitCode != 9 && !strings.Contains(c.Message, "6.15") {
		t.Errorf("exit = %d %q; want 9, or 255 with the reason", c.ExitCode, c.Message)
	}
	if p, _ := m.Pod(pod); p.State() != PodNotReady {
		t.Errorf("pod whose init's supervisor died is %s; want not-ready", p.State())
	}
}

// An interrupted creation is undone at the next start.
func TestRecoverInterrupted(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	pod, err := m.RunPod(t.Context(), podConfig("p"))
	if err != nil {
		t.Fatal(err)
	}
	id := newID()
	must(t, m.ctrFiles.create(id, &Container{ID: id, PodID: pod, Config: *containerConfig("half")}))
	must(t, os.MkdirAll(filepath.Join(m.layerDir(id), "upper"), 0o700))
	half := newID()
	must(t, m.podFiles.create(half, &Pod{ID: half, Config: *podConfig("half"), Boot: m.boot, Attached: true}))
	must(t, os.WriteFile(m.podFiles.path("garbage"), []byte("{"), 0o600))
	m.Close()
	m2 := h.manager()
	if _, err := m2.Container(id); !errors.Is(err, ErrNotFound) {
		t.Errorf("interrupted container = %v; want ErrNotFound", err)
	}
	if _, err := m2.Pod(half); !errors.Is(err, ErrNotFound) {
		t.Errorf("interrupted pod = %v; want ErrNotFound", err)
	}
	if bad := m2.BadRecords(); len(bad) != 1 || !strings.HasSuffix(bad[0].Path, "garbage.json") {
		t.Errorf("BadRecords = %v; want the garbage", bad)
	}
	must(t, os.Remove(m.podFiles.path("garbage")))
	must(t, m2.RemovePod(t.Context(), pod))
	eventually(t, "layer deleted", func() bool { return len(h.residue()) == 0 })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
