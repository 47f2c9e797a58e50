package criu

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/oci"
)

// What criu restores comes from its images: credentials, filters and mounts are what these say. So before the processes
// go on, what the kernel has of them is compared with what the specification allows them.

// MismatchError says what a restored process has that its container may not have.
type MismatchError struct{ What string }

func (e *MismatchError) Error() string { return "the checkpoint does not fit the container: " + e.What }

func mismatch(format string, a ...any) error { return &MismatchError{fmt.Sprintf(format, a...)} }

// status is what /proc/PID/status tells of a process's rights.
type status struct {
	uids, gids [4]uint64
	caps       map[string]uint64 // CapInh, CapPrm, CapEff, CapBnd, CapAmb
	noNewPrivs bool
	seccomp    int
}

func readStatus(task string) (*status, error) {
	f, err := os.Open(task + "/status")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := &status{caps: map[string]uint64{}}
	for in := bufio.NewScanner(f); in.Scan(); {
		key, value, _ := strings.Cut(in.Text(), ":")
		words := strings.Fields(value)
		switch {
		case key == "Uid" && len(words) == 4:
			err = numbers(&s.uids, words)
		case key == "Gid" && len(words) == 4:
			err = numbers(&s.gids, words)
		case strings.HasPrefix(key, "Cap") && len(words) == 1:
			s.caps[key], err = strconv.ParseUint(words[0], 16, 64)
		case key == "NoNewPrivs" && len(words) == 1:
			s.noNewPrivs = words[0] == "1"
		case key == "Seccomp" && len(words) == 1:
			s.seccomp, err = strconv.Atoi(words[0])
		}
		if err != nil {
			return nil, fmt.Errorf("%s/status: %s: %w", task, key, err)
		}
	}
	return s, nil
}

func numbers(to *[4]uint64, words []string) (err error) {
	for i, w := range words {
		if to[i], err = strconv.ParseUint(w, 10, 32); err != nil {
			return err
		}
	}
	return nil
}

// Rights are those that a container's processes may have, at most.
type Rights struct {
	Capabilities uint64 // a bit for each number
	NoNewPrivs   bool
	Seccomp      bool // a filter is there
	// UID is who all of them run as, where there is no way to become another; -1 is anybody.
	UID int64
}

// capSysAdmin is the number of the capability to mount and to enter namespaces.
const capSysAdmin = 21

// RightsOf are what a specification allows.
func RightsOf(s *specs.Spec) (Rights, error) {
	r := Rights{UID: -1}
	p := s.Process
	if p == nil {
		return r, errors.New("the specification has no process")
	}
	r.NoNewPrivs = p.NoNewPrivileges
	r.Seccomp = s.Linux != nil && s.Linux.Seccomp != nil
	ambient := 0
	if c := p.Capabilities; c != nil {
		var err error
		all := slices.Concat(c.Bounding, c.Effective, c.Inheritable, c.Permitted, c.Ambient)
		if r.Capabilities, err = oci.CapabilityMask(all); err != nil {
			return r, err
		}
		ambient = len(c.Ambient)
	}
	// An ordinary user loses the capabilities when the workload is executed, and gets none again.
	if p.User.UID != 0 && p.NoNewPrivileges && ambient == 0 {
		r.UID = int64(p.User.UID)
	}
	return r, nil
}

// admin says whether the container's processes can make mounts and namespaces of their own.
func (r Rights) admin() bool { return r.Capabilities&(1<<capSysAdmin) != 0 && r.UID < 0 }

const seccompFilter = 2

// VerifyProcess compares one thread, by its folder in /proc, with what it may be.
func VerifyProcess(task string, r Rights) error {
	s, err := readStatus(task)
	if err != nil {
		return err
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		have, ok := s.caps[set]
		if !ok {
			return fmt.Errorf("%s/status: no %s", task, set)
		}
		if more := have &^ r.Capabilities; more != 0 {
			return mismatch("a process has the capabilities %#x in %s, which its container has not", more, set)
		}
	}
	if r.NoNewPrivs && !s.noNewPrivs {
		return mismatch("a process may gain privileges (no_new_privs is not set)")
	}
	if r.Seccomp && s.seccomp != seccompFilter {
		return mismatch("a process has no seccomp filter")
	}
	if r.UID < 0 {
		return nil
	}
	for _, uid := range s.uids {
		if uid != uint64(r.UID) {
			return mismatch("a process runs as user %d, its container as %d", uid, r.UID)
		}
	}
	if held := s.caps["CapPrm"] | s.caps["CapEff"]; held != 0 {
		return mismatch("a process of user %d has the capabilities %#x", r.UID, held)
	}
	return nil
}

// namespaceKinds are the namespaces of a container by their names in /proc. Not among them is that of times, which criu makes
// for clocks to go on from where they were.
var namespaceKinds = map[specs.LinuxNamespaceType]string{
	specs.NetworkNamespace: "net", specs.PIDNamespace: "pid", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts",
	specs.MountNamespace: "mnt", specs.CgroupNamespace: "cgroup", specs.UserNamespace: "user",
}

