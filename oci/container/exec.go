package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/oci/cgroup"
)

// ExecOptions are another process of a container.
type ExecOptions struct {
	Process       *specs.Process
	Cgroup        string // below the container's; "" is its own
	IgnorePaused  bool
	Stdio         [3]*os.File
	ExtraFiles    []*os.File
	ConsoleSocket string
	Terminal      func(master *os.File)
	PIDFile       string
}

// Exec starts another process in a container. The context bounds nothing that has started.
func (c *Container) Exec(_ context.Context, o ExecOptions) (_ *Child, err error) {
	status, err := c.Status()
	if err != nil {
		return nil, err
	}
	switch {
	case status == specs.StateStopped || status == specs.StateCreating:
		return nil, fmt.Errorf("cannot exec a container that has stopped")
	case status == StatusPaused && !o.IgnorePaused:
		return nil, errors.New("cannot exec in a paused container (use --ignore-paused to override)")
	}
	spec, err := c.Spec()
	if err != nil {
		return nil, err
	}
	create := &CreateOptions{ConsoleSocket: o.ConsoleSocket, Terminal: o.Terminal, Stdio: o.Stdio, ExtraFiles: o.ExtraFiles}
	if err := checkTerminal(o.Process, create); err != nil {
		return nil, err
	}
	l := &launch{c: c, o: create, spec: spec}
	defer l.close()
	if err := l.prepareExec(o); err != nil {
		return nil, err
	}
	if err := l.start(context.Background()); err != nil {
		l.end()
		return nil, err
	}
	if err := WritePIDFile(o.PIDFile, l.child.PID); err != nil {
		l.end()
		return nil, err
	}
	return &Child{PID: l.child.PID, Pidfd: l.child.Pidfd}, nil
}

// end kills a process that is not to stay.
func (l *launch) end() {
	if l.child == nil {
		return
	}
	sys.PidfdSignal(l.child.Pidfd, syscall.SIGKILL)
	sys.WaitChild(l.child.PID)
	l.child.Pidfd.Close()
}

func (l *launch) prepareExec(o ExecOptions) error {
	groups, err := l.c.rt.groups()
	if err != nil {
		return err
	}
	group, err := groups.Open(l.c.CgroupPath)
	if err != nil {
		return err
	}
	if o.Cgroup != "" {
		if group, err = groups.Open(path.Join(group.Path(), path.Join("/", o.Cgroup))); err != nil {
			return err
		}
	}
	spaces, err := oci.OpenNamespaces(l.spec, l.c.PID)
	if err != nil {
		return err
	}
	for _, f := range spaces {
		l.files = append(l.files, f)
	}
	l.flags, err = oci.CompileExec(l.spec, o.Process, oci.ExecState{
		PID: l.c.PID, Namespaces: spaces, CgroupTasks: group.TaskFiles(), ExtraFiles: o.ExtraFiles,
		Seccomp: oci.CompileSeccomp, ID: l.c.ID, LatePID: true,
	})
	if err != nil {
		return err
	}
	l.flags.Message.Process.KeepKeyring = l.c.KeepKeyring
	if groups.Mode() == cgroup.V2 {
		if l.how.Cgroup, err = l.keep(group.Dir()); err != nil {
			return err
		}
	}
	l.how.Stdio = l.o.Stdio
	if err := l.fill(); err != nil {
		return err
	}
	// What was opened is the container's, and not that of another process with its ID.
	pidfd, err := l.c.pidfd()
	if err != nil {
		return fmt.Errorf("cannot exec a container that has stopped: %w", err)
	}
	return pidfd.Close()
}

// Processes lists the processes of the container's group.
func (c *Container) Processes() ([]int, error) {
	g, err := c.group()
	if err != nil {
		return nil, err
	}
	return g.Pids()
}

// ExecProcess is the container's own process with another command line.
func ExecProcess(spec *specs.Spec, args []string) *specs.Process {
	p := *spec.Process
	p.Args, p.Terminal, p.ConsoleSize = args, false, nil
	p.Env = slices.Clone(p.Env)
	return &p
}
