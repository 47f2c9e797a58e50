package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cri-shim/cri-shim/internal/idle"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// Config of a Manager.
type Config struct {
	Root     string // records and writable layers, on disk
	State    string // what matters only while the kernel is up, on tmpfs
	NetnsDir string // where network namespaces are pinned
	Programs Programs
	// SupervisorProcs are cgroup.procs files that a new supervisor enters.
	SupervisorProcs   []string
	Snapshotter       string // of containers that have not been started: containerd's name
	PodsPerSupervisor int
	OperationTimeout  time.Duration // of RunPod, CreateContainer and StartContainer as a whole
	CleanupTimeout    time.Duration // of an undo
	KillTimeout       time.Duration // how long a killed process may take to die
	ReconcileInterval time.Duration // 0: only at start
	LogLineMax        int           // bytes
	ExecOutputMax     int           // bytes of each stream
	Network           Network
	Images            Images
	Layers            Layers
	Runtime           Runtime
	Meter             Meter
	Limits            Limits
	Checkpoints       Checkpoints // nil: none can be made
	Plugins           Plugins     // nil: there are none
	Log               *slog.Logger
	// Failpoint, if set, is called after each named step has done its work; what it returns
	// is the step's error. For tests.
	Failpoint func(step string) error
}

// Manager is all pods and containers of a node.
type Manager struct {
	cfg        Config
	boot       string
	pool       *pool
	podFiles   records[Pod]
	ctrFiles   records[Container]
	operations flights
	locks      locks
	life       context.Context // ends with Close
	stop       context.CancelFunc
	background tasks
	trim       *idle.Trimmer
	trash      sync.Mutex // held while the trash is emptied
	layers     layerMeter
	events     events

	mu    sync.Mutex
	pods  map[string]*pod
	ctrs  map[string]*ctr
	inits map[string]chan struct{} // pod inits that run: closed at their exit
	execs map[string]chan *api.Exit
	bad   []BadRecord
}

// pod is a pod sandbox with what is not recorded.
type pod struct {
	Pod
	saving sync.Mutex
	cpu    cpuRate
	ended  bool // the event that it stopped has been told
	// announced: plugins have been told of it; stopTold: that it was stopped.
	announced, stopTold bool
}

// ctr is a container with what is not recorded.
type ctr struct {
	Container
	saving sync.Mutex
	done   chan struct{} // closed once FinishedAt is set and recorded
	pidfd  *os.File      // while it runs
	cpu    cpuRate
	layer  layerUse
	// starting: a StartContainer runs. endUntold: the container has ended meanwhile, which is told
	// after its start.
	starting, endUntold bool
}

// trimAfter is how long no pod and no container changes before memory is given back.
const trimAfter = 5 * time.Second

// New starts a manager: it reads the records, connects to the supervisors of
// the last daemon, and finishes what was interrupted.
func New(ctx context.Context, cfg Config) (*Manager, error) {
	boot, err := sys.BootID()
	if err != nil {
		return nil, err
	}
	m := &Manager{
		cfg:      cfg,
		boot:     boot,
		podFiles: records[Pod]{dir: filepath.Join(cfg.Root, "pods")},
		ctrFiles: records[Container]{dir: filepath.Join(cfg.Root, "containers")},
		pods:     map[string]*pod{},
		ctrs:     map[string]*ctr{},
		inits:    map[string]chan struct{}{},
		execs:    map[string]chan *api.Exit{},
	}
	m.life, m.stop = context.WithCancel(context.Background())
	m.operations.limit = cfg.OperationTimeout
	m.layers.work = make(chan struct{}, 1)
	m.trim = idle.NewTrimmer(trimAfter, func() {
		if err := sys.DropProgramPages(); err != nil {
			cfg.Log.Debug("the program's pages stay in memory", "err", err)
		}
	})
	m.pool = &pool{
		dir: filepath.Join(cfg.State, "supervisors"), programs: cfg.Programs, procs: cfg.SupervisorProcs,
		perPod: max(cfg.PodsPerSupervisor, 1), log: cfg.Log, exited: m.exited, lost: m.lost, found: m.found,
		clients: map[string]*client{}, pods: map[string]map[string]bool{},
		estranged: map[string]bool{}, children: map[string]*os.File{}, turn: make(chan struct{}, 1),
	}
	for _, dir := range []string{m.exitDir(), m.podStateDir("")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
	}
	// What containers have written may be set-user-ID programs. The folder above is root's alone where the daemon has made
	// it, but not where it is the root of a file system.
	for _, dir := range []string{m.layerDir(""), m.trashDir()} {
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
			return nil, err
		}
	}
	if err := m.recover(ctx); err != nil {
		return nil, fmt.Errorf("recovery: %w", err)
	}
	m.thawLeftovers()
	m.pool.warm()
	m.background.Go(func() { m.reconcileLoop(m.life) })
	m.background.Go(func() { m.measureLayers(m.life) })
	return m, nil
}

