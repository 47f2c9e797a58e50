package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// TaskFiles lists, on v1, the tasks file of the group in every hierarchy that has the group. A process that is about to
// become the container writes "0" to each from its only thread, which is cheap; a foreign pid written to
// cgroup.procs costs milliseconds. On v2 it is nil: see Dir.
func (g *Group) TaskFiles() []string {
	if g.host.mode == V2 {
		return nil
	}
	files := make([]string, 0, len(g.host.hierarchies))
	for _, hi := range g.host.hierarchies {
		there := g.made
		if !there {
			there, _ = hi.root.Exists(g.rel)
		}
		if there {
			files = append(files, hi.file(g.rel, "tasks"))
		}
	}
	return files
}

// Dir opens the v2 group's directory with O_PATH, for clone3's CLONE_INTO_CGROUP (Linux 5.7).
func (g *Group) Dir() (*os.File, error) {
	hi := g.host.primary
	if g.host.mode != V2 {
		return nil, &UnsupportedError{Feature: "cgroup directory of " + g.path, Needs: "cgroup v2"}
	}
	d, err := hi.root.Dir(g.rel)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s/%s: %w", hi.mount, g.rel, err)
	}
	return os.NewFile(uintptr(d), hi.mount+"/"+g.rel), nil
}

// AddProc moves the process pid with all its threads into the group, in every hierarchy.
func (g *Group) AddProc(pid int) error {
	if pid <= 0 {
		return fmt.Errorf("add to cgroup %s: pid %d is not positive", g.path, pid)
	}
	for _, hi := range g.host.hierarchies {
		if _, err := hi.root.WriteFile(g.rel+"/cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("add process %d to cgroup %s/%s: %w", pid, hi.mount, g.rel, err)
		}
	}
	return nil
}

// OOMFile is the file that holds the group's oom_kill counter, for cgroupfile.ReadOOMKills; "" on a v1 host without the
// memory controller. The v2 counter includes nested groups and counts every process that memory.oom.group killed; v1's
// is the group's own.
func (g *Group) OOMFile() string {
	hi := g.host.byName["memory"]
	switch {
	case hi == nil:
		return ""
	case g.host.mode == V2:
		return hi.file(g.rel, "memory.events")
	}
	return hi.file(g.rel, "memory.oom_control")
}

// OOMParent is the same file of the slice that a scope is in, which also counts for the scope, and is still there when
// systemd has removed that; "" for a group that systemd has not made.
func (g *Group) OOMParent() string {
	hi := g.host.byName["memory"]
	if hi == nil || !strings.HasSuffix(g.unit, scopeSuffix) {
		return ""
	}
	return hi.file(path.Dir(path.Dir(g.rel)), "memory.events")
}

// Pids lists the processes of the group and the groups nested in it, sorted; none when the group is gone. Zombies
// and processes of other PID namespaces than the caller's (0) are not among them.
func (g *Group) Pids() ([]int, error) {
	pids, err := g.host.primary.pids(g.rel)
	if err != nil {
		return nil, fmt.Errorf("processes of cgroup %s: %w", g.path, err)
	}
	return pids, nil
}

