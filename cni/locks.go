package cni

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// podLocks lets one operation at a time run for a pod, as the CNI specification demands.
type podLocks struct {
	mu   sync.Mutex
	held map[string]*podLock
}

type podLock struct {
	op    string
	since time.Time
	free  chan struct{}
}

// lock waits for the pod's turn. Its error says which operation it has waited for, and how long that one runs.
func (l *podLocks) lock(ctx context.Context, pod, op string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		holder := l.held[pod]
		if holder == nil {
			if l.held == nil {
				l.held = make(map[string]*podLock)
			}
			own := &podLock{op: op, since: time.Now(), free: make(chan struct{})}
			l.held[pod] = own
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, pod)
				l.mu.Unlock()
				close(own.free)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-holder.free:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s of the same pod, which has run for %s: %w",
				holder.op, time.Since(holder.since).Round(time.Millisecond), context.Cause(ctx))
		}
	}
}

// gate keeps a plugin's GC apart from every other command: "the runtime must ensure that no add or delete
// operations are in progress before executing gc, and must wait for gc to complete before issuing new"
// ones (CNI specification, Lifecycle & Ordering). GC gives way: it starts when nothing else runs and holds
// up nobody while it waits for that.
type gate struct {
	mu      sync.Mutex
	running int
	idle    chan struct{} // closed when running falls to 0; nil when nobody waits
	gc      *podLock      // nil: no GC runs
}

func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	for {
		g.mu.Lock()
		gc := g.gc
		if gc == nil {
			g.running++
			g.mu.Unlock()
			return g.leave, nil
		}
		g.mu.Unlock()
		select {
		case <-gc.free:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for GC, which has run for %s: %w",
				time.Since(gc.since).Round(time.Millisecond), context.Cause(ctx))
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if g.running == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// exclusive waits until nothing runs, for as long as ctx lasts.
func (g *gate) exclusive(ctx context.Context) (leave func(), err error) {
	for {
		g.mu.Lock()
		var wait <-chan struct{}
		switch {
		case g.gc != nil:
			wait = g.gc.free
		case g.running > 0:
			if g.idle == nil {
				g.idle = make(chan struct{})
			}
			wait = g.idle
		default:
			own := &podLock{op: "GC", since: time.Now(), free: make(chan struct{})}
			g.gc = own
			g.mu.Unlock()
			return func() {
				g.mu.Lock()
				g.gc = nil
				g.mu.Unlock()
				close(own.free)
			}, nil
		}
		g.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a moment without ADD and DEL: %w", context.Cause(ctx))
		}
	}
}

// goneSet remembers attachments that are known to be detached. It forgets all when it is full, which costs a
// needless DEL.
type goneSet struct {
	mu  sync.Mutex
	ids map[AttachmentID]struct{}
}

const maxGone = 4096

func (g *goneSet) has(id AttachmentID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.ids[id]
	return ok
}

func (g *goneSet) add(id AttachmentID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ids == nil || len(g.ids) >= maxGone {
		g.ids = make(map[AttachmentID]struct{})
	}
	g.ids[id] = struct{}{}
}

func (g *goneSet) remove(id AttachmentID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.ids, id)
}
