package image

import (
	"context"
	"slices"
	"sync"
)

// gate bounds the layers that are fetched and unpacked at once, over all pulls. Small layers go before large ones that
// wait: they are done before anyone notices, and an image of small layers does not wait behind someone else's large
// one. The large ones go in the order in which they came.
type gate struct {
	mu    sync.Mutex
	free  int
	queue []*ticket
}

type ticket struct {
	size int64
	turn chan struct{}
}

const smallLayer = 4 << 20 // bytes, compressed

func (g *gate) enter(ctx context.Context, size int64) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	if g.free > 0 {
		g.free--
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

// vacant is how many more can enter at once.
func (g *gate) vacant() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.free
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next()
}

// next gives a place to the first in the queue. The caller holds mu.
func (g *gate) next() {
	if len(g.queue) == 0 {
		g.free++
		return
	}
	close(g.queue[0].turn)
	g.queue = slices.Delete(g.queue, 0, 1)
}
