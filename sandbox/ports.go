package sandbox

import (
	"context"
	"net/netip"
	"os"

	"github.com/cri-shim/cri-shim/internal/usage"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// Network attaches pods to networks.
type Network interface {
	// Setup attaches the pod's network namespace and returns its addresses, the primary one first.
	Setup(ctx context.Context, p *Pod) ([]netip.Addr, error)
	// Teardown undoes Setup; nil when already gone.
	Teardown(ctx context.Context, p *Pod) error
	// Ready is nil when pods can be attached, else it says why not.
	Ready(ctx context.Context) error
	// Collect frees what is attached for pods that are not among those that live returns. It is
	// a function so that pods that are being attached meanwhile are among them.
	Collect(ctx context.Context, live func() []*Pod) error
}

// Images resolves images and mounts root file systems.
type Images interface {
	// Resolve finds a local image by reference or ID.
	Resolve(ref string) (*Image, error)
	// Hold keeps an image from being collected until Release, for a container ID.
	Hold(imageID, owner string) error
	Release(owner string)
	// Rootfs returns a detached mount of the container's root; dir is its own folder. The owners of files are those of
	// the user namespace at the path userns, "" is none.
	Rootfs(ctx context.Context, c *Container, dir, userns string) (*os.File, error)
	// HoldVolumes holds the images that a container has as volumes, and finds out whether they can be mounted; if not,
	// the error matches ErrImageVolume.
	HoldVolumes(ctx context.Context, c *Container) error
}

// Layers limits what containers write.
type Layers interface {
	// Check refuses, at creation, a limit that cannot be had.
	Check(p *Pod, c *Container) error
	// Prepare limits a container's own folder, which is empty.
	Prepare(p *Pod, c *Container, dir string) error
	// Remove deletes such a folder, which may have been moved, with all that is in it.
	Remove(dir string) error
}

// Image is what a container needs to know of its image.
type Image struct {
	ID         string // "sha256:…"
	Ref        string // a repository digest, else a tag, else the ID
	StopSignal string
	Volumes    []string
}

// Runtime turns pods and containers into processes to be launched. The processes
// themselves are made by supervisors.
type Runtime interface {
	// Check refuses, at creation, what could never be launched.
	Check(p *Pod, c *Container) error
	// Prepare makes the cgroup and everything that a launch needs. On error nothing is left.
	Prepare(ctx context.Context, p *Pod, c *Container, env Environment) (*Launch, error)
	// PrepareExec makes what another process in a running container needs.
	PrepareExec(ctx context.Context, p *Pod, c *Container, e ExecSpec) (*Launch, error)
	// PodInit makes what the init of a pod's shared PID namespace needs; userns is the path of the pod's user namespace.
	PodInit(ctx context.Context, p *Pod, userns string) (*Launch, error)
	// Cleanup kills what is left in the container's cgroup and removes it; nil when gone.
	Cleanup(ctx context.Context, p *Pod, c *Container) error
	// CleanupPod does the same for the pod's own.
	CleanupPod(ctx context.Context, p *Pod) error
}

// Meter measures what pods and containers use. What is not there (any more) is an error that matches fs.ErrNotExist.
type Meter interface {
	// Container reads the counters of a container's control group: all, or only CPU, memory and pressure.
	Container(ctx context.Context, p *Pod, c *Container, all bool) (*usage.Stats, error)
	// Pod reads those of the group that holds all of a pod's containers.
	Pod(ctx context.Context, p *Pod, all bool) (*usage.Stats, error)
	// Processes counts what runs in a container and, where open says so, what that has open.
	Processes(ctx context.Context, p *Pod, c *Container, open bool) (usage.Processes, error)
	// Layer walks a folder and adds up what its files take.
	Layer(ctx context.Context, dir string) (bytes, inodes uint64, err error)
}

// Limits changes the limits of what runs.
type Limits interface {
	// Check refuses limits that no container could have.
	Check(r *workload.Resources) error
	// Update applies those that are not zero to a running container.
	Update(ctx context.Context, p *Pod, c *Container, r *workload.Resources) error
	// UpdatePod does so for the pod as a whole, where its group is the runtime's own.
	UpdatePod(ctx context.Context, p *Pod, r *workload.Resources) error
}

// Checkpoints captures running containers, and opens what was captured.
type Checkpoints interface {
	// Ready says what a checkpoint lacks on this node; it matches errors.ErrUnsupported then.
	Ready(ctx context.Context) error
	// Freeze stops all processes of a container; an error leaves them running.
	Freeze(ctx context.Context, p *Pod, c *Container) error
	// Thaw lets them go on; nil when they run, or are gone.
	Thaw(p *Pod, c *Container) error
	// Save writes a frozen container to an archive, which is there as a whole or not at all. layer is the container's own
	// folder, work one for what is only needed meanwhile.
	Save(ctx context.Context, p *Pod, c *Container, layer, work, archive string) error
	// Find opens the checkpoint that an image's name stands for: an image that holds one, or an archive of the node. nil is
	// any other image.
	Find(ctx context.Context, image string) (Checkpoint, error)
	// Open opens an archive of the node.
	Open(ctx context.Context, archive string) (Checkpoint, error)
}

// Checkpoint is a container that was captured. What it says may have been written by anybody.
type Checkpoint interface {
	// Name is for people and records.
	Name() string
	// Image finds the image that the container was made of: a checkpoint only has what differs from it.
	Image() (*Image, error)
	// Check refuses a container that does not suit what was captured; expected: what its configuration says of the process
	// is what must have been captured, too.
	Check(p *Pod, c *Container, expected bool) error
	// Unpack puts what was captured into the container's own folder, from where Prepare takes it.
	Unpack(ctx context.Context, p *Pod, c *Container, dir string) error
	Close() error
}

// Plugins hear of pods and containers, and may change what they are to be (NRI). Every call is bounded: a plugin that does
// not answer is left out.
type Plugins interface {
	// Hold keeps plugins that connect from being told of what there is, until release.
	Hold() (release func())
	// Tell tells of a step; c is nil where it is the pod's. The error is that of a plugin that refuses.
	Tell(ctx context.Context, e PluginEvent, p *Pod, c *Container) error
	// Create asks what a container is to be like: an adjustment that is recorded with it and is the Runtime's to apply, and
	// limits; nil is no change.
	Create(ctx context.Context, p *Pod, c *Container) (adjustment []byte, limits *workload.Resources, err error)
	// Update returns what plugins make of a change of limits.
	Update(ctx context.Context, p *Pod, c *Container, change *workload.Resources) (*workload.Resources, error)
}

// Environment is what the manager made for a container before it is launched.
type Environment struct {
	Root       *os.File          // the mounted root
	Namespaces map[string]string // "network", "ipc", "uts", "user" to a path, "" for the node's
	ResolvConf string            // host paths of files to be bound
	Hostname   string
	Hosts      string
	Shm        string
	Dir        string            // the container's own folder, on disk
	Volumes    map[string]string // image VOLUMEs: path in the container to path on the host
}

// ExecSpec is a process to be run in a running container.
type ExecSpec struct {
	Command  []string
	Terminal bool
	PID      int // of the container's first process
	// LatePID: the supervisor can do what Launch.LatePID asks for.
	LatePID bool
}

// Launch is a process ready to be made by a supervisor. Close it when done.
type Launch struct {
	Message    []byte
	Foreign    *api.Foreign // another runtime makes it, in place of Message
	Files      []*os.File
	Cgroup     *os.File // cgroup v2 directory, else nil
	CloneFlags uint64
	// JoinPID: the process is made in the PID namespace of the pod's init, of the target
	// container, or (exec) of the container itself; the manager knows whose.
	JoinPID bool
	// LatePID: only the workload enters that namespace, see api.Launch.
	LatePID   bool
	OOMFile   string
	OOMParent string // see api.Launch
	KillGroup []string
	User      *workload.User
	// Started, if any, runs once the workload is executed; an error ends the container.
	Started func(ctx context.Context, pid int) error
	// Release, if set, is called once the process runs or will not.
	Release func()
	// UserNamespace and TimeNamespace are entered before the clone, Host is done before that; or nil.
	UserNamespace, TimeNamespace *os.File
	Host                         *api.HostSetup
	TimeOffsets                  string   // of a time namespace that CloneFlags make
	Affinity                     []uint64 // CPUs to start on, as words of a mask
}

// Close closes the files of the launch.
func (l *Launch) Close() {
	if l.Release != nil {
		l.Release()
	}
	for _, f := range append(l.Files, l.Cgroup, l.UserNamespace, l.TimeNamespace) {
		if f != nil {
			f.Close()
		}
	}
}
