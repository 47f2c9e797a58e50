package sys

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The group, the session, children in other sessions and those whose parent has gone: all of a command's family.
func TestKillFamily(t *testing.T) {
	if _, err := exec.LookPath("setsid"); err != nil {
		t.Skip("needs setsid(1)")
	}
	pids := filepath.Join(t.TempDir(), "pids")
	note := "echo $$ >> " + pids + "; exec sleep 1000"
	script := "sh -c '" + note + "' & setsid sh -c '" + note + "' & (sh -c '" + note + "' &); echo $$ >> " + pids + "; wait"
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var started []string
	for deadline := time.Now().Add(30 * time.Second); len(started) < 4; time.Sleep(5 * time.Millisecond) {
		text, _ := os.ReadFile(pids)
		started = strings.Fields(string(text))
		if time.Now().After(deadline) {
			t.Fatalf("processes %v; want four", started)
		}
	}
	pidfd, err := PidfdOpen(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	bystander := exec.Command("sleep", "1000")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { bystander.Process.Kill(); bystander.Wait() }()
	if err := KillFamily(pidfd, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for _, pid := range started {
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			if err != nil || bytes.Contains(stat, []byte(") Z ")) { // an orphan that PID 1 has not reaped yet
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("process %s lives: %s", pid, stat)
			}
		}
	}
	if stat, err := os.ReadFile("/proc/" + strconv.Itoa(bystander.Process.Pid) + "/stat"); err != nil || bytes.Contains(stat, []byte(") Z ")) {
		t.Errorf("a process that is no family is %s, %v; want it alive", stat, err)
	}
	if err := KillFamily(pidfd, cmd.Process.Pid); err != nil {
		t.Errorf("KillFamily of an ended process = %v; want nil", err)
	}
}

func TestParseStat(t *testing.T) {
	p, ok := parseStat([]byte("42 (a) b (c)) S 7 8 9 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 0 0"))
	if want := (processStat{parent: 7, session: 9, start: 12345, state: 'S'}); !ok || p != want {
		t.Errorf("parseStat = %+v, %v; want %+v", p, ok, want)
	}
	for _, bad := range []string{"", "42 (a) S 7", "42 (a) S x 8 9 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 0 0"} {
		if p, ok := parseStat([]byte(bad)); ok {
			t.Errorf("parseStat(%q) = %+v; want it refused", bad, p)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (systemd) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 42 9 9\n"))
	f.Add([]byte("7 (a) b) R 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 18446744073709551615"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, ok := parseStat(data); ok && len(bytes.Fields(data)) < 20 {
			t.Errorf("parseStat(%q) = %+v, of too few fields", data, p)
		}
	})
}
