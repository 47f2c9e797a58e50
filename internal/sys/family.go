package sys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// familyRounds bounds how often the processes are looked through for children that were forked meanwhile.
const familyRounds = 8

// KillFamily kills a process with its process group, its session and all descendants that still are such: a process that
// has left the session and lost its parent is beyond it. They are stopped first, so that none of them
// can fork while they are found. It is nil when the process has ended already.
func KillFamily(pidfd *os.File, pid int) error {
	family := map[int]*os.File{pid: pidfd}
	defer func() {
		for _, f := range family {
			if f != pidfd {
				f.Close()
			}
		}
	}()
	err := PidfdSignal(pidfd, syscall.SIGSTOP)
	for range familyRounds {
		if err != nil || !PidfdAlive(pidfd) { // its PID may be another's now
			break
		}
		var more bool
		if more, err = growFamily(family, pid); !more {
			break
		}
	}
	errs := []error{err, PidfdSignalGroup(pidfd, syscall.SIGKILL)}
	for _, f := range family {
		errs = append(errs, PidfdSignal(f, syscall.SIGKILL))
	}
	return errors.Join(errs...)
}

// growFamily adds those who belong to the family of the session's leader and are not in it yet, and stops them.
func growFamily(family map[int]*os.File, leader int) (more bool, err error) {
	all, err := processes()
	if err != nil {
		return false, err
	}
	for changed := true; changed; {
		changed = false
		for pid, p := range all {
			if family[pid] != nil || family[p.parent] == nil && p.session != leader {
				continue
			}
			f, err := PidfdOpenSame(pid, p.start)
			if errors.Is(err, os.ErrProcessDone) {
				delete(all, pid)
				continue
			}
			if err == nil {
				family[pid] = f
				err = PidfdSignal(f, syscall.SIGSTOP)
			}
			if err != nil {
				return more, fmt.Errorf("process %d: %w", pid, err)
			}
			more, changed = true, true
		}
	}
	return more, nil
}

type processStat struct {
	parent, session int
	start           uint64
	state           byte
}

// processes are all of /proc, by PID.
func processes() (map[int]processStat, error) {
	names, err := procDirs()
	if err != nil {
		return nil, err
	}
	all := make(map[int]processStat, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		data, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // it has ended
		}
		if p, ok := parseStat(data); ok {
			all[pid] = p
		}
	}
	return all, nil
}

func procDirs() ([]string, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// parseStat reads the fields 3, 4, 6 and 22 of /proc/PID/stat (proc_pid_stat(5)).
func parseStat(data []byte) (p processStat, ok bool) {
	// The second field, the command's name, may hold anything but ends with the last parenthesis.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	const first, parent, session, start = 3, 4, 6, 22
	if len(fields) <= start-first {
		return p, false
	}
	var errs [3]error
	p.state = fields[0][0]
	p.parent, errs[0] = strconv.Atoi(string(fields[parent-first]))
	p.session, errs[1] = strconv.Atoi(string(fields[session-first]))
	p.start, errs[2] = strconv.ParseUint(string(fields[start-first]), 10, 64)
	return p, errors.Join(errs[:]...) == nil
}
