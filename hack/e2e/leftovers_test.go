package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// close removes all pods, looks for what they left, ends the daemon and its supervisors and removes the folder.
func (n *node) close() error {
	var errs []error
	if n.daemon == nil && n.conn != nil {
		errs = append(errs, n.start())
	}
	if n.conn != nil {
		errs = append(errs, n.removeAll(), n.leftovers())
	}
	errs = append(errs, n.stop(syscall.SIGTERM))
	if n.conn != nil {
		errs = append(errs, n.conn.Close())
	}
	errs = append(errs, n.processesEnd(), n.unmountAll(), n.removeCgroups(), calls.read(n.path("daemon.log")))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", n.dir, err)
	}
	return os.RemoveAll(n.dir)
}

func (n *node) removeAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	list, err := n.ListPodSandbox(ctx, &pb.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range list.Items {
		err = errors.Join(err, n.removePod(ctx, p.Id))
	}
	return err
}

func (n *node) removePod(ctx context.Context, id string) error {
	_, stop := n.StopPodSandbox(ctx, &pb.StopPodSandboxRequest{PodSandboxId: id})
	_, remove := n.RemovePodSandbox(ctx, &pb.RemovePodSandboxRequest{PodSandboxId: id})
	return errors.Join(stop, remove)
}

// leftovers names all that is there of pods although there is no pod. What takes its time in the background is
// given some.
func (n *node) leftovers() error {
	var left []string
	for range 50 {
		if left = n.traces(); len(left) == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
}

func (n *node) traces() (left []string) {
	note := func(format string, a ...any) { left = append(left, fmt.Sprintf(format, a...)) }
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if list, err := n.ListPodSandbox(ctx, &pb.ListPodSandboxRequest{}); err != nil || len(list.Items) > 0 {
		note("pods: %v %v", list.GetItems(), err)
	}
	if list, err := n.ListContainers(ctx, &pb.ListContainersRequest{}); err != nil || len(list.Containers) > 0 {
		note("containers: %v %v", list.GetContainers(), err)
	}
	for _, mount := range mountsBelow(n.dir) {
		if mount != n.path("netns") { // stays, as /run/netns does
			note("mount %s", mount)
		}
	}
	for _, dir := range []string{"netns", "state/pods", "state/exits", "root/layers", "root/trash", "root/specs",
		"state/bundles", "state/runtimes/runc", "state/runtimes/crun"} {
		for _, e := range entries(n.path(dir)) {
			if !strings.HasPrefix(e, "seccomp-") { // profiles are kept for the next container
				note("%s/%s", dir, e)
			}
		}
	}
	for _, e := range entries(n.path("ipam", n.name)) {
		if strings.ContainsAny(e, ".:_") && !strings.HasPrefix(e, "last_reserved_ip") {
			note("address %s", e)
		}
	}
	for _, dir := range cgroupsBelow(n.cgroup) {
		rel := strings.TrimPrefix(dir[strings.Index(dir, n.cgroup)+len(n.cgroup):], "/")
		if rel != "" && rel != "supervisors" && !n.ownCgroup("/"+rel) {
			note("cgroup %s", dir)
		}
	}
	return append(left, n.networkTraces()...)
}

// ownCgroup says whether a cgroup is one that the harness named as a pod's parent; it is the client's to remove.
func (n *node) ownCgroup(rel string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, parent := range n.pods {
		if parent == n.cgroup+rel {
			return true
		}
	}
	return false
}

func (n *node) networkTraces() (left []string) {
	if out, err := exec.Command("ip", "-o", "link", "show", "master", n.name).CombinedOutput(); err == nil && len(out) > 0 {
		left = append(left, "links: "+string(out))
	}
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(command).Output()
		if err != nil {
			continue // not there, so not used
		}
		n.mu.Lock()
		for line := range strings.Lines(string(out)) {
			for id := range n.pods {
				if strings.Contains(line, id[:16]) {
					left = append(left, command+": "+line)
				}
			}
		}
		n.mu.Unlock()
	}
	return left
}

func entries(dir string) (names []string) {
	list, _ := os.ReadDir(dir) // one that is not there has none
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func mountsBelow(dir string) (mounts []string) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	for line := range strings.Lines(string(text)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") {
			mounts = append(mounts, at)
		}
	}
	return mounts
}

// cgroupsBelow lists a cgroup and its descendants in all hierarchies, children before parents.
func cgroupsBelow(group string) (dirs []string) {
	roots, _ := filepath.Glob("/sys/fs/cgroup" + group)
	more, _ := filepath.Glob("/sys/fs/cgroup/*" + group)
	for _, root := range append(roots, more...) {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append([]string{path}, dirs...)
			}
			return nil // what is gone meanwhile is gone
		})
	}
	return dirs
}

// processesEnd waits until no process is in the node's cgroups or runs its program.
func (n *node) processesEnd() error {
	var left []string
	for range 50 {
		left = nil
		for _, dir := range cgroupsBelow(n.cgroup) {
			procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			for pid := range strings.FieldsSeq(string(procs)) {
				left = append(left, fmt.Sprintf("%s %s in %s, %s", pid, comm(pid), dir, whereabouts(pid)))
			}
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, process := range left {
		if pid, err := strconv.Atoi(strings.Fields(process)[0]); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return fmt.Errorf("processes that outlive the daemon without a pod:\n  %s", strings.Join(left, "\n  "))
}

// whereabouts says what a process is at: parent, state, threads, and what the first thread waits in.
func whereabouts(pid string) string {
	read := func(name string) string {
		text, _ := os.ReadFile(filepath.Join("/proc", pid, name))
		return strings.TrimSpace(string(text))
	}
	tasks, _ := os.ReadDir("/proc/" + pid + "/task")
	_, stat, _ := strings.Cut(read("stat"), ") ")
	f := append(strings.Fields(stat), "", "")
	return fmt.Sprintf("state %s, parent %s %s, %d threads, system call %s, wchan %s", f[0], f[1], comm(f[1]), len(tasks), read("syscall"), read("wchan"))
}

func comm(pid string) string {
	text, _ := os.ReadFile("/proc/" + pid + "/comm")
	return strings.TrimSpace(string(text))
}

// unmountAll undoes what is mounted below the folder, so that it can be removed: the pins' own mount, and what a
// failed test left.
func (n *node) unmountAll() (err error) {
	mounts := mountsBelow(n.dir)
	for i := len(mounts) - 1; i >= 0; i-- {
		err = errors.Join(err, syscall.Unmount(mounts[i], syscall.MNT_DETACH))
	}
	return err
}

func (n *node) removeCgroups() (err error) {
	for _, dir := range cgroupsBelow(n.cgroup) {
		if e := os.Remove(dir); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}
