// Package container is the life of containers that are made from OCI bundles, one by one, by a command that ends
// while they run: create, start, exec, kill, delete. What is known of a container is in a folder of its own below
// Runtime.Root; its state is derived from that and from the kernel.
package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/atomicfile"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci/cgroup"
)

// Errors that callers tell apart.
var (
	ErrNotExist = errors.New("container does not exist")
	ErrExist    = errors.New("container with given ID already exists")
	ErrID       = errors.New("invalid container ID format")
)

// StatusPaused is a status beside those of the specification, as runc has it.
const StatusPaused specs.ContainerState = "paused"

// Runtime keeps containers below a folder.
type Runtime struct {
	Root string
	// Init opens the init program; the file is the Runtime's to keep open.
	Init func() (*os.File, error)
	// Systemd makes control groups by systemd: cgroupsPath is slice:prefix:name (see cgroup.Unit).
	Systemd bool
	// Warn is told what does not fail an operation.
	Warn func(error)

	cgroups *cgroup.Host
}

// record is what is stored of a container; facts alone.
type record struct {
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	CgroupPath  string            `json:"cgroup_path"`
	KeepKeyring bool              `json:"keep_keyring,omitempty"`
	// PID is the container's first process; 0 while it is being created. A start time (ticks since boot) tells a
	// process from another with its ID.
	PID      int    `json:"pid,omitempty"`
	PIDStart uint64 `json:"pid_start,omitempty"`
	// Creator is the process that creates it.
	Creator      int    `json:"creator"`
	CreatorStart uint64 `json:"creator_start"`
}

const (
	recordFile = "state.json"
	configFile = "config.json" // as it was at creation
	startFile  = "exec.fifo"   // there until the container is started
	lockFile   = "lock"
)

// Container is one that exists.
type Container struct {
	rt  *Runtime
	dir string
	record
}

var idPattern = regexp.MustCompile(`^[\w+.-]+$`)

// CheckID refuses what cannot be the name of a folder, as runc does.
func CheckID(id string) error {
	if id == "." || id == ".." || len(id) > 1024 || !idPattern.MatchString(id) {
		return ErrID
	}
	return nil
}

// Load reads a container.
func (r *Runtime) Load(id string) (*Container, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	c := &Container{rt: r, dir: filepath.Join(r.Root, id)}
	data, err := os.ReadFile(filepath.Join(c.dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &c.record); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(c.dir, recordFile), err)
	}
	if c.ID != id || checkGroup(c.CgroupPath) != nil {
		return nil, fmt.Errorf("%s: id %q and cgroup_path %q cannot be", filepath.Join(c.dir, recordFile), c.ID, c.CgroupPath)
	}
	return c, nil
}

func (c *Container) save() error {
	data, err := json.Marshal(&c.record)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(c.dir, recordFile), data, 0o600)
}

// List reads all containers, in the order of their IDs. What cannot be read is told and left out.
func (r *Runtime) List() ([]*Container, error) {
	entries, err := os.ReadDir(r.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []*Container
	for _, e := range entries {
		if !e.IsDir() || CheckID(e.Name()) != nil {
			continue
		}
		c, err := r.Load(e.Name())
		if err != nil {
			r.Warn(fmt.Errorf("load container %s: %w", e.Name(), err))
			continue
		}
		out = append(out, c)
	}
	return out, nil
}

// Spec is the configuration as it was at creation.
func (c *Container) Spec() (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(c.dir, configFile))
	if err != nil {
		return nil, err
	}
	return parseSpec(data)
}

