package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// RunPod makes a pod sandbox and returns its ID. A retry with the same metadata joins
// the call that still runs, or gets the ready sandbox that it made.
func (m *Manager) RunPod(ctx context.Context, cfg *workload.Pod) (string, error) {
	md := cfg.Metadata
	id, err := m.operations.do(ctx, podKey(cfg), func(ctx context.Context, f *flight) (string, error) {
		return m.runPod(ctx, f, cfg)
	})
	if err != nil {
		return "", fmt.Errorf("run pod sandbox %s/%s: %w", md.Namespace, md.Name, err)
	}
	return id, nil
}

// podStep is a step of RunPod.
type podStep struct {
	name string
	do   func() error
}

// same finds the ready pod of the same metadata.
func (m *Manager) same(cfg *workload.Pod) *Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		if p.Config.Metadata == cfg.Metadata && p.State() == PodReady {
			facts := p.Pod
			return &facts
		}
	}
	return nil
}

func (m *Manager) runPod(ctx context.Context, f *flight, cfg *workload.Pod) (_ string, err error) {
	if old := m.same(cfg); old != nil {
		if reflect.DeepEqual(&old.Config, cfg) {
			return old.ID, nil
		}
		return "", fmt.Errorf("%w: pod sandbox %s is ready under the same metadata with another configuration", ErrExists, old.ID)
	}
	p := &pod{Pod: Pod{ID: newID(), Config: *cfg, Boot: m.boot, CreatedAt: time.Now()}}
	free, err := m.locks.take(ctx, "pod sandbox "+p.ID, "run")
	if err != nil {
		return "", err
	}
	defer free()
	p.Supervisor = m.pool.reserve(p.ID)
	if err := m.podFiles.create(p.ID, &p.Pod); err != nil { // the record comes first
		m.pool.free(ctx, p.Supervisor, p.ID)
		return "", err
	}
	m.mu.Lock()
	m.pods[p.ID] = p
	m.mu.Unlock()
	defer m.rollBack(ctx, f, &err, func(ctx context.Context) error { return m.teardownPod(ctx, p) })
	var timeline []Stage
	steps := []podStep{
		{"files", func() error { return m.makePodFiles(p) }},
		{"namespaces", func() error { return m.makeNamespaces(p) }},
		{"network", func() error { return m.attach(ctx, p) }},
		{"hosts", func() error { return m.writeHosts(p) }},
		{"pod init", func() error { return m.startPodInit(ctx, p) }},
	}
	if m.cfg.Plugins != nil {
		release := func() {}
		defer func() { release() }()
		steps = append(steps, podStep{"plugins", func() error {
			release = m.holdPlugins()
			m.mu.Lock()
			p.announced = true
			m.mu.Unlock()
			return m.askPlugins(ctx, PluginRunPod, m.snapshot(p), nil)
		}})
	}
	for _, s := range steps {
		if err := m.step(f, &timeline, s.name, s.do); err != nil {
			return "", err
		}
	}
	if err := m.updatePod(p, func(p *Pod) { p.ReadyAt, p.Timeline = time.Now(), timeline }); err != nil {
		return "", err
	}
	if why := m.snapshot(p).Why; why != "" { // meanwhile
		return "", errors.New(why)
	}
	m.tell(EventCreated, p.ID, p)
	m.tell(EventStarted, p.ID, p)
	return p.ID, nil
}

func (m *Manager) ownsNetwork(p *Pod) bool {
	return p.Config.Security.Namespaces.Network != workload.ModeNode
}

func (m *Manager) ownsIPC(p *Pod) bool {
	return p.Config.Security.Namespaces.IPC != workload.ModeNode
}

func (m *Manager) sharesPID(p *Pod) bool {
	mode := p.Config.Security.Namespaces.PID
	return mode == workload.ModePod || mode == ""
}

