package supervisor

import (
	"bytes"
	"encoding/json"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/atomicfile"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// ended runs once for each process, after it was reaped: kill what it left behind, take
// the rest of its output, write the exit file, and only then tell.
func (s *Supervisor) ended(p *process, status syscall.WaitStatus) {
	at := time.Now()
	<-p.started
	s.mu.Lock()
	failed := p.failed
	s.mu.Unlock()
	if failed != "" {
		exit := &api.Exit{ID: p.id, Code: exitNotExecuted, At: at, Failed: failed}
		s.keepExit(p, exit) // there may be no daemon to hear the cause
		s.mu.Lock()
		delete(s.processes, p.id)
		s.tell(exit)
		s.mu.Unlock()
		p.pidfd.Close()
		p.log.close()
		return
	}
	code, sig := sys.ExitCode(status)
	oom := s.oomKilled(p, code) // at once: systemd may be about to remove the cgroup
	for _, dir := range p.launch.KillGroup {
		if err := killGroup(dir); err != nil {
			s.cfg.Log.Error("kill what a container left", "ctr", p.id, "cgroup", dir, "err", err)
		}
	}
	p.drain()
	exit := &api.Exit{ID: p.id, Code: code, Signal: sig, OOM: oom, At: at}
	s.keepExit(p, exit)
	s.mu.Lock()
	p.exit = exit
	s.tell(exit)
	s.mu.Unlock()
	if p.mounts != nil {
		p.mounts.Close() // the kernel now takes the container's mounts apart
	}
}

// keepExit writes the exit file, if there is to be one.
func (s *Supervisor) keepExit(p *process, exit *api.Exit) {
	f := p.launch.ExitFile
	if f == "" {
		return
	}
	if err := writeExit(f, exit); err != nil {
		s.cfg.Log.Error("write exit file", "ctr", p.id, "file", f, "err", err)
	}
}

// exitNotExecuted is the exit code of a launch that failed.
const exitNotExecuted = 128

// tell sends an exit to all daemons; the lock is held.
func (s *Supervisor) tell(e *api.Exit) {
	for ses := range s.sessions {
		ses.event(api.Reply{Exit: e})
	}
}

// writeExit makes the exit file by rename, so that a reader sees all of it or nothing.
func writeExit(path string, exit *api.Exit) error {
	data, err := json.Marshal(exit)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}

// killRounds bounds how often the processes of a v1 group are read and killed again.
const killRounds = 50

// killGroup kills every process in a cgroup: cgroup.kill where the kernel has it,
// else each one until none is left.
func killGroup(dir string) error {
	err := os.WriteFile(dir+"/cgroup.kill", []byte("1"), 0)
	if err == nil || !os.IsNotExist(err) && !os.IsPermission(err) {
		return err
	}
	for range killRounds {
		data, err := os.ReadFile(dir + "/cgroup.procs")
		if os.IsNotExist(err) || err == nil && len(data) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		for _, word := range bytes.Fields(data) {
			if pid, err := strconv.Atoi(string(word)); err == nil && pid > 1 {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
	return os.ErrDeadlineExceeded
}
