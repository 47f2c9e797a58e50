package sandbox

import (
	"strconv"
	"syscall"
	"testing"
)

func killPID(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	must(t, syscall.Kill(n, syscall.SIGKILL))
}