// VerifyNamespaces compares the namespaces of a process with those of the specification: in a namespace that it names a path
// of, in none of the node's where the container has its own, in the node's where it has none. What a container can make
// itself (admin) it may have made.
func VerifyNamespaces(pid int, s *specs.Spec, r Rights) error {
	has := map[specs.LinuxNamespaceType]string{}
	if s.Linux != nil {
		for _, ns := range s.Linux.Namespaces {
			has[ns.Type] = ns.Path
			if ns.Path == "" {
				has[ns.Type] = ownNamespace
			}
		}
	}
	for kind, name := range namespaceKinds {
		is, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/ns/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without it
		}
		if err != nil {
			return err
		}
		node, err := os.Stat("/proc/self/ns/" + name)
		if err != nil {
			return err
		}
		want := node
		switch at := has[kind]; {
		case at == ownNamespace && os.SameFile(is, node):
			return mismatch("a process is in the node's %s namespace", name)
		case at == ownNamespace, r.admin() && !os.SameFile(is, node):
			continue
		case at != "":
			if want, err = os.Stat(at); err != nil {
				return err
			}
		}
		if !os.SameFile(is, want) {
			return mismatch("a process is in another %s namespace than its container", name)
		}
	}
	return nil
}

// ownNamespace stands for one that the container alone has.
const ownNamespace = "-"

// VerifyMounts compares the mounts of a restored process with those of the specification: all of these are there, as
// read-only as they are to be, and, unless the container can make mounts itself, no others.
func VerifyMounts(pid int, spec *specs.Spec, r Rights) error {
	proc := "/proc/" + strconv.Itoa(pid)
	f, err := os.Open(proc + "/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	infos, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return err
	}
	byID := map[int]*mountinfo.Info{}
	for _, i := range infos {
		byID[i.ID] = i
	}
	root, err := os.Open(proc + "/root")
	if err != nil {
		return err
	}
	defer root.Close()
	return compareMounts(infos, spec, r.admin(), func(name string) (*mountinfo.Info, error) {
		i, err := mountAt(root, name, byID)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return i, err
	})
}

// compareMounts does so; at finds the mount that a path of the container is the root of.
func compareMounts(infos []*mountinfo.Info, spec *specs.Spec, own bool, at func(string) (*mountinfo.Info, error)) error {
	var linux specs.Linux
	if spec.Linux != nil {
		linux = *spec.Linux
	}
	known := map[int]bool{}
	var binds []string // what they have brought with them is below
	look := func(what, name string, wanted, readonly bool) error {
		i, err := at(name)
		switch {
		case err != nil:
			return fmt.Errorf("%s %s: %w", what, name, err)
		case i == nil && wanted:
			return mismatch("%s %s: there is no mount", what, name)
		case i == nil:
			return nil
		case readonly && !slices.Contains(strings.Split(i.Options, ","), "ro"):
			return mismatch("%s %s is writable", what, name)
		}
		known[i.ID] = true
		if what == whatMount {
			binds = append(binds, i.Mountpoint)
		}
		return nil
	}
	if err := look("root", "/", true, spec.Root != nil && spec.Root.Readonly); err != nil {
		return err
	}
	for _, m := range spec.Mounts {
		if err := look(whatMount, m.Destination, true, slices.Contains(m.Options, "ro")); err != nil {
			return err
		}
	}
	for _, name := range linux.ReadonlyPaths {
		if err := look("read-only path", name, inKernel(name), true); err != nil {
			return err
		}
	}
	for _, name := range linux.MaskedPaths {
		if err := look("masked path", name, inKernel(name), false); err != nil {
			return err
		}
	}
	if err := look("terminal", "/dev/console", false, false); err != nil || own {
		return err
	}
	for _, i := range infos {
		brought := func(at string) bool { return i.Mountpoint == at || strings.HasPrefix(i.Mountpoint, at+"/") }
		if i.Mountpoint != "/" && !known[i.ID] && !slices.ContainsFunc(binds, brought) {
			return mismatch("it has a mount at %s, which its container cannot have made", i.Mountpoint)
		}
	}
	return nil
}

const whatMount = "mount"

// inKernel says whether a path of /proc or /sys is there: what is not, is not mounted over.
func inKernel(name string) bool {
	if !strings.HasPrefix(name, "/proc/") && !strings.HasPrefix(name, "/sys/") {
		return false
	}
	_, err := os.Lstat(name)
	return err == nil
}

// EndAll kills processes by their numbers; they are stopped, so they do not come to anything before.
func EndAll(pids []int) error {
	var errs []error
	for _, pid := range pids {
		p, err := os.FindProcess(pid)
		if err == nil {
			err = p.Kill()
		}
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
