package sandbox

import (
	"runtime"
	"testing"
	"time"
)

// TestCVE_2022_1708 (and CVE-2022-31030): what a command of ExecSync writes takes no more of the daemon's memory than the limit,
// and is taken all the same, so that the command can end.
func TestCVE_2022_1708(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	_, id := mustStart(t, m)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r, err := m.ExecSync(t.Context(), id, []string{"head -c 100000000 /dev/zero; head -c 100000000 /dev/zero >&2; exit 7"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	limit := m.cfg.ExecOutputMax
	if len(r.Stdout) != limit || len(r.Stderr) != limit || r.ExitCode != 7 {
		t.Errorf("ExecSync = %d and %d bytes, exit code %d; want %d of each and 7", len(r.Stdout), len(r.Stderr), r.ExitCode, limit)
	}
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 32<<20 {
		t.Errorf("ExecSync of 200 MB of output allocated %d MiB", allocated>>20)
	}
}
