package main

import (
	"os"
	"runtime/debug"
)

// gcPercent trades a little CPU for memory: the daemon's live heap is small and its garbage,
// made mostly by requests, is short-lived.
const gcPercent = 50

// tuneMemory sets how the heap grows where the environment does not say. GOMEMLIMIT is
// read by the Go runtime itself.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
