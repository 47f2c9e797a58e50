package cri

import (
	"context"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// Pods is what the services need of pod sandboxes; sandbox.Manager has it.
type Pods interface {
	// RunPod returns once the pod is ready; a retry joins the running call.
	RunPod(ctx context.Context, cfg *workload.Pod) (id string, err error)
	StopPod(ctx context.Context, id string) error   // nil for an unknown ID
	RemovePod(ctx context.Context, id string) error // nil for an unknown ID
	// Pod takes an ID or a unique prefix of one; sandbox.ErrNotFound.
	Pod(id string) (*sandbox.Pod, error)
	// Pods are the ready and not-ready ones, newest first.
	Pods() []*sandbox.Pod
	PodVerbose(id string) (map[string]any, error)
}

// Containers is what the services need of containers; sandbox.Manager has it.
type Containers interface {
	CreateContainer(ctx context.Context, podID string, cfg *workload.Container) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	// StopContainer kills after timeout; nil for an unknown ID.
	StopContainer(ctx context.Context, id string, timeout time.Duration) error
	RemoveContainer(ctx context.Context, id string) error // nil for an unknown ID
	Container(id string) (*sandbox.Container, error)
	Containers() []*sandbox.Container
	ContainerVerbose(id string) (map[string]any, error)
}

// Processes is what the services need of running containers; sandbox.Manager has it.
type Processes interface {
	// ExecSync fails with context.DeadlineExceeded after timeout; 0 is no timeout.
	ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (*sandbox.ExecResult, error)
	ReopenLog(ctx context.Context, id string) error
	// Exec returns the exit code; when ctx ends, so does the command.
	Exec(ctx context.Context, id string, cmd []string, s sandbox.Streams) (code int, err error)
	// Attach returns when the container or ctx ends.
	Attach(ctx context.Context, id string, s sandbox.Streams) error
	// DialPod connects to a TCP port on the loopback of a pod's network.
	DialPod(ctx context.Context, id string, port uint16) (net.Conn, error)
}

// Updates is what changes while things run; sandbox.Manager has it.
type Updates interface {
	// UpdateContainer changes the limits that are not zero.
	UpdateContainer(ctx context.Context, id string, change *workload.Resources) error
	// UpdatePod does so for a pod as a whole; nil leaves a part alone.
	UpdatePod(ctx context.Context, id string, overhead, resources *workload.Resources) error
	SetPodCIDRs(cidrs []netip.Prefix) error
}

// Checkpoints is what the services need of checkpoints; sandbox.Manager has it.
type Checkpoints interface {
	// CheckpointContainer writes an archive; 0 is the runtime's own timeout.
	CheckpointContainer(ctx context.Context, id, archive string, timeout time.Duration) error
	// CheckpointPod writes to an existing, empty folder.
	CheckpointPod(ctx context.Context, id, dir string, containers []string) error
	// RestorePod makes a pod and containers of such a folder; when it fails nothing is left.
	RestorePod(ctx context.Context, dir string, cfg *workload.Pod, containers []*workload.Container) (id string, restored []sandbox.RestoredContainer, err error)
}

// Meters is what the services need of measurements; sandbox.Manager has it.
type Meters interface {
	// MeasureContainer and MeasurePod take an ID or a unique prefix of one; sandbox.ErrNotFound.
	MeasureContainer(ctx context.Context, id string) (*sandbox.ContainerStats, error)
	MeasurePod(ctx context.Context, id string) (*sandbox.PodStats, error)
	// MeasureContainers and MeasurePods hand over, one by one, what they measure: of the containers those that run. What
	// is gone meanwhile is left out.
	MeasureContainers(ctx context.Context, all []*sandbox.Container, each func(*sandbox.ContainerStats) error) error
	MeasurePods(ctx context.Context, pods []*sandbox.Pod, all bool, each func(*sandbox.PodStats) error) error
}

// Runtime is everything behind the RuntimeService.
type Runtime interface {
	Pods
	Containers
	Processes
	Meters
	Subscribe() *sandbox.Subscription
	Updates
	Checkpoints
	Conditions(ctx context.Context) []sandbox.Condition
}

// Image is what is told of an image.
type Image struct {
	ID          string // config digest, "sha256:…"
	RepoTags    []string
	RepoDigests []string
	Size        int64  // bytes, compressed or on disk; must be > 0
	User        string // the image configuration's "user[:group]"
	Annotations map[string]string
	Pinned      bool // exempt from the kubelet's garbage collection
}

// Credentials for a registry; the zero value is anonymous.
type Credentials struct {
	Username, Password string
	IdentityToken      string // exchanged for an access token
	RegistryToken      string // a bearer token sent as is
	ServerAddress      string // the registry they are for, "" is the image's
}

// FilesystemUsage is what is stored on one filesystem.
type FilesystemUsage struct {
	Mountpoint string
	UsedBytes  uint64
	Inodes     uint64
}

// Images is what the services need of the image store. A ref is a name, a name with a
// digest, or an image ID.
type Images interface {
	List(ctx context.Context) ([]*Image, error)
	// Get is nil without an error where there is no such image.
	Get(ctx context.Context, ref string) (*Image, error)
	// Pull returns the image ID.
	Pull(ctx context.Context, ref string, creds Credentials) (id string, err error)
	Remove(ctx context.Context, ref string) error // nil when absent
	Usage(ctx context.Context) ([]FilesystemUsage, error)
	// Verbose tells of an image that is there or is being pulled; nothing of others.
	Verbose(ctx context.Context, ref string) (map[string]any, error)
}

// Archives moves images in and out of the store as tar streams.
type Archives interface {
	// Import reads an OCI layout or a docker archive and returns the names it added.
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) ([]string, error)
	// Export writes an OCI layout that a docker client can load as well.
	Export(ctx context.Context, w io.Writer, refs []string, o image.ExportOptions) error
}
