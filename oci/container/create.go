package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/atomicfile"
	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/oci/cgroup"
	"github.com/cri-shim/cri-shim/oci/launcher"
)

// undoTimeout bounds what is done to give back what a failed operation took.
const undoTimeout = 10 * time.Second

// CreateOptions are what a bundle does not say.
type CreateOptions struct {
	ID, Bundle  string
	NoPivot     bool
	KeepKeyring bool
	Stdio       [3]*os.File
	ExtraFiles  []*os.File // the workload's descriptors from 3 on
	Env         []string   // beside the configuration's
	// ConsoleSocket is a unix socket that gets the terminal's master.
	ConsoleSocket string
	// Terminal takes the master instead, before Create returns.
	Terminal func(master *os.File)
	// Gate leaves the start to Start. Without it the workload runs when Create returns.
	Gate bool
	// PIDFile gets the process ID.
	PIDFile string
}

// Child is a process that was started, a child of this process.
type Child struct {
	PID   int
	Pidfd *os.File
}

// Create makes a container. On an error nothing is left.
func (r *Runtime) Create(ctx context.Context, o CreateOptions) (_ *Container, _ *Child, err error) {
	spec, config, err := readBundle(&o)
	if err != nil {
		return nil, nil, err
	}
	c, err := r.reserve(&o, spec, config)
	if err != nil {
		return nil, nil, err
	}
	l := &launch{c: c, o: &o, spec: spec}
	defer l.close()
	defer func() {
		if err != nil {
			err = errors.Join(err, c.undo(ctx, spec.Hooks, l.started()))
		}
	}()
	if err := l.prepare(); err != nil {
		return nil, nil, err
	}
	if err := l.run(ctx); err != nil {
		return nil, nil, err
	}
	return c, l.started(), nil
}

// readBundle reads what is to become a container.
func readBundle(o *CreateOptions) (spec *specs.Spec, config []byte, err error) {
	if err := CheckID(o.ID); err != nil {
		return nil, nil, err
	}
	if o.Bundle, err = filepath.Abs(o.Bundle); err != nil {
		return nil, nil, err
	}
	if config, err = os.ReadFile(filepath.Join(o.Bundle, configFile)); err != nil {
		return nil, nil, err
	}
	if spec, err = parseSpec(config); err != nil {
		return nil, nil, err
	}
	return spec, config, checkTerminal(spec.Process, o)
}

func checkTerminal(p *specs.Process, o *CreateOptions) error {
	terminal := p != nil && p.Terminal
	switch {
	case terminal && o.ConsoleSocket == "" && o.Terminal == nil:
		return errors.New("cannot allocate tty if runc will detach without setting console socket")
	case o.ConsoleSocket != "" && (!terminal || o.Terminal != nil):
		return errors.New("cannot use console socket if runc will not detach or allocate tty")
	}
	return nil
}

// reserve makes the folder, and with it takes the ID, and writes down what is about to be.
func (r *Runtime) reserve(o *CreateOptions, spec *specs.Spec, config []byte) (_ *Container, err error) {
	c := &Container{rt: r, dir: filepath.Join(r.Root, o.ID), record: record{
		ID: o.ID, Bundle: o.Bundle, Created: time.Now().UTC(), Annotations: spec.Annotations,
		KeepKeyring: o.KeepKeyring, Creator: os.Getpid(),
	}}
	if spec.Root != nil {
		if c.Rootfs = spec.Root.Path; !filepath.IsAbs(c.Rootfs) {
			c.Rootfs = filepath.Join(o.Bundle, c.Rootfs)
		}
	}
	if c.CgroupPath, err = r.cgroupPath(spec, o.ID); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(c.dir); err == nil { // before its own processes are taken for another's
		return nil, ErrExist
	}
	if err := c.groupFree(); err != nil {
		return nil, err
	}
	if c.CreatorStart, err = sys.StartTime(c.Creator); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.Root, 0o700); err != nil {
		return nil, err
	}
	err = os.Mkdir(c.dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil, ErrExist
	}
	if err == nil {
		if err = os.WriteFile(filepath.Join(c.dir, configFile), config, 0o600); err == nil {
			err = c.save()
		}
		if err != nil {
			err = errors.Join(err, os.RemoveAll(c.dir))
		}
	}
	return c, err
}

