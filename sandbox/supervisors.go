package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// helloTimeout bounds the first answer of a supervisor.
const helloTimeout = 10 * time.Second

// quitTimeout bounds the end of supervisors that hold nothing, when the daemon ends.
const quitTimeout = 2 * time.Second

// Programs are the two executables beside the daemon.
type Programs struct{ Supervisor, Init *os.File }

// pool is the supervisors: which there are, and which pod is in which.
type pool struct {
	dir      string // a folder for each supervisor
	programs Programs
	procs    []string // cgroup.procs files that a supervisor enters
	perPod   int      // pods in one supervisor
	log      *slog.Logger
	exited   func(*api.Exit)
	lost     func(supervisor string, pods []string)

	mu      sync.Mutex
	clients map[string]*client
	pods    map[string]map[string]bool // supervisor to its pods
	closed  bool
	// spawning: a spare supervisor is being started.
	spawning   bool
	background sync.WaitGroup
}

// of returns the client of a supervisor.
func (p *pool) of(id string) (*client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.clients[id]
	if c == nil {
		return nil, fmt.Errorf("%w: supervisor %q has died", ErrUnavailable, id)
	}
	return c, nil
}

// reserve puts a pod into a supervisor that has room, the fullest one so that others may
// empty. Without any it returns "", and sees to it that the next pod finds one.
func (p *pool) reserve(pod string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *client
	room := 0
	for id, c := range p.clients {
		n := len(p.pods[id])
		room += p.perPod - n
		if n < p.perPod && (best == nil || n > len(p.pods[best.id]) || n == len(p.pods[best.id]) && id < best.id) {
			best = c
		}
	}
	if room <= spareRoom {
		p.spawnSpare()
	}
	if best == nil {
		return ""
	}
	p.pods[best.id][pod] = true
	return best.id
}

// spareRoom is how few places may be left before another supervisor is started in the
// background: a pod does not wait for one.
const spareRoom = 2

// spawnSpare starts a supervisor ahead of need; the lock is held.
func (p *pool) spawnSpare() {
	if p.spawning || p.closed {
		return
	}
	p.spawning = true
	p.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), helloTimeout)
		defer cancel()
		_, err := p.spawn(ctx)
		if err != nil {
			p.log.Error("start a spare supervisor", "err", err)
		}
		p.mu.Lock()
		p.spawning = false
		p.mu.Unlock()
	})
}

// assign is reserve for a pod that needs its supervisor now.
func (p *pool) assign(ctx context.Context, pod string) (*client, error) {
	if id := p.reserve(pod); id != "" {
		return p.of(id)
	}
	c, err := p.spawn(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pods[c.id] == nil {
		return nil, fmt.Errorf("%w: supervisor %q has died", ErrUnavailable, c.id)
	}
	p.pods[c.id][pod] = true
	return c, nil
}

// keep says that a pod found after a restart is in a supervisor.
func (p *pool) keep(supervisor, pod string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pods := p.pods[supervisor]; pods != nil {
		pods[pod] = true
	}
}

// free takes a pod out, and ends its supervisor if it is empty and another has room.
func (p *pool) free(ctx context.Context, supervisor, pod string) {
	p.mu.Lock()
	pods := p.pods[supervisor]
	delete(pods, pod)
	c := p.clients[supervisor]
	idle := c != nil && len(pods) == 0 && p.roomLocked(supervisor)
	if idle { // nothing is assigned to it any more
		delete(p.clients, supervisor)
		delete(p.pods, supervisor)
	}
	p.mu.Unlock()
	if idle {
		p.quit(ctx, c)
	}
}

func (p *pool) roomLocked(except string) bool {
	for id := range p.clients {
		if id != except && len(p.pods[id]) < p.perPod {
			return true
		}
	}
	return false
}

// quit ends a supervisor that has no processes. One that refuses is kept.
func (p *pool) quit(ctx context.Context, c *client) {
	if _, _, err := c.call(ctx, &api.Request{Op: api.OpQuit}); err != nil && !errors.Is(err, ErrUnavailable) {
		p.log.Warn("supervisor does not end", "supervisor", c.id, "err", err)
		p.mu.Lock()
		p.clients[c.id], p.pods[c.id] = c, map[string]bool{}
		p.mu.Unlock()
		return
	}
	os.RemoveAll(filepath.Join(p.dir, c.id))
}

// spawn starts another supervisor.
func (p *pool) spawn(ctx context.Context) (_ *client, err error) {
	id := newID()[:12]
	dir := filepath.Join(p.dir, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
			err = fmt.Errorf("start supervisor %s: %w", id, err)
		}
	}()
	if err := p.exec(dir, id); err != nil {
		return nil, err
	}
	return p.connect(ctx, id)
}

