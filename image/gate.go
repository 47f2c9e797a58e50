package image

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// gate bounds the layers that are fetched and unpacked at once, over all pulls. Small layers go before large ones that
// wait: they are done before anyone notices, and an image of small layers does not wait behind someone else's large
// one. The large ones go in the order in which they came.
//
// With enough of them inside to keep the processors busy, the next one is let in only when they are not, for those that take
// turns on a processor take its cache from each other.
type gate struct {
	max    int
	enough int         // without a look at the processors; at most max
	spare  func() bool // whether the processors were not busy since it was last asked

	mu      sync.Mutex
	in      int
	watched bool
	queue   []*ticket
}

type ticket struct {
	size int64
	turn chan struct{}
}

const (
	smallLayer = 4 << 20                // bytes, compressed
	gateWatch  = 100 * time.Millisecond // between two looks at the processors
)

func (g *gate) enter(ctx context.Context, size int64) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	if g.in < g.enough && len(g.queue) == 0 {
		g.in++
		g.mu.Unlock()
		return nil
	}
	t := &ticket{size: min(size, smallLayer), turn: make(chan struct{})}
	at, _ := slices.BinarySearchFunc(g.queue, t, func(waiting, t *ticket) int {
		if waiting.size <= t.size {
			return -1 // first come, first served
		}
		return 1
	})
	g.queue = slices.Insert(g.queue, at, t)
	if g.in < g.max && !g.watched {
		g.watched = true
		go g.watch()
	}
	g.mu.Unlock()
	select {
	case <-t.turn:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.queue, t); i >= 0 {
		g.queue = slices.Delete(g.queue, i, i+1)
	} else {
		g.next() // the turn came and is not taken
	}
	return context.Cause(ctx)
}

// inside is how many have entered.
func (g *gate) inside() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.in
}

// watch lets those in that were not, as long as there are some and places for them.
func (g *gate) watch() {
	g.spare()
	tick := time.NewTicker(gateWatch)
	defer tick.Stop()
	for range tick.C {
		if !g.admit(g.spare()) {
			return
		}
	}
}

// admit lets one more in, if a processor is spare, and tells whether there are others to watch for.
func (g *gate) admit(spare bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if spare && len(g.queue) > 0 && g.in < g.max {
		g.in++
		g.pass()
	}
	g.watched = len(g.queue) > 0 && g.in < g.max
	return g.watched
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next()
}

// next gives a place to the first in the queue. The caller holds mu.
func (g *gate) next() {
	if len(g.queue) == 0 {
		g.in--
		return
	}
	g.pass()
}

// pass lets the first in the queue in. The caller holds mu, and has the place.
func (g *gate) pass() {
	close(g.queue[0].turn)
	g.queue = slices.Delete(g.queue, 0, 1)
}

// sparer returns what tells whether this process left half of the processors unused since the last call. It is called
// once at a time.
func sparer() func() bool {
	at, used := time.Now(), time.Duration(0)
	return func() bool {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			return true
		}
		now, cpu := time.Now(), time.Duration(u.Utime.Nano()+u.Stime.Nano())
		most := now.Sub(at) * time.Duration(runtime.GOMAXPROCS(0))
		spare := cpu-used < most/2
		at, used = now, cpu
		return spare
	}
}
