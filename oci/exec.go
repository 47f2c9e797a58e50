package oci

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci/seccomp"
)

// execNamespaces are joined in this order: the mount namespace last, for the others are opened outside of it.
var execNamespaces = [...]struct {
	typ  specs.LinuxNamespaceType
	file string // in /proc/PID/ns
	flag uint64
}{
	{specs.NetworkNamespace, "net", sys.CloneNewNet},
	{specs.IPCNamespace, "ipc", sys.CloneNewIPC},
	{specs.UTSNamespace, "uts", sys.CloneNewUTS},
	{specs.CgroupNamespace, "cgroup", sys.CloneNewCgroup},
	{specs.MountNamespace, "mnt", sys.CloneNewNS},
	{specs.UserNamespace, "user", 0}, // these two are entered before the init is there
	{specs.TimeNamespace, "time", 0},
}

// execRoot is a root directory among namespaces: that of a container whose mount namespace has another one.
const execRoot specs.LinuxNamespaceType = "root"

// sharesMounts says whether a container's mount namespace is not its own, but the host's or that of others.
func sharesMounts(spec *specs.Spec) bool {
	return spec.Linux != nil && !slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
		return n.Type == specs.MountNamespace && n.Path == ""
	})
}

// ExecState is where a running container is.
type ExecState struct {
	// PID is the container's first process, which the caller has made sure is still that process.
	PID int
	// Namespaces are open /proc/PID/ns files, see OpenNamespaces.
	Namespaces map[specs.LinuxNamespaceType]*os.File
	// CgroupTasks are files that the init writes itself into (cgroup v1).
	CgroupTasks []string
	ExtraFiles  []*os.File
	Seccomp     func(*specs.LinuxSeccomp) (*Filter, error)
	ID          string
	// LatePID: who starts the init can leave the PID namespace to it (Launch.LatePID).
	LatePID bool
}

// OpenNamespaces opens those namespaces of the process pid in which a container with this specification differs from the
// host. The caller closes the files, and checks afterwards that pid has not been given to another process.
func OpenNamespaces(spec *specs.Spec, pid int) (map[specs.LinuxNamespaceType]*os.File, error) {
	out := map[specs.LinuxNamespaceType]*os.File{}
	for _, n := range execNamespaces {
		if !hasNamespace(spec, n.typ) {
			continue
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, n.file))
		if err != nil {
			CloseNamespaces(out)
			return nil, fmt.Errorf("%s namespace: %w", n.typ, err)
		}
		out[n.typ] = f
	}
	if sharesMounts(spec) {
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), sys.OpenPath, 0)
		if err != nil {
			CloseNamespaces(out)
			return nil, err
		}
		out[execRoot] = f
	}
	return out, nil
}

// CloseNamespaces closes what OpenNamespaces opened.
func CloseNamespaces(files map[specs.LinuxNamespaceType]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func hasNamespace(spec *specs.Spec, t specs.LinuxNamespaceType) bool {
	return spec.Linux != nil && slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
		return n.Type == t
	})
}

// ExecProcess is the container's process with another command: the same user, rights and environment (CRI
// ExecRequest). The container's own specification is not changed.
func ExecProcess(spec *specs.Spec, cmd []string, terminal bool) *specs.Process {
	p := *spec.Process
	p.Args, p.Terminal, p.ConsoleSize = cmd, terminal, nil
	p.Env = slices.Clone(p.Env)
	if terminal && !slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	return &p
}

// CompileExec translates another process of a running container. It is limited as the container is: its control group,
// its namespaces, its seccomp profile.
func CompileExec(spec *specs.Spec, p *specs.Process, st ExecState) (_ *Launch, err error) {
	if spec.Linux == nil || p == nil {
		return nil, fieldf("process", "missing")
	}
	msg := &initmsg.Message{
		Mode: initmsg.ModeExec, StartFile: initmsg.NoFile, CgroupTasks: st.CgroupTasks,
		UserNamespace: hasNamespace(spec, specs.UserNamespace),
	}
	c := &compiler{
		spec: spec, msg: msg, launch: &Launch{Message: msg},
		opt: &Options{Seccomp: st.Seccomp, ExtraFiles: st.ExtraFiles, ID: st.ID},
	}
	for _, n := range execNamespaces {
		if !hasNamespace(spec, n.typ) {
			continue
		}
		f := st.Namespaces[n.typ]
		if f == nil {
			return nil, fmt.Errorf("exec in %s: no open %s namespace", st.ID, n.typ)
		}
		if n.flag == 0 {
			continue
		}
		msg.Join = append(msg.Join, initmsg.Namespace{Type: n.flag, File: c.file(f)})
	}
	if sharesMounts(spec) {
		f := st.Namespaces[execRoot]
		if f == nil {
			return nil, fmt.Errorf("exec in %s: no open root", st.ID)
		}
		n := c.file(f)
		msg.ExecRoot = &n
	}
	if hasNamespace(spec, specs.PIDNamespace) {
		c.launch.PIDNamespace = fmt.Sprintf("/proc/%d/ns/pid", st.PID)
	}
	c.launch.UserNamespace, c.launch.TimeNamespace = st.Namespaces[specs.UserNamespace], st.Namespaces[specs.TimeNamespace]
	if err := c.process(p); err != nil {
		return nil, err
	}
	msg.Process.CreateCwd = false // the container is running: its files are its own business
	if err := c.seccomp(); err != nil {
		return nil, err
	}
	if err := c.lastFiles(); err != nil {
		return nil, err
	}
	if st.LatePID && c.canEnterLate() {
		n := int32(len(c.launch.Files))
		if c.launch.Terminal {
			n++ // its socket comes first
		}
		msg.PIDFile, c.launch.LatePID = &n, true
	}
	return c.launch, c.hostSetup()
}

// canEnterLate says whether the init can stay out of the container's PID namespace until all that is left is execve(2): a
// fork has to inherit what was set up, and the filter has to allow the calls of the last step.
//
// A user namespace needs none of it: whoever has CAP_SYS_PTRACE in there has it over no program of the node's that is
// not dumpable and that it may not read (see sys.SealedExecutable). And the init could not enter a PID namespace of the node's.
func (c *compiler) canEnterLate() bool {
	p := &c.msg.Process
	const deadline, resetOnFork = 6, 1 // SCHED_DEADLINE, SCHED_FLAG_RESET_ON_FORK
	if c.launch.PIDNamespace == "" || c.launch.UserNamespace != nil ||
		p.Scheduler != nil && (p.Scheduler.Policy == deadline || p.Scheduler.Flags&resetOnFork != 0) {
		return false
	}
	if len(p.Seccomp) == 0 {
		return true
	}
	const clone = syscall.CLONE_PARENT | syscall.CLONE_VFORK | syscall.CLONE_PARENT_SETTID
	return seccomp.Allows(p.Seccomp, syscall.SYS_CLONE, clone) && seccomp.Allows(p.Seccomp, syscall.SYS_SETSID) &&
		seccomp.Allows(p.Seccomp, syscall.SYS_CLOSE) && seccomp.Allows(p.Seccomp, syscall.SYS_EXIT_GROUP) &&
		(!p.Terminal || seccomp.Allows(p.Seccomp, syscall.SYS_IOCTL, 0, syscall.TIOCSCTTY))
}
