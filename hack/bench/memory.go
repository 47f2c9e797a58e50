package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// memory is what a runtime's own processes hold.
type memory struct {
	processes int
	pss       int64 // bytes, from smaps_rollup: shared pages count in part
}

// settle is how long a runtime is left alone before it is measured: it may need some seconds to give back what it does not
// need when it is idle.
const settle = 8 * time.Second

// measureMemory measures each runtime without pods and with o.pods idle ones, and how long lists of those take. For the
// memory the pods are best on the node's network: what a network costs is the kernel's, not the runtime's.
func measureMemory(ctx context.Context, o *options) error {
	if o.pods == 0 {
		return nil
	}
	for _, t := range o.targets {
		if err := t.measureMemory(ctx, o); err != nil {
			return fmt.Errorf("%s: %d pods: %w", t.name, o.pods, err)
		}
	}
	return nil
}

func (t *target) measureMemory(ctx context.Context, o *options) (err error) {
	if t.results.idle, err = t.idleMemory(ctx); err != nil {
		return err
	}
	var ids []string
	defer func() {
		for _, id := range ids {
			err = errors.Join(err, t.remove(ctx, id))
		}
	}()
	for i := range o.pods {
		p := t.pod(o, o.idleNetwork, fmt.Sprintf("bench-%d-idle-%d", os.Getpid(), i))
		for _, step := range []func(context.Context) error{p.run, p.create, p.start} {
			err := step(ctx)
			if p.id != "" && (len(ids) == 0 || ids[len(ids)-1] != p.id) {
				ids = append(ids, p.id)
			}
			if err != nil {
				return err
			}
		}
	}
	if t.results.loaded, err = t.idleMemory(ctx); err != nil {
		return err
	}
	return t.measureLists(ctx, o.pods)
}

func (t *target) idleMemory(ctx context.Context) (memory, error) {
	select {
	case <-time.After(settle):
		return t.memory()
	case <-ctx.Done():
		return memory{}, ctx.Err()
	}
}

// helpers are the names that a runtime's processes have beside the daemon, which the socket leads to. The kernel
// cuts them at 15 bytes.
var helpers = []string{"cri-shim", "containerd", "crio", "conmon", "pause"}

// memory sums up the daemon and, of the processes that share its network namespace or descend from those that do,
// the ones with a runtime's name.
func (t *target) memory() (m memory, err error) {
	daemon, err := listener(t.socket)
	if err != nil {
		return m, err
	}
	space, err := os.Readlink(filepath.Join("/proc", daemon, "ns/net"))
	if err != nil {
		return m, err
	}
	family := familyOf(daemon)
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return m, err
	}
	for _, dir := range all {
		pid := filepath.Base(dir)
		own, _ := os.Readlink(filepath.Join(dir, "ns/net")) // gone meanwhile, or a pod's
		if pid != daemon && (own != space || !isHelper(pid, family)) {
			continue
		}
		pss, err := pssOf(pid)
		if err != nil {
			continue
		}
		m.processes++
		m.pss += pss
	}
	return m, nil
}

// familyOf is the helper names that go with a daemon: all that begin like its own.
func familyOf(daemon string) (names []string) {
	own := comm(daemon)
	for _, name := range helpers {
		if strings.HasPrefix(own, name) || own == "crio" && (name == "conmon" || name == "pause") {
			names = append(names, name)
		}
	}
	return names
}

func isHelper(pid string, family []string) bool {
	name := comm(pid)
	for _, prefix := range family {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func comm(pid string) string {
	text, _ := os.ReadFile(filepath.Join("/proc", pid, "comm")) // gone meanwhile
	return strings.TrimSpace(string(text))
}

// listener finds the process that listens on a Unix socket: the inode in /proc/net/unix, then who has it open.
func listener(socket string) (pid string, err error) {
	text, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return "", err
	}
	inode := ""
	for line := range strings.Lines(string(text)) {
		// Num RefCount Protocol Flags Type St Inode Path; 00010000 is __SO_ACCEPTCON.
		if f := strings.Fields(line); len(f) == 8 && f[7] == socket && f[3] == "00010000" {
			inode = f[6]
		}
	}
	if inode == "" {
		return "", fmt.Errorf("nobody in this network namespace listens on %s", socket)
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "", err
	}
	for _, fd := range fds {
		if link, _ := os.Readlink(fd); link == "socket:["+inode+"]" {
			return strings.Split(fd, "/")[2], nil
		}
	}
	return "", fmt.Errorf("no process has the socket %s open", socket)
}

// pssOf is the proportional set size of a process in bytes.
func pssOf(pid string) (int64, error) {
	text, err := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
	if err != nil {
		return 0, err
	}
	return parsePSS(string(text))
}

func parsePSS(text string) (int64, error) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" && f[2] == "kB" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("smaps_rollup has no Pss")
}
