package sandbox

import (
	"net/netip"
	"time"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// State of a pod sandbox or a container. It is derived from recorded facts and
// never stored.
type State string

// States of pods and of containers (CRI PodSandboxState, ContainerState).
const (
	PodCreating State = "creating" // not listed yet
	PodReady    State = "ready"
	PodNotReady State = "not-ready"

	ContainerCreated State = "created"
	ContainerRunning State = "running"
	ContainerExited  State = "exited"
)

// Pod is what is known of a pod sandbox: its record on disk. Facts are set once.
type Pod struct {
	ID        string       `json:"id"`
	Config    workload.Pod `json:"config"`
	Boot      string       `json:"boot"` // the kernel's boot_id when it was made
	CreatedAt time.Time    `json:"created_at"`
	ReadyAt   time.Time    `json:"ready_at,omitzero"`
	StoppedAt time.Time    `json:"stopped_at,omitzero"`
	// Why says why the pod is not ready, where nobody stopped it.
	Why string `json:"why,omitempty"`
	// Netns is the path of the pod's network namespace, empty on the host's network.
	Netns string       `json:"netns,omitempty"`
	IPs   []netip.Addr `json:"ips,omitempty"` // the first is the primary one
	// Attached: CNI ADD was begun, so DEL is owed.
	Attached   bool   `json:"attached,omitempty"`
	Supervisor string `json:"supervisor,omitempty"`
	// Resources and Overhead are what updates have made of those in Config.
	Resources *workload.Resources `json:"resources,omitempty"`
	Overhead  *workload.Resources `json:"overhead,omitempty"`
	// Timeline is where the time of RunPodSandbox went.
	Timeline []Stage `json:"timeline,omitempty"`
}

// State derives the pod's state.
func (p *Pod) State() State {
	switch {
	case !p.StoppedAt.IsZero() || p.Why != "":
		return PodNotReady
	case p.ReadyAt.IsZero():
		return PodCreating
	}
	return PodReady
}

// Stage is one step of an operation and how long it took.
type Stage struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took"`
}

// Container is what is known of a container: its record on disk. Facts are set once.
type Container struct {
	ID       string             `json:"id"`
	PodID    string             `json:"pod_id"`
	Config   workload.Container `json:"config"`
	ImageID  string             `json:"image_id"` // "sha256:…", the config digest
	ImageRef string             `json:"image_ref"`
	LogPath  string             `json:"log_path,omitempty"` // absolute
	// Checkpoint names what the container is restored from when it is started; "" is a container that begins anew.
	Checkpoint string `json:"checkpoint,omitempty"`
	// Resources is what updates have made of Config.Resources; see Limits.
	Resources *workload.Resources `json:"resources,omitempty"`
	// Adjustment is what plugins have made of it, see Plugins.Create.
	Adjustment []byte    `json:"adjustment,omitempty"`
	CreatedAt  time.Time `json:"created_at"`
	// LaunchedAt is recorded before the process is made, StartedAt once it runs.
	LaunchedAt time.Time `json:"launched_at,omitzero"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	PID        int       `json:"pid,omitempty"`
	PIDStart   uint64    `json:"pid_start,omitempty"` // field 22 of /proc/PID/stat: tells a reused PID
	ExitCode   int       `json:"exit_code,omitempty"`
	OOMKilled  bool      `json:"oom_killed,omitempty"`
	// StopSignal is resolved when the container is made: the CRI's, the image's or SIGTERM.
	StopSignal string         `json:"stop_signal,omitempty"`
	User       *workload.User `json:"user,omitempty"`
	Reason     string         `json:"reason,omitempty"` // CamelCase: Completed, Error, OOMKilled, StartError, …
	Message    string         `json:"message,omitempty"`
	Timeline   []Stage        `json:"timeline,omitempty"`
}

// Limits are those that stand; nil is none. They are shared and never changed.
func (c *Container) Limits() *workload.Resources {
	if c.Resources != nil {
		return c.Resources
	}
	return c.Config.Resources
}

// State derives the container's state.
func (c *Container) State() State {
	switch {
	case !c.FinishedAt.IsZero():
		return ContainerExited
	case !c.StartedAt.IsZero():
		return ContainerRunning
	}
	return ContainerCreated
}

// Condition is one of a runtime's conditions (CRI RuntimeCondition).
type Condition struct {
	Type    string
	Ready   bool
	Reason  string
	Message string
}

// ExecResult is what a finished exec left.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int
}