func (p *pool) exec(dir, id string) error {
	listener, err := sys.ListenSeqpacket(filepath.Join(dir, "sock"))
	if err != nil {
		return err
	}
	defer listener.Close()
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	pid, pidfd, err := sys.Spawn(sys.SpawnAttr{
		Exe:     p.programs.Supervisor,
		Args:    append([]string{"cri-shim-supervisor"}, p.procs...),
		Env:     []string{"GOMAXPROCS=1"},
		Files:   []*os.File{null, log, log, listener, p.programs.Init},
		Session: true,
		Secret:  true,
	})
	if err != nil {
		return err
	}
	pidfd.Close()
	go sys.WaitChild(pid)
	return os.WriteFile(filepath.Join(dir, "pid"), strconv.AppendInt(nil, int64(pid), 10), 0o600)
}

// connect connects to a supervisor, whether just started or found after a restart.
func (p *pool) connect(ctx context.Context, id string) (*client, error) {
	conn, err := sys.DialSeqpacket(filepath.Join(p.dir, id, "sock"))
	if err != nil {
		return nil, err
	}
	c := newClient(id, conn, p.exited)
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	if _, _, err := c.call(ctx, &api.Request{Op: api.OpHello}); err != nil {
		conn.Close()
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clients[id] = c
	if p.pods[id] == nil {
		p.pods[id] = map[string]bool{}
	}
	go p.watch(c)
	return c, nil
}

// watch notices that a supervisor has died.
func (p *pool) watch(c *client) {
	<-c.gone
	p.mu.Lock()
	known := p.clients[c.id] == c && !p.closed
	var pods []string
	if known {
		for pod := range p.pods[c.id] {
			pods = append(pods, pod)
		}
		delete(p.clients, c.id)
		delete(p.pods, c.id)
	}
	p.mu.Unlock()
	if known {
		p.log.Error("supervisor has died", "supervisor", c.id, "pods", pods)
		os.RemoveAll(filepath.Join(p.dir, c.id))
		p.lost(c.id, pods)
	}
}

// recover connects to the supervisors that outlived the last daemon, and removes
// what dead ones left.
func (p *pool) recover(ctx context.Context) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, err := p.connect(ctx, e.Name()); err != nil {
			p.log.Warn("supervisor is gone", "supervisor", e.Name(), "err", err)
			os.RemoveAll(filepath.Join(p.dir, e.Name()))
		}
	}
	return nil
}

// warm starts the first supervisor ahead of the first pod.
func (p *pool) warm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.clients) == 0 {
		p.spawnSpare()
	}
}

// list returns all processes of a supervisor.
func (c *client) list(ctx context.Context) ([]api.Process, error) {
	var all []api.Process
	for after := ""; ; after = all[len(all)-1].ID {
		r, _, err := c.call(ctx, &api.Request{Op: api.OpList, After: after})
		if err != nil {
			return nil, err
		}
		all = append(all, r.Processes...)
		if !r.More {
			return all, nil
		}
	}
}

// close lets go of the supervisors. Those that hold pods go on for the next daemon; the others end.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.background.Wait()
	p.mu.Lock()
	var idle []*client
	for id, c := range p.clients {
		if len(p.pods[id]) == 0 {
			idle = append(idle, c)
		}
	}
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
	defer cancel()
	for _, c := range idle {
		p.quit(ctx, c)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.clients {
		c.conn.Close()
	}
}

// newID returns 64 random hex digits.
func newID() string {
	b := make([]byte, 32)
	rand.Read(b)
	return hex.EncodeToString(b)
}
