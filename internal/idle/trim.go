// Package idle gives memory back when a process has become quiet.
package idle

import (
	"runtime/debug"
	"sync/atomic"
	"time"
)

// Trimmer collects garbage and returns free pages to the kernel once nothing has happened for a
// while. A Go heap otherwise keeps what the last burst of work took: a few
// hundred kilobytes in each supervisor, several megabytes in the daemon.
type Trimmer struct {
	timer *time.Timer
	after time.Duration
	armed atomic.Bool
}

// NewTrimmer returns a trimmer that acts when it was not poked for the given time; more is done after it.
func NewTrimmer(after time.Duration, more ...func()) *Trimmer {
	t := &Trimmer{after: after}
	t.timer = time.AfterFunc(after, func() {
		t.armed.Store(false)
		debug.FreeOSMemory()
		for _, f := range more {
			f()
		}
	})
	t.armed.Store(true)
	return t
}

// Poke says that something happens.
func (t *Trimmer) Poke() {
	t.armed.Store(true)
	t.timer.Reset(t.after)
}

// Armed tells whether a trim is still to come.
func (t *Trimmer) Armed() bool { return t.armed.Load() }

// Stop ends the trimmer.
func (t *Trimmer) Stop() { t.timer.Stop() }
