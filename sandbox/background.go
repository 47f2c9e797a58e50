package sandbox

import (
	"context"
	"sync"
	"time"
)

// tasks are what runs in the background until it is closed.
type tasks struct {
	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

// Go runs f, unless the manager is being closed: what is missed then is found by the next
// daemon, as after a crash.
func (t *tasks) Go(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.running.Go(f)
	}
}

// tasksPatience bounds the wait for what runs: the deletion of a large layer, for one, is
// taken up by the next daemon.
const tasksPatience = 5 * time.Second

// close waits for what runs.
func (t *tasks) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	ended := make(chan struct{})
	go func() { t.running.Wait(); close(ended) }()
	waitFor(context.Background(), ended, tasksPatience)
}
