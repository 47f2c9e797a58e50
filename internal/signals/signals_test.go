package signals

import (
	"syscall"
	"testing"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]syscall.Signal{
		"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "SIGRTMAX-1": 63, "RTMAX": 64, "sigusr1": 10,
	} {
		got, err := Parse(s)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "SIG", "SIGNOPE", "0", "65", "-1", "SIGRTMIN-1", "SIGRTMAX+1", "SIGRTMIN+31", "SIGRTMIN+x", "SIGRTMAX-"} {
		if got, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %d; want error", s, got)
		}
	}
}
