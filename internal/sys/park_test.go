package sys

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestPark(t *testing.T) {
	p, err := Park()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	proc := "/proc/" + strconv.Itoa(p.PID)
	time.Sleep(20 * time.Millisecond)
	if !PidfdAlive(p.pidfd) {
		t.Fatal("the parked process has ended")
	}
	if os.Geteuid() == 0 { // else the kernel does not tell
		if status, err := os.ReadFile(proc + "/status"); err != nil || !strings.Contains(string(status), "Threads:\t1\n") {
			t.Errorf("status = %s, %v; want one thread", status, err)
		}
	}
	p.Release()
	p.Release()
	if _, err := os.Stat(proc); !os.IsNotExist(err) {
		t.Errorf("stat %s after Release = %v; want not exist", proc, err)
	}
}

// A process that lost its maker must not stay.
func TestParkedEndsWithItsMaker(t *testing.T) {
	p, err := Park()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	p.hold.Close()
	for range 500 {
		if !PidfdAlive(p.pidfd) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the process lives after its pipe was closed")
}