// groupFree refuses a group with processes in it: they would be killed with the container's.
func (c *Container) groupFree() error {
	g, err := c.group()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pids, err := g.Pids()
	if err == nil && len(pids) > 0 {
		err = fmt.Errorf("container's cgroup is not empty: %d process(es) found in %s", len(pids), c.CgroupPath)
	}
	return err
}

// launch is one way from a specification to a process.
type launch struct {
	c     *Container
	o     *CreateOptions
	spec  *specs.Spec
	files []*os.File // to be closed in the end

	gate    *oci.HookGate
	how     launcher.Process
	flags   *oci.Launch
	group   *cgroup.Group // that was made
	console *sys.Conn     // the master comes from here
	child   *launcher.Child
}

func (l *launch) keep(f *os.File, err error) (*os.File, error) {
	if err == nil {
		l.files = append(l.files, f)
	}
	return f, err
}

func (l *launch) close() {
	if l.flags != nil {
		l.flags.Close()
	}
	l.gate.Close()
	if l.group != nil {
		l.group.Release() // the container keeps it from being empty now
	}
	if l.console != nil {
		l.console.Close()
	}
	for _, f := range l.files {
		f.Close()
	}
}

// prepare makes the group with its limits and the init's message.
func (l *launch) prepare() error {
	if l.spec.Process != nil && len(l.o.Env) > 0 {
		l.spec.Process.Env = append(slices.Clone(l.spec.Process.Env), l.o.Env...)
	}
	groups, err := l.c.rt.groups()
	if err != nil {
		return err
	}
	opt := oci.Options{
		Bundle: l.c.Bundle, Staging: l.c.dir, NoPivot: l.o.NoPivot, HostMounts: true, ExtraFiles: l.o.ExtraFiles,
		Seccomp: oci.CompileSeccomp, ID: l.c.ID,
	}
	opt.Cgroups = oci.MountsOf(groups)
	if opt.Cgroups.Group, err = cgroup.Resolve(l.c.CgroupPath); err != nil {
		return err
	}
	if l.o.Gate {
		if opt.StartFile, err = l.keep(l.c.startGate()); err != nil {
			return err
		}
	}
	if l.gate, err = oci.NewHookGate(l.spec); err != nil {
		return err
	}
	opt.HookSocket = l.gate.Socket()
	// Before the group is made: a mistake in the specification costs nothing.
	if l.flags, err = oci.Compile(l.spec, opt); err != nil {
		return err
	}
	if err := oci.MakeResctrl(l.spec, "", l.c.ID); err != nil {
		return err
	}
	group, err := groups.Create(context.Background(), l.c.CgroupPath, oci.CgroupResources(l.spec))
	if err != nil {
		return err
	}
	l.group = group
	l.flags.EnterCgroup(group.TaskFiles())
	l.flags.Message.Process.KeepKeyring = l.o.KeepKeyring
	if groups.Mode() == cgroup.V2 {
		if l.how.Cgroup, err = l.keep(group.Dir()); err != nil {
			return err
		}
	}
	l.how.Stdio = l.o.Stdio
	return l.fill()
}

// fill turns the compiled launch into what the launcher takes.
func (l *launch) fill() (err error) {
	if l.how.Init, err = l.c.rt.Init(); err != nil {
		return err
	}
	l.how.Files, l.how.CloneFlags = l.flags.Files, l.flags.CloneFlags
	if l.flags.Terminal {
		if err := l.openConsole(); err != nil {
			return err
		}
	}
	if p := l.flags.PIDNamespace; p != "" {
		if l.how.PIDNamespace, err = l.keep(os.Open(p)); err != nil {
			return fmt.Errorf("linux.namespaces: pid: %w", err)
		}
	}
	l.how.Affinity, l.how.Late = l.flags.Affinity, l.flags.LatePID
	l.how.UserNamespace, l.how.TimeNamespace, l.how.Host = l.flags.UserNamespace, l.flags.TimeNamespace, l.flags.Host
	l.how.TimeOffsets = l.flags.TimeOffsets
	encoded, err := initmsg.Encode(l.flags.Message)
	if err != nil {
		return err
	}
	l.how.Message, err = l.keep(sys.Memfd("message", encoded))
	return err
}