// namespacePath is where a namespace of the pod is pinned, "" for the node's own. A pod on
// the node's network has the node's host name too, so it has the node's UTS namespace.
func (m *Manager) namespacePath(p *Pod, kind string) string {
	switch {
	case kind == nsIPC && m.ownsIPC(p):
		return filepath.Join(m.podStateDir(p.ID), "ns", kind)
	case kind == nsUTS && m.ownsNetwork(p):
		return filepath.Join(m.podStateDir(p.ID), "ns", kind)
	case kind == nsNetwork && m.ownsNetwork(p):
		return filepath.Join(m.cfg.NetnsDir, "cri-"+p.ID[:32])
	case kind == nsUser && userNamespace(p) != nil:
		return filepath.Join(m.podStateDir(p.ID), "ns", kind)
	}
	return ""
}

// Kinds of namespaces that belong to a pod.
const (
	nsNetwork = "network"
	nsIPC     = "ipc"
	nsUTS     = "uts"
	nsUser    = "user"
)

var podNamespaces = []struct {
	kind string
	flag uintptr
}{{nsNetwork, sys.NamespaceNet}, {nsIPC, sys.NamespaceIPC}, {nsUTS, sys.NamespaceUTS}, {nsUser, sys.NamespaceUser}}

// makeNamespaces makes the pod's own namespaces without any process that stays.
func (m *Manager) makeNamespaces(p *pod) error {
	var pins []sys.NamespacePin
	for _, ns := range podNamespaces {
		if path := m.namespacePath(&p.Pod, ns.kind); path != "" {
			pins = append(pins, sys.NamespacePin{Flag: ns.flag, Path: path})
		}
	}
	inside := func() error { return m.insideNamespaces(&p.Pod) }
	if u := userNamespace(&p.Pod); u != nil {
		return sys.PinUserNamespaces(pins, idMaps(u.UIDs), idMaps(u.GIDs), inside)
	}
	if len(pins) == 0 {
		return nil
	}
	return sys.PinNamespaces(pins, inside)
}

func (m *Manager) insideNamespaces(p *Pod) error {
	if m.ownsNetwork(p) {
		if err := sys.LoopbackUp(); err != nil {
			return err
		}
		if name := p.Config.Hostname; name != "" {
			if err := sys.SetHostname(name); err != nil {
				return err
			}
		}
	}
	for name, value := range p.Config.Sysctls {
		err := sys.WriteSysctl(name, value)
		if root, _, ok := podRoot(p); ok && errors.Is(err, fs.ErrPermission) {
			err = sys.WriteSysctlAs(root, name, value)
		}
		if err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", name, value, err)
		}
	}
	return nil
}

// attach puts the pod's network namespace on the pod network.
func (m *Manager) attach(ctx context.Context, p *pod) error {
	if !m.ownsNetwork(&p.Pod) {
		return nil
	}
	// What is owed is recorded before it is taken.
	if err := m.updatePod(p, func(p *Pod) { p.Netns, p.Attached = m.namespacePath(p, nsNetwork), true }); err != nil {
		return err
	}
	ips, err := m.cfg.Network.Setup(ctx, m.snapshot(p))
	if err != nil {
		return err
	}
	return m.updatePod(p, func(p *Pod) { p.IPs = ips })
}

// startPodInit starts PID 1 of a PID namespace that the pod's containers share.
func (m *Manager) startPodInit(ctx context.Context, p *pod) error {
	if !m.sharesPID(&p.Pod) {
		return nil
	}
	l, err := m.cfg.Runtime.PodInit(ctx, m.snapshot(p), m.namespacePath(&p.Pod, nsUser))
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := m.supervisorOf(ctx, p)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	m.mu.Lock()
	m.inits[p.ID] = done
	m.mu.Unlock()
	_, pidfd, err := m.launch(ctx, c, p.ID, l, &api.Launch{Pod: p.ID}, nil)
	if err != nil {
		m.mu.Lock()
		delete(m.inits, p.ID)
		m.mu.Unlock()
		return err
	}
	return pidfd.Close()
}