// hooks are those of the configuration. The rest of it is not looked at: the types of all of a specification take
// encoding/json a millisecond.
func (c *Container) hooks() (*specs.Hooks, error) {
	data, err := os.ReadFile(filepath.Join(c.dir, configFile))
	if err != nil {
		return nil, err
	}
	var spec struct {
		Hooks *specs.Hooks `json:"hooks"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("%s: %w", configFile, err)
	}
	return spec.Hooks, nil
}

// linuxSpec is specs.Spec with the platforms that are not Linux left alone: most configurations have none of them, and
// their types take encoding/json as long as all others.
type linuxSpec struct {
	Version     string            `json:"ociVersion"`
	Process     *specs.Process    `json:"process"`
	Root        *specs.Root       `json:"root"`
	Hostname    string            `json:"hostname"`
	Domainname  string            `json:"domainname"`
	Mounts      []specs.Mount     `json:"mounts"`
	Hooks       *specs.Hooks      `json:"hooks"`
	Annotations map[string]string `json:"annotations"`
	Linux       *specs.Linux      `json:"linux"`
	Solaris     json.RawMessage   `json:"solaris"`
	Windows     json.RawMessage   `json:"windows"`
	VM          json.RawMessage   `json:"vm"`
	ZOS         json.RawMessage   `json:"zos"`
	FreeBSD     json.RawMessage   `json:"freebsd"`
}

func parseSpec(data []byte) (*specs.Spec, error) {
	var l linuxSpec
	err := json.Unmarshal(data, &l)
	spec := &specs.Spec{
		Version: l.Version, Process: l.Process, Root: l.Root, Hostname: l.Hostname, Domainname: l.Domainname,
		Mounts: l.Mounts, Hooks: l.Hooks, Annotations: l.Annotations, Linux: l.Linux,
	}
	if err == nil && len(l.Solaris)+len(l.Windows)+len(l.VM)+len(l.ZOS)+len(l.FreeBSD) > 0 {
		spec = new(specs.Spec)
		err = json.Unmarshal(data, spec)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", configFile, err)
	}
	return spec, nil
}

// Status derives the state.
func (c *Container) Status() (specs.ContainerState, error) {
	switch {
	case c.PID == 0 && alive(c.Creator, c.CreatorStart):
		return specs.StateCreating, nil
	case c.PID == 0 || !alive(c.PID, c.PIDStart):
		return specs.StateStopped, nil
	}
	if frozen, err := c.frozen(); err != nil || frozen {
		return StatusPaused, err
	}
	_, err := os.Lstat(filepath.Join(c.dir, startFile))
	switch {
	case err == nil:
		return specs.StateCreated, nil
	case errors.Is(err, fs.ErrNotExist):
		return specs.StateRunning, nil
	}
	return "", err
}

func (c *Container) frozen() (bool, error) {
	g, err := c.group()
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return g.Frozen()
}

func alive(pid int, start uint64) bool {
	state, began, err := sys.ProcessState(pid)
	return err == nil && began == start && state != 'Z' && state != 'X'
}

// State is what `state` and `list` show of a container.
type State struct {
	Version     string               `json:"ociVersion"`
	ID          string               `json:"id"`
	PID         int                  `json:"pid"`
	Status      specs.ContainerState `json:"status"`
	Bundle      string               `json:"bundle"`
	Rootfs      string               `json:"rootfs"`
	Created     time.Time            `json:"created"`
	Annotations map[string]string    `json:"annotations,omitempty"`
	Owner       string               `json:"owner"`
}

// State puts the record and the status together.
func (c *Container) State() (*State, error) {
	status, err := c.Status()
	if err != nil {
		return nil, err
	}
	s := &State{
		Version: specs.Version, ID: c.ID, PID: c.PID, Status: status, Bundle: c.Bundle, Rootfs: c.Rootfs,
		Created: c.Created, Annotations: c.Annotations,
	}
	if status == specs.StateStopped {
		s.PID = 0
	}
	return s, nil
}

// Owner is the user who made the container.
func (c *Container) Owner() (uid uint32, err error) {
	var st syscall.Stat_t
	if err := syscall.Stat(c.dir, &st); err != nil {
		return 0, err
	}
	return st.Uid, nil
}

// hookState is the state for hooks.
func (c *Container) hookState(status specs.ContainerState) *specs.State {
	s := &specs.State{Version: specs.Version, ID: c.ID, Status: status, Bundle: c.Bundle, Annotations: c.Annotations}
	if status != specs.StateStopped {
		s.Pid = c.PID
	}
	return s
}

// groups looks at the machine's control groups once.
func (r *Runtime) groups() (*cgroup.Host, error) {
	if r.cgroups == nil {
		h, err := cgroup.Detect()
		if err != nil {
			return nil, err
		}
		if r.Systemd {
			if err := h.ConnectSystemd(context.Background()); err != nil {
				return nil, err
			}
		}
		r.cgroups = h
	}
	return r.cgroups, nil
}

func (c *Container) group() (*cgroup.Group, error) {
	h, err := c.rt.groups()
	if err != nil {
		return nil, err
	}
	return h.Open(c.CgroupPath)
}

// cgroupPath names a container's group: a path of the specification that is not absolute starts at the root of the
// hierarchies, and without one the group has the container's name; or slice:prefix:name for systemd.
func (r *Runtime) cgroupPath(spec *specs.Spec, id string) (string, error) {
	var p string
	if spec.Linux != nil {
		p = spec.Linux.CgroupsPath
	}
	switch {
	case r.Systemd && p == "":
		p = ":cri-shim:" + id
	case r.Systemd && !cgroup.IsUnit(p):
		return "", fmt.Errorf("linux.cgroupsPath: %q: systemd wants slice:prefix:name", p)
	case r.Systemd:
	case p == "":
		p = "/" + id
	default:
		p = "/" + strings.TrimLeft(p, "/")
	}
	if err := checkGroup(p); err != nil {
		return "", fmt.Errorf("linux.cgroupsPath: %w", err)
	}
	return p, nil
}

func checkGroup(name string) error {
	if !cgroup.IsUnit(name) {
		return cgroup.ValidatePath(name)
	}
	u, err := cgroup.ParseUnit(name)
	if err == nil && u.Name == "" {
		err = fmt.Errorf("%q names a slice, which is for more than a container", name)
	}
	return err
}