// allPids is Pids over every hierarchy: a process with the rights to do so may have left some of them.
func (g *Group) allPids() ([]int, error) {
	var all []int
	for _, hi := range g.host.hierarchies {
		pids, err := hi.pids(g.rel)
		if err != nil {
			return nil, err
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func (h *hierarchy) pids(rel string) ([]int, error) {
	var pids []int
	err := h.walk(rel, func(dir sys.DirFD) error {
		b, err := dir.ReadFile("cgroup.procs", make([]byte, 0, 1024))
		// EOPNOTSUPP: a threaded group, whose processes are listed above it. ENODEV: removed meanwhile.
		if err != nil && !gone(err) && !errors.Is(err, syscall.EOPNOTSUPP) {
			return fmt.Errorf("read %s: %w", h.file(rel, "cgroup.procs"), err)
		}
		pids = appendPids(pids, b)
		return nil
	})
	slices.Sort(pids)
	return slices.Compact(pids), err
}

func appendPids(pids []int, b []byte) []int {
	cgroupfile.Lines(b, func(line []byte) {
		if n, err := strconv.Atoi(string(line)); err == nil && n > 0 {
			pids = append(pids, n)
		}
	})
	return pids
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}

// walk calls f for the group rel and every group nested in it, parents first. Groups that vanish are skipped.
func (h *hierarchy) walk(rel string, f func(dir sys.DirFD) error) error {
	dir, err := h.root.Dir(rel)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s/%s: %w", h.mount, rel, err)
	}
	defer dir.Close()
	return walk(dir, f)
}

func walk(dir sys.DirFD, f func(dir sys.DirFD) error) error {
	if err := f(dir); err != nil {
		return err
	}
	names, err := dir.Subdirs()
	if err != nil && !gone(err) {
		return err
	}
	for _, n := range names {
		sub, err := dir.Dir(n)
		if gone(err) {
			continue
		}
		if err == nil {
			err = errors.Join(walk(sub, f), sub.Close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Kill sends SIGKILL to every process of the group and of those nested in it, again and again until none is left, and
// returns nil then. When ctx ends first the error names the processes that remain. Linux 5.14 does it in one step on v2
// (cgroup.kill); elsewhere the group is frozen while its processes are listed, so that they cannot fork away, and
// thawed to die.
func (g *Group) Kill(ctx context.Context) error {
	for wait := newBackoff(); ; {
		pids, err := g.allPids()
		if err == nil && len(pids) > 0 {
			pids, err = g.killOnce()
		}
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", g.path, err)
		}
		if len(pids) == 0 {
			return nil
		}
		if err := wait.sleep(ctx); err != nil {
			if pids, _ = g.allPids(); len(pids) == 0 {
				return nil
			}
			return fmt.Errorf("kill cgroup %s: %w: remaining processes: %s", g.path, err, describe(pids))
		}
	}
}

// killOnce kills what is there now and returns it.
func (g *Group) killOnce() ([]int, error) {
	if g.host.mode == V2 {
		hi := g.host.primary
		_, err := hi.root.WriteFile(g.rel+"/cgroup.kill", "1")
		switch {
		case err == nil:
			return g.allPids()
		case !gone(err) && !errors.Is(err, syscall.EOPNOTSUPP):
			return nil, fmt.Errorf("write %s: %w", hi.file(g.rel, "cgroup.kill"), err)
		}
	}
	_ = g.setFrozen(true) // as well as it can: without a freezer, killing is merely repeated more often
	pids, err := g.killListed()
	return pids, errors.Join(err, g.thawAll())
}

// killListed signals through pidfds, each opened between two readings of the list: what is in both is still the
// process that was meant when the signal is sent.
func (g *Group) killListed() ([]int, error) {
	pids, err := g.allPids()
	if err != nil {
		return nil, err
	}
	procs := make(map[int]*os.Process, len(pids))
	for _, pid := range pids {
		if p, err := os.FindProcess(pid); err == nil {
			procs[pid] = p
			defer p.Release()
		}
	}
	if pids, err = g.allPids(); err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if p := procs[pid]; p != nil {
			if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return nil, fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
	}
	return pids, nil
}

// describe lists processes with their names and states, for errors.
func describe(pids []int) string {
	const most = 16
	var b strings.Builder
	for i, pid := range pids {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(pids)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.Itoa(pid))
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if _, after, ok := bytes.Cut(stat, []byte{'('}); err == nil && ok {
			if j := bytes.LastIndexByte(after, ')'); j >= 0 && j+2 < len(after) {
				fmt.Fprintf(&b, " (%s, %c)", after[:j], after[j+2])
			}
		}
	}
	return b.String()
}

// backoff sleeps 0.2 ms, then half as long again each time, up to 20 ms.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{200 * time.Microsecond} }

func (b *backoff) sleep(ctx context.Context) error {
	t := time.NewTimer(b.next)
	defer t.Stop()
	b.next = min(b.next*3/2, 20*time.Millisecond)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
