package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/usage"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox/supervisor"
)

// The test binary plays the two programs beside the daemon: the real supervisor, and an init
// whose message is a shell script.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "cri-shim-supervisor":
		err := supervisor.Run(supervisor.Config{
			Listener: os.NewFile(3, "listener"), Init: os.NewFile(4, "init"), InitID: os.Args[1],
			Release: "test", Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "cri-shim-init":
		scriptInit()
	default:
		os.Exit(m.Run())
	}
}

func scriptInit() {
	script, _ := io.ReadAll(io.NewSectionReader(os.NewFile(initmsg.FDMessage, "message"), 0, 1<<20))
	report := os.NewFile(initmsg.FDSync, "sync")
	if rest, ok := strings.CutPrefix(string(script), "after "); ok {
		file, rest, _ := strings.Cut(rest, " ")
		for range 3000 { // 30 s
			if _, err := os.Stat(file); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		script = []byte(rest)
	}
	if msg, ok := strings.CutPrefix(string(script), "fail "); ok {
		report.Write(initmsg.EncodeReport(&initmsg.Report{Kind: initmsg.KindError, Stage: "mount", Errno: syscall.ENOENT, Text: msg}))
		os.Exit(1)
	}
	report.Write(initmsg.EncodeReport(&initmsg.Report{Kind: initmsg.KindExecute}))
	syscall.CloseOnExec(initmsg.FDSync)
	syscall.CloseOnExec(initmsg.FDMessage)
	syscall.Exec("/bin/sh", []string{"sh", "-c", string(script)}, nil)
	os.Exit(1)
}

// host is a node on which everything is counted. What is in live was acquired and not
// given back; fail names what does its work and then errs, once.
type host struct {
	t       *testing.T
	dir     string
	mu      sync.Mutex
	live    map[string]bool
	fail    string
	hang    chan struct{} // network setup waits for it
	hanging chan struct{} // and says so here
	// hangTeardown: network teardown waits for it.
	hangTeardown chan struct{}
	limits       fakeLimits
	script       string
	initScript   string // of pod inits
	images       map[string]*Image
	current      *Manager
	managers     int
	die          func() // called instead of failing
	onCheck      func() // called once by Check
	operation    time.Duration
	// perSupervisor is how many pods share one.
	perSupervisor int
	programs      Programs      // those that are set are not the test binary
	quiet         bool          // what is expected to go wrong is not logged
	holdLayers    chan struct{} // the walk of a layer waits for it
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("makes namespaces and mounts: needs root")
	}
	h := &host{t: t, dir: t.TempDir(), live: map[string]bool{}, perSupervisor: 2, operation: 30 * time.Second, script: "exec sleep 1000", initScript: "exec sleep 1000",
		images: map[string]*Image{"busybox": {ID: "sha256:1", Ref: "busybox@sha256:2"}}}
	t.Cleanup(h.endSupervisors)
	return h
}

// endSupervisors ends those that had something left when the last manager closed: the next daemon's.
func (h *host) endSupervisors() {
	files, _ := filepath.Glob(filepath.Join(h.dir, "state", "supervisors", "*", "pid"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(string(text))
		if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.HasPrefix(string(name), "cri-shim-supervisor") {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func (h *host) manager() *Manager {
	h.t.Helper()
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		h.t.Fatal(err)
	}
	// Each manager has its own name for the root, so that one can be cut off from it.
	h.managers++
	root := filepath.Join(h.dir, fmt.Sprint("root", h.managers))
	if err := errors.Join(os.MkdirAll(filepath.Join(h.dir, "root"), 0o700), os.Symlink("root", root)); err != nil {
		h.t.Fatal(err)
	}
	m, err := New(context.Background(), Config{
		Root: root, State: filepath.Join(h.dir, "state"), NetnsDir: filepath.Join(h.dir, "netns"),
		Programs: Programs{Supervisor: exe, Init: cmp.Or(h.programs.Init, exe), InitID: cmp.Or(h.programs.InitID, "one")}, PodsPerSupervisor: h.perSupervisor,
		OperationTimeout: h.operation, CleanupTimeout: 20 * time.Second, KillTimeout: 10 * time.Second, ExecOutputMax: 1 << 20,
		Network: h, Images: h, Layers: plainLayers{h}, Runtime: h, Meter: meter{h}, Limits: &h.limits, Failpoint: h.step,
		Log: h.log(),
	})
	if err != nil {
		h.t.Fatalf("New = %v", err)
	}
	h.current = m
	h.t.Cleanup(func() {
		defer exe.Close()
		if h.current != m {
			return // a later manager took over
		}
		for _, p := range m.Pods() {
			if err := m.RemovePod(context.Background(), p.ID); err != nil {
				h.t.Errorf("RemovePod = %v", err)
			}
		}
		m.Close()
		sys.UnmountDetach(filepath.Join(h.dir, "netns"))
	})
	return m
}

func (h *host) log() *slog.Logger {
	if h.quiet {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(h.t.Output(), nil))
}

// do counts what is acquired, then errs if the test wants it.
func (h *host) do(name, resource string) error {
	h.mu.Lock()
	h.live[resource] = true
	h.mu.Unlock()
	return h.step(name)
}

func (h *host) step(name string) error {
	h.mu.Lock()
	fails, die := h.fail == name, h.die
	if fails {
		h.fail = ""
	}
	h.mu.Unlock()
	switch {
	case !fails:
		return nil
	case die != nil:
		die()
	}
	return fmt.Errorf("%s: %w", name, errBroken)
}

var errBroken = errors.New("broken on purpose")

func (h *host) undo(resource string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.live, resource)
}

func (h *host) left() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.live))
}