func (l *launch) openConsole() error {
	var socket *os.File
	var err error
	if l.o.ConsoleSocket != "" {
		socket, err = l.keep(sys.DialStream(l.o.ConsoleSocket))
	} else if l.console, socket, err = launcher.Terminal(); err == nil {
		l.files = append(l.files, socket)
	}
	if err != nil {
		return fmt.Errorf("console socket: %w", err)
	}
	l.how.Files = append(slices.Clip(l.how.Files), socket)
	return nil
}

// startGate makes the FIFO between create and start. The workload's user opens it, through the init's
// descriptor alone: nobody else gets into the folder.
func (c *Container) startGate() (*os.File, error) {
	p := filepath.Join(c.dir, startFile)
	if err := syscall.Mkfifo(p, 0o622); err != nil {
		return nil, fmt.Errorf("make %s: %w", p, err)
	}
	if err := os.Chmod(p, 0o622); err != nil {
		return nil, err
	}
	return os.OpenFile(p, sys.OpenPath, 0)
}

// run starts the init and waits until it is where it should be.
func (l *launch) run(ctx context.Context) (err error) {
	if err := l.start(ctx); err != nil {
		return err
	}
	l.c.PID = l.child.PID
	if l.c.PIDStart, err = sys.StartTime(l.c.PID); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := l.c.save(); err != nil {
		return err
	}
	return WritePIDFile(l.o.PIDFile, l.c.PID)
}

// start runs the hooks of this side while the init sets the container up.
func (l *launch) start(ctx context.Context) error {
	var err error
	if l.child, err = launcher.Start(l.how); err != nil {
		return err
	}
	if l.gate != nil {
		l.gate.Socket().Close() // the init's end is the init's alone, so that its death is noticed
		served := make(chan struct{})
		go func() {
			defer close(served)
			l.gate.Serve(ctx, *l.c.hookState(specs.StateCreating))
		}()
		defer func() { <-served }()
	}
	if l.console != nil {
		for _, f := range l.files {
			if f == l.how.Files[len(l.how.Files)-1] {
				f.Close() // likewise
			}
		}
		if master, err := launcher.ReceiveTerminal(l.console); err == nil {
			l.o.Terminal(master)
		}
	}
	wait := l.child.Executed
	if l.o.Gate {
		wait = l.child.Ready
	}
	warnings, err := wait()
	for _, w := range warnings {
		l.c.rt.Warn(errors.New(w))
	}
	return err
}

// WritePIDFile writes a process ID to a file, at once; "" is none.
func WritePIDFile(path string, pid int) error {
	if path == "" {
		return nil
	}
	return atomicfile.Write(path, []byte(strconv.Itoa(pid)), 0o644)
}

// started is the process, once there is one.
func (l *launch) started() *Child {
	if l.child == nil {
		return nil
	}
	return &Child{PID: l.child.PID, Pidfd: l.child.Pidfd}
}

// undo takes back what Create or Restore has done (runtime-spec, "Lifecycle", from step 12 on).
func (c *Container) undo(ctx context.Context, hooks *specs.Hooks, child *Child) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if child != nil {
		sys.PidfdSignal(child.Pidfd, syscall.SIGKILL)
		sys.WaitChild(child.PID)
		child.Pidfd.Close()
		defer c.poststop(ctx, hooks)
	}
	return c.destroy(ctx)
}

// destroy removes the group, with what is left in it, and then the record.
func (c *Container) destroy(ctx context.Context) error {
	g, err := c.group()
	switch {
	case err == nil:
		if err := g.Kill(ctx); err != nil {
			return err
		}
		if err := g.Remove(ctx); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := oci.RemoveResctrl("", c.ID); err != nil {
		return err
	}
	return os.RemoveAll(c.dir)
}

// poststop runs the hooks of the end; one that fails is a warning, and the others run (runtime-spec, "Lifecycle").
func (c *Container) poststop(ctx context.Context, hooks *specs.Hooks) {
	if hooks == nil {
		return
	}
	for i := range hooks.Poststop {
		if err := oci.RunHooks(ctx, "poststop", hooks.Poststop[i:i+1], c.hookState(specs.StateStopped)); err != nil {
			c.rt.Warn(err)
		}
	}
}
