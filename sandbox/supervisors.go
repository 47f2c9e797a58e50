package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// helloTimeout bounds the first answer of a supervisor.
const helloTimeout = 10 * time.Second

// quitTimeout bounds the end of supervisors that hold nothing, when the daemon ends.
const quitTimeout = 2 * time.Second

// Programs are the two executables beside the daemon. InitID names the build of Init: a supervisor that has another one,
// of the daemon before an upgrade, is handed Init with each launch, as an init reads only the messages of its own build.
type Programs struct {
	Supervisor, Init *os.File
	InitID           string
}

// pool is the supervisors: which there are, and which pod is in which.
type pool struct {
	dir      string // a folder for each supervisor
	programs Programs
	procs    []string // cgroup.procs files that a supervisor enters
	perPod   int      // pods in one supervisor
	log      *slog.Logger
	exited   func(*client, *api.Exit)
	lost     func(supervisor string, pods []string)
	// found is called when a supervisor is reached again.
	found func(*client)

	mu      sync.Mutex
	clients map[string]*client
	pods    map[string]map[string]bool // supervisor to its pods
	closed  bool
	// estranged are supervisors that live and do not answer, or speak another version. They
	// are left alone and asked again.
	estranged map[string]bool
	children  map[string]*os.File // pidfds of those that this daemon started
	// spawning: a spare supervisor is being started.
	spawning   bool
	turn       chan struct{} // holds one while a supervisor is being started
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
		if free, err := p.takeTurn(ctx); err == nil {
			if _, err := p.spawn(ctx); err != nil && !p.isClosed() {
				p.log.Error("start a spare supervisor", "err", err)
			}
			free()
		}
		p.mu.Lock()
		p.spawning = false
		p.mu.Unlock()
	})
}

func (p *pool) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// takeTurn waits until no supervisor is being started: pods that come at once share one
// and do not start one each.
func (p *pool) takeTurn(ctx context.Context) (func(), error) {
	select {
	case p.turn <- struct{}{}:
		return func() { <-p.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("a supervisor is being started: %w", ctx.Err())
	}
}

// assign is reserve for a pod that needs its supervisor now.
func (p *pool) assign(ctx context.Context, pod string) (*client, error) {
	if id := p.reserve(pod); id != "" {
		return p.of(id)
	}
	free, err := p.takeTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer free()
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
		go p.watch(c) // it may have ended meanwhile
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
			p.kill(id) // nobody could reach it
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
		Args:    append([]string{"cri-shim-supervisor", p.programs.InitID}, p.procs...),
		Env:     []string{"GOMAXPROCS=1"},
		Files:   []*os.File{null, log, log, listener, p.programs.Init},
		Session: true,
		Secret:  true,
	})
	if err != nil {
		return err
	}
	if err := p.adopt(id, pid, pidfd); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "pid"), strconv.AppendInt(nil, int64(pid), 10), 0o600)
}

// adopt reaps a supervisor when it ends, without a thread that waits for it.
func (p *pool) adopt(id string, pid int, pidfd *os.File) error {
	f, wait, err := sys.WaitPidfd(pidfd)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.children[id] = f
	p.mu.Unlock()
	go func() {
		if wait() == nil {
			sys.WaitChild(pid)
		}
		p.mu.Lock()
		delete(p.children, id)
		p.mu.Unlock()
		f.Close()
	}()
	return nil
}

func (p *pool) kill(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.children[id]; f != nil {
		sys.PidfdSignal(f, syscallKill)
	}
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
	r, _, err := c.call(ctx, &api.Request{Op: api.OpHello})
	if err != nil {
		conn.Close()
		return nil, err
	}
	c.ownInit = r.Hello != nil && r.Hello.InitID == p.programs.InitID
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return nil, fmt.Errorf("%w: the daemon is ending", ErrUnavailable)
	}
	p.clients[id] = c
	if p.pods[id] == nil {
		p.pods[id] = map[string]bool{}
	}
	go p.watch(c)
	return c, nil
}

// gone tells whether an error of connect means that the supervisor has ended: only it
// listens on its socket.
func gone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

const (
	reconnects     = 5
	reconnectPause = 50 * time.Millisecond
)

// reconnect takes up a connection again that broke. Its error says whether the supervisor is gone.
func (p *pool) reconnect(c *client) error {
	for n := 1; ; n++ {
		again, err := p.connect(context.Background(), c.id)
		if err == nil {
			p.log.Warn("connected to a supervisor again", "supervisor", c.id, "lost", c.closed)
			p.found(again)
			return nil
		}
		if n == reconnects || gone(err) || errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		time.Sleep(reconnectPause)
	}
}

// watch notices that a connection has ended: that a supervisor has died, or closed it
// because this daemon did not read.
func (p *pool) watch(c *client) {
	<-c.gone
	p.mu.Lock()
	current := p.clients[c.id] == c && !p.closed
	p.mu.Unlock()
	if !current {
		return
	}
	err := p.reconnect(c)
	if err == nil {
		return
	}
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
		p.log.Error("supervisor is lost", "supervisor", c.id, "pods", pods, "err", c.closed)
		p.bury(c.id, err)
		p.lost(c.id, pods)
	}
}

// bury removes what a dead supervisor left. One that lives is left alone, for another try.
func (p *pool) bury(id string, err error) {
	if gone(err) {
		p.log.Warn("supervisor is gone", "supervisor", id, "err", err)
		os.RemoveAll(filepath.Join(p.dir, id))
	} else {
		p.log.Error("supervisor cannot be talked to; it is left alone", "supervisor", id, "err", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if gone(err) {
		delete(p.estranged, id)
	} else {
		p.estranged[id] = true
	}
}

// retry asks the supervisors again that could not be talked to.
func (p *pool) retry(ctx context.Context) {
	p.mu.Lock()
	ids := slices.Collect(maps.Keys(p.estranged))
	p.mu.Unlock()
	for _, id := range ids {
		c, err := p.connect(ctx, id)
		if err != nil {
			p.bury(id, err)
			continue
		}
		p.mu.Lock()
		delete(p.estranged, id)
		p.mu.Unlock()
		p.found(c)
	}
}

// all returns the clients of the supervisors that can be talked to.
func (p *pool) all() []*client {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.clients))
}

// recover connects to the supervisors that outlived the last daemon, side by side, and
// removes what dead ones left.
func (p *pool) recover(ctx context.Context) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	var connecting sync.WaitGroup
	for _, e := range entries {
		connecting.Go(func() {
			if _, err := p.connect(ctx, e.Name()); err != nil {
				p.bury(e.Name(), err)
			}
		})
	}
	connecting.Wait()
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
		if !r.More || len(r.Processes) == 0 {
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
	for _, f := range p.children {
		f.Close()
	}
}

// newID returns 64 random hex digits.
func newID() string {
	b := make([]byte, 32)
	rand.Read(b)
	return hex.EncodeToString(b)
}