// Close lets go of everything; pods go on running. Operations that run have a moment to
// end; those that take longer are undone.
func (m *Manager) Close() {
	m.operations.close()
	m.events.close()
	m.stop()
	m.trim.Stop()
	m.background.close()
	m.pool.close()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.ctrs {
		if c.pidfd != nil {
			c.pidfd.Close()
			c.pidfd = nil
		}
	}
}

func (m *Manager) exitDir() string              { return filepath.Join(m.cfg.State, "exits") }
func (m *Manager) exitFile(id string) string    { return filepath.Join(m.exitDir(), id) }
func (m *Manager) podStateDir(id string) string { return filepath.Join(m.cfg.State, "pods", id) }
func (m *Manager) layerDir(id string) string    { return filepath.Join(m.cfg.Root, "layers", id) }
func (m *Manager) trashDir() string             { return filepath.Join(m.cfg.Root, "trash") }

// step runs one step of an operation, names it for who waits, and notes how long it took.
func (m *Manager) step(f *flight, timeline *[]Stage, name string, do func() error) error {
	f.enter(name)
	begun := time.Now()
	err := do()
	if err == nil && m.cfg.Failpoint != nil {
		err = m.cfg.Failpoint(name)
	}
	*timeline = append(*timeline, Stage{Name: name, Took: time.Since(begun)})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// cleanup is the context of an undo: it outlives the caller's, and has its own deadline.
func (m *Manager) cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), m.cfg.CleanupTimeout)
}

// rollBack undoes an operation that has failed, which err then says.
func (m *Manager) rollBack(ctx context.Context, f *flight, err *error, undo func(context.Context) error) {
	if *err == nil {
		return
	}
	ctx, cancel := m.cleanup(ctx)
	defer cancel()
	f.enter("roll back")
	*err = errors.Join(*err, undo(ctx))
}

// updatePod changes a pod's facts and records them. The record is written outside the
// manager's lock, in the order of the changes.
func (m *Manager) updatePod(p *pod, change func(*Pod)) error {
	p.saving.Lock()
	defer p.saving.Unlock()
	m.mu.Lock()
	change(&p.Pod)
	facts := p.Pod
	m.mu.Unlock()
	m.trim.Poke()
	return m.podFiles.save(facts.ID, &facts)
}

// updateContainer does the same for a container.
func (m *Manager) updateContainer(c *ctr, change func(*ctr)) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	m.mu.Lock()
	change(c)
	facts := c.Container
	m.mu.Unlock()
	m.trim.Poke()
	return m.ctrFiles.save(facts.ID, &facts)
}

// find resolves an ID or a unique prefix of one.
func find[V any](kind string, all map[string]V, id string) (V, error) {
	if v, ok := all[id]; ok {
		return v, nil
	}
	var found []string
	for full := range all {
		if id != "" && strings.HasPrefix(full, id) {
			found = append(found, full)
		}
	}
	var none V
	switch len(found) {
	case 0:
		return none, fmt.Errorf("%s %q: %w", kind, id, ErrNotFound)
	case 1:
		return all[found[0]], nil
	}
	slices.Sort(found)
	return none, invalid(kind+" id", "%q is the beginning of %s", id, strings.Join(found, ", "))
}

func (m *Manager) pod(id string) (*pod, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return find("pod sandbox", m.pods, id)
}

func (m *Manager) container(id string) (*ctr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return find("container", m.ctrs, id)
}

// snapshot copies a pod's facts, for use without the lock. Configurations are never
// changed after creation, so they are shared.
func (m *Manager) snapshot(p *pod) *Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	facts := p.Pod
	return &facts
}

// Pod returns what is known of a pod sandbox.
func (m *Manager) Pod(id string) (*Pod, error) {
	p, err := m.pod(id)
	if err != nil {
		return nil, err
	}
	return m.snapshot(p), nil
}

// Pods lists all pod sandboxes that are or were ready, the newest first.
func (m *Manager) Pods() []*Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*Pod, 0, len(m.pods))
	for _, p := range m.pods {
		if p.State() != PodCreating {
			facts := p.Pod
			all = append(all, &facts)
		}
	}
	slices.SortFunc(all, func(a, b *Pod) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return all
}

// Container returns what is known of a container.
func (m *Manager) Container(id string) (*Container, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, err
	}
	return m.facts(c), nil
}

// facts copies a container's facts, for use without the lock.
func (m *Manager) facts(c *ctr) *Container {
	m.mu.Lock()
	defer m.mu.Unlock()
	facts := c.Container
	return &facts
}

// Containers lists all containers, the newest first.
func (m *Manager) Containers() []*Container {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*Container, 0, len(m.ctrs))
	for _, c := range m.ctrs {
		if !c.CreatedAt.IsZero() {
			facts := c.Container
			all = append(all, &facts)
		}
	}
	slices.SortFunc(all, func(a, b *Container) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return all
}

func (m *Manager) containersOf(pod string) []*ctr {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*ctr
	for _, c := range m.ctrs {
		if c.PodID == pod {
			all = append(all, c)
		}
	}
	return all
}