// supervisorOf returns the supervisor that holds the pod's processes. One that has died
// is replaced unless the pod's init was in it: without that the pod is not ready any more.
func (m *Manager) supervisorOf(ctx context.Context, p *pod) (*client, error) {
	facts := m.snapshot(p)
	c, err := m.pool.of(facts.Supervisor)
	if err == nil || m.sharesPID(facts) && !facts.ReadyAt.IsZero() {
		return c, err
	}
	free, err := m.locks.take(ctx, "supervisor of pod sandbox "+p.ID, "assignment")
	if err != nil {
		return nil, err
	}
	defer free()
	if c, err := m.pool.of(m.snapshot(p).Supervisor); err == nil {
		return c, nil // another container was faster
	}
	if c, err = m.pool.assign(ctx, p.ID); err != nil {
		return nil, err
	}
	return c, m.updatePod(p, func(p *Pod) { p.Supervisor = c.id })
}

// launch hands a prepared process to a supervisor. If the answer does not come in
// time, what may have been started is killed.
func (m *Manager) launch(ctx context.Context, c *client, id string, l *Launch, how *api.Launch, stdio map[api.Role]*os.File) (int, *os.File, error) {
	how.Foreign = l.Foreign
	var roles []api.Role
	var files []*os.File
	if l.Foreign == nil {
		message, err := sys.Memfd("init-message", l.Message)
		if err != nil {
			return 0, nil, err
		}
		defer message.Close()
		roles, files = []api.Role{api.RoleMessage}, []*os.File{message}
	}
	how.CloneFlags, how.OOMFile, how.OOMParent, how.KillGroup = l.CloneFlags, l.OOMFile, l.OOMParent, l.KillGroup
	how.Host, how.Affinity, how.TimeOffsets = l.Host, l.Affinity, l.TimeOffsets
	for _, f := range l.Files {
		roles, files = append(roles, api.RoleFile), append(files, f)
	}
	for role, f := range map[api.Role]*os.File{
		api.RoleCgroup: l.Cgroup, api.RoleUserNamespace: l.UserNamespace, api.RoleTimeNamespace: l.TimeNamespace,
	} {
		if f != nil {
			roles, files = append(roles, role), append(files, f)
		}
	}
	if !c.ownInit {
		roles, files = append(roles, api.RoleInit), append(files, m.pool.programs.Init)
	}
	for role, f := range stdio {
		roles, files = append(roles, role), append(files, f)
	}
	r, pidfd, err := c.call(ctx, &api.Request{Op: api.OpLaunch, ID: id, Roles: roles, Launch: how}, files...)
	if err != nil {
		if answered := (*api.Error)(nil); !errors.As(err, &answered) {
			m.abandon(c.id, id)
		}
		return 0, nil, err
	}
	if pidfd == nil {
		m.abandon(c.id, id)
		return 0, nil, fmt.Errorf("supervisor %s: launch: no pidfd", c.id)
	}
	for _, w := range r.Warnings {
		m.cfg.Log.Warn("start", "ctr", id, "warning", w)
	}
	return r.PID, pidfd, nil
}

// abandonPause is the wait between two tries to reach a supervisor.
const abandonPause = 100 * time.Millisecond

// abandon kills, in the background, a process whose launch nobody waits for any more. A launch
// that the supervisor has not come to yet is called off by it.
func (m *Manager) abandon(supervisor, id string) {
	m.background.Go(func() {
		ctx, cancel := context.WithTimeout(m.life, m.cfg.CleanupTimeout)
		defer cancel()
		for {
			c, err := m.pool.of(supervisor)
			if err != nil {
				return // with it died who could launch
			}
			if err = m.killFamily(ctx, c, id); err == nil {
				return
			}
			if ctx.Err() != nil { // compare will find it
				m.cfg.Log.Error("kill an abandoned process", "ctr", id, "err", err)
				return
			}
			waitFor(ctx, nil, abandonPause)
		}
	})
}
