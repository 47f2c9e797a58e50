package idle

import (
	"runtime"
	"testing"
	"time"
)

func TestTrimmer(t *testing.T) {
	tr := NewTrimmer(time.Hour)
	defer tr.Stop()
	var before, after runtime.MemStats
	garbage := make([]byte, 32<<20)
	for i := range garbage {
		garbage[i] = 1
	}
	runtime.ReadMemStats(&before)
	garbage = nil
	tr.after = time.Millisecond
	tr.Poke()
	for tr.Armed() {
		time.Sleep(time.Millisecond)
	}
	for range 1000 {
		if runtime.ReadMemStats(&after); after.HeapReleased > before.HeapReleased && after.HeapAlloc < before.HeapAlloc-(16<<20) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("heap %d → %d bytes, released %d → %d; want the garbage given back",
		before.HeapAlloc, after.HeapAlloc, before.HeapReleased, after.HeapReleased)
}