func (h *host) Setup(ctx context.Context, p *Pod) ([]netip.Addr, error) {
	if h.hang != nil {
		select {
		case h.hanging <- struct{}{}:
		default:
		}
		select {
		case <-h.hang:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return []netip.Addr{netip.MustParseAddr("10.0.0.2")}, h.do("setup", "net "+p.ID)
}

func (h *host) Teardown(ctx context.Context, p *Pod) error {
	if h.hangTeardown != nil {
		select {
		case <-h.hangTeardown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	h.undo("net " + p.ID)
	return h.step("teardown")
}
func (h *host) Ready(context.Context) error                  { return nil }
func (h *host) Collect(context.Context, func() []*Pod) error { return nil }

func (h *host) Resolve(ref string) (*Image, error) {
	for name, img := range h.images {
		if ref == name || ref == img.ID {
			return img, nil
		}
	}
	return nil, ErrNotFound
}

func (h *host) Hold(_, owner string) error { return h.do("hold", "hold "+owner) }

func (h *host) HoldVolumes(_ context.Context, c *Container) error {
	return h.do("volumes", "hold "+c.ID)
}
func (h *host) Release(owner string) { h.undo("hold " + owner) }

func (h *host) Rootfs(context.Context, *Container, string, string) (*os.File, error) {
	f, err := os.Open("/")
	return f, errors.Join(err, h.step("rootfs"))
}

// plainLayers are folders without limits.
type plainLayers struct{ h *host }

func (plainLayers) Check(*Pod, *Container) error             { return nil }
func (l plainLayers) Prepare(*Pod, *Container, string) error { return l.h.step("prepare layer") }
func (plainLayers) Remove(dir string) error                  { return os.RemoveAll(dir) }

func (h *host) Check(*Pod, *Container) error {
	h.mu.Lock()
	hook := h.onCheck
	h.onCheck = nil
	h.mu.Unlock()
	if hook != nil {
		hook()
	}
	return h.step("check")
}

func (h *host) Prepare(_ context.Context, p *Pod, c *Container, _ Environment) (*Launch, error) {
	return &Launch{Message: []byte(h.script), User: &workload.User{}}, h.do("cgroup", "cgroup "+c.ID)
}

func (h *host) PrepareExec(_ context.Context, _ *Pod, _ *Container, e ExecSpec) (*Launch, error) {
	return &Launch{Message: []byte(strings.Join(e.Command, " "))}, nil
}

func (h *host) PodInit(context.Context, *Pod, string) (*Launch, error) {
	return &Launch{Message: []byte(h.initScript), CloneFlags: sys.CloneNewPID}, nil
}

func (h *host) Cleanup(_ context.Context, _ *Pod, c *Container) error {
	h.undo("cgroup " + c.ID)
	return nil
}
func (h *host) CleanupPod(context.Context, *Pod) error { return h.step("cleanup pod") }

func podConfig(name string) *workload.Pod {
	return &workload.Pod{
		Metadata: workload.PodMetadata{Name: name, UID: name + "-uid", Namespace: "ns"}, Hostname: name,
		Security: workload.PodSecurity{Namespaces: workload.Namespaces{PID: workload.ModePod}},
		Sysctls:  map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"},
	}
}

func containerConfig(name string) *workload.Container {
	return &workload.Container{Metadata: workload.ContainerMetadata{Name: name}, Image: workload.ImageSpec{Image: "busybox"}}
}

// residue lists what is on the node beside what the fake host counts.
func (h *host) residue() []string {
	left := h.left()
	for _, dir := range []string{"state/pods", "state/exits", "root/pods", "root/containers", "root/layers", "netns"} {
		for _, e := range readDir(filepath.Join(h.dir, dir)) {
			left = append(left, dir+"/"+e)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, h.dir+"/") && !strings.Contains(line, h.dir+"/netns ") {
			left = append(left, strings.TrimSpace(line))
		}
	}
	return left
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	// As long as an emulated machine may need.
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("%s: not within 30 s", what)
}

// meter counts in numbers that a test can tell apart.
type meter struct{ h *host }

func (m meter) Container(context.Context, *Pod, *Container, bool) (*usage.Stats, error) {
	return &usage.Stats{CPU: usage.CPU{UsageNanos: 2e9}, Memory: usage.Memory{WorkingSet: 10}}, m.h.step("measure container")
}

func (m meter) Pod(context.Context, *Pod, bool) (*usage.Stats, error) {
	return &usage.Stats{CPU: usage.CPU{UsageNanos: 7e9}, Memory: usage.Memory{WorkingSet: 70}}, m.h.step("measure pod")
}

func (m meter) Processes(context.Context, *Pod, *Container, bool) (usage.Processes, error) {
	return usage.Processes{Count: 3}, m.h.step("measure processes")
}

func (m meter) Layer(ctx context.Context, dir string) (uint64, uint64, error) {
	if hold := m.h.holdLayers; hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
	entries, err := os.ReadDir(dir)
	return 4096, uint64(len(entries) + 1), err
}
