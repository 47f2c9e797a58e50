package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// flights are operations that run once however often they are asked for: a retry
// joins the call that still runs. An operation outlives the caller that
// gave up, bounded by its own deadline.
type flights struct {
	mu      sync.Mutex
	running map[string]*flight
	limit   time.Duration
	closed  bool
	all     sync.WaitGroup
}

const (
	// closePatience is how long operations may go on when the daemon ends; undoPatience is
	// how long the undo of the others may take. What is then left, the next daemon undoes.
	closePatience = 3 * time.Second
	undoPatience  = 5 * time.Second
)

// close lets no operation begin any more and waits for those that run.
func (fs *flights) close() {
	fs.mu.Lock()
	fs.closed = true
	fs.mu.Unlock()
	ended := make(chan struct{})
	go func() { fs.all.Wait(); close(ended) }()
	if waitFor(context.Background(), ended, closePatience) {
		return
	}
	fs.mu.Lock()
	for _, f := range fs.running {
		f.cancel()
	}
	fs.mu.Unlock()
	waitFor(context.Background(), ended, undoPatience)
}

type flight struct {
	begun  time.Time
	cancel context.CancelFunc
	done   chan struct{}
	id     string
	err    error

	mu    sync.Mutex
	stage string
	since time.Time
}

// enter names the stage that the operation is at, for errors and logs.
func (f *flight) enter(stage string) {
	f.mu.Lock()
	f.stage, f.since = stage, time.Now()
	f.mu.Unlock()
}

func (f *flight) where() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprintf("at %q for %s, running for %s", f.stage,
		time.Since(f.since).Round(time.Millisecond), time.Since(f.begun).Round(time.Millisecond))
}

// do runs op under key, or joins the one that runs.
func (fs *flights) do(ctx context.Context, key string, op func(context.Context, *flight) (string, error)) (string, error) {
	fs.mu.Lock()
	f := fs.running[key]
	if f == nil && fs.closed {
		fs.mu.Unlock()
		return "", fmt.Errorf("%w: the daemon is ending", ErrUnavailable)
	}
	if f == nil {
		f = &flight{begun: time.Now(), since: time.Now(), stage: "begin", done: make(chan struct{})}
		if fs.running == nil {
			fs.running = map[string]*flight{}
		}
		fs.running[key] = f
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fs.limit)
		f.cancel = cancel
		fs.all.Go(func() { fs.run(ctx, key, f, op) })
	}
	fs.mu.Unlock()
	select {
	case <-f.done:
		return f.id, f.err
	case <-ctx.Done():
		return "", fmt.Errorf("%w; it goes on %s, and a retry joins it", ctx.Err(), f.where())
	}
}

func (fs *flights) run(ctx context.Context, key string, f *flight, op func(context.Context, *flight) (string, error)) {
	defer f.cancel()
	f.id, f.err = op(ctx, f)
	fs.mu.Lock()
	delete(fs.running, key)
	fs.mu.Unlock()
	close(f.done)
}

// locks serialise operations on one object without a lock that is held in sleep: who waits
// can give up, and learns who holds it.
type locks struct {
	mu   sync.Mutex
	held map[string]*hold
}

type hold struct {
	op    string
	since time.Time
	free  chan struct{}
}

// take waits for the object; the returned function gives it back.
func (l *locks) take(ctx context.Context, object, op string) (func(), error) {
	for {
		l.mu.Lock()
		h := l.held[object]
		if h == nil {
			h = &hold{op: op, since: time.Now(), free: make(chan struct{})}
			if l.held == nil {
				l.held = map[string]*hold{}
			}
			l.held[object] = h
			l.mu.Unlock()
			return func() { l.release(object, h) }, nil
		}
		l.mu.Unlock()
		select {
		case <-h.free:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %s of %s has been running for %s: %w", ErrBusy, h.op, object,
				time.Since(h.since).Round(time.Millisecond), ctx.Err())
		}
	}
}

func (l *locks) release(object string, h *hold) {
	l.mu.Lock()
	delete(l.held, object)
	l.mu.Unlock()
	close(h.free)
}
