// Package nri lets plugins of the Node Resource Interface hear of pods and containers, and change what those are to be.
// The library of github.com/containerd/nri does the talking; this package knows what a pod is to it. Nothing of it is
// made where NRI is off.
package nri

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// updateTime bounds a change of another container's limits that a plugin asks for: that container may be busy.
const updateTime = 5 * time.Second

// Config of Plugins.
type Config struct {
	Socket, PluginDir, ConfigDir string
	// RegistrationTimeout and RequestTimeout are what a plugin has to register and to answer. One that does not answer
	// in time is disconnected, and things go on without it.
	RegistrationTimeout, RequestTimeout time.Duration
	Version                             string // of the runtime
	// Spec is what a container runs by, or would.
	Spec func(p *sandbox.Pod, c *sandbox.Container) (*specs.Spec, error)
	Log  *slog.Logger
}

// Node is what plugins may look at and change; sandbox.Manager has it.
type Node interface {
	Pods() []*sandbox.Pod
	Containers() []*sandbox.Container
	Pod(id string) (*sandbox.Pod, error)
	Container(id string) (*sandbox.Container, error)
	UpdateForPlugin(ctx context.Context, id string, change *workload.Resources) error
	StopContainer(ctx context.Context, id string, timeout time.Duration) error
}

// Plugins is sandbox.Plugins.
type Plugins struct {
	cfg     Config
	nri     *adaptation.Adaptation
	node    Node
	started atomic.Bool
}

// New makes Plugins that know of no plugin before Start.
func New(cfg Config) (*Plugins, error) {
	nrilog.Set(logger{cfg.Log})
	adaptation.SetPluginRegistrationTimeout(cfg.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(cfg.RequestTimeout)
	p := &Plugins{cfg: cfg}
	var err error
	p.nri, err = adaptation.New("cri-shim", cfg.Version, p.synchronize, p.updates,
		adaptation.WithSocketPath(cfg.Socket), adaptation.WithPluginPath(cfg.PluginDir), adaptation.WithPluginConfigPath(cfg.ConfigDir))
	if err != nil {
		return nil, fmt.Errorf("nri: %w", err)
	}
	return p, nil
}

// Start runs the plugins of the folder, and lets others connect.
func (p *Plugins) Start(node Node) error {
	p.node = node
	p.started.Store(true)
	if err := p.nri.Start(); err != nil {
		p.started.Store(false)
		return fmt.Errorf("nri: %w", err)
	}
	return nil
}

// Close lets go of all plugins.
func (p *Plugins) Close() {
	if p.started.Swap(false) {
		p.nri.Stop()
	}
}

// Hold implements sandbox.Plugins.
func (p *Plugins) Hold() func() { return p.nri.BlockPluginSync().Unblock }

// synchronize tells a plugin that has connected of all there is.
func (p *Plugins) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	var pods []*api.PodSandbox
	for _, pod := range p.node.Pods() {
		pods = append(pods, podOf(pod))
	}
	var containers []*api.Container
	for _, c := range p.node.Containers() {
		if pod, err := p.node.Pod(c.PodID); err == nil {
			containers = append(containers, p.containerOf(pod, c))
		}
	}
	updates, err := tell(ctx, pods, containers)
	if err != nil {
		return err
	}
	_, err = p.updates(ctx, updates)
	return err
}

// updates changes limits as plugins want it, and returns what could not be done.
func (p *Plugins) updates(ctx context.Context, all []*api.ContainerUpdate) (failed []*api.ContainerUpdate, err error) {
	for _, u := range all {
		one, cancel := context.WithTimeout(ctx, updateTime)
		err := p.node.UpdateForPlugin(one, u.GetContainerId(), resourcesFrom(u.GetLinux().GetResources()))
		cancel()
		if err != nil {
			p.cfg.Log.Warn("nri: a plugin's update", "ctr", u.GetContainerId(), "err", err)
			if !u.GetIgnoreFailure() {
				failed = append(failed, u)
			}
		}
	}
	return failed, nil
}

// evict stops containers as plugins want it.
func (p *Plugins) evict(all []*api.ContainerEviction) {
	for _, e := range all {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			p.cfg.Log.Info("nri: a plugin evicts", "ctr", e.GetContainerId(), "reason", e.GetReason())
			if err := p.node.StopContainer(ctx, e.GetContainerId(), 0); err != nil {
				p.cfg.Log.Warn("nri: a plugin's eviction", "ctr", e.GetContainerId(), "err", err)
			}
		}()
	}
}

// Tell implements sandbox.Plugins.
func (p *Plugins) Tell(ctx context.Context, e sandbox.PluginEvent, pod *sandbox.Pod, c *sandbox.Container) (err error) {
	if !p.started.Load() {
		return nil
	}
	to := podOf(pod)
	var ctr *api.Container
	if c != nil {
		ctr = p.containerOf(pod, c)
	}
	switch e {
	case sandbox.PluginRunPod:
		err = p.nri.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: to})
	case sandbox.PluginUpdatePod:
		_, err = p.nri.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{
			Pod: to, OverheadLinuxResources: resourcesOf(pod.Overhead), LinuxResources: resourcesOf(pod.Resources),
		})
	case sandbox.PluginPodUpdated:
		err = p.nri.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: to})
	case sandbox.PluginStopPod:
		err = p.nri.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: to})
	case sandbox.PluginRemovePod:
		err = p.nri.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: to})
	case sandbox.PluginCreated:
		err = p.nri.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: to, Container: ctr})
	case sandbox.PluginStart:
		err = p.nri.StartContainer(ctx, &api.StartContainerRequest{Pod: to, Container: ctr})
	case sandbox.PluginStarted:
		err = p.nri.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: to, Container: ctr})
	case sandbox.PluginUpdated:
		err = p.nri.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: to, Container: ctr})
	case sandbox.PluginStopContainer:
		var r *api.StopContainerResponse
		if r, err = p.nri.StopContainer(ctx, &api.StopContainerRequest{Pod: to, Container: ctr}); err == nil && len(r.GetUpdate()) > 0 {
			go p.updates(context.WithoutCancel(ctx), r.GetUpdate()) // an exit is not kept waiting for others
		}
	case sandbox.PluginRemove:
		err = p.nri.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: to, Container: ctr})
	default:
		err = fmt.Errorf("unknown event %q", e)
	}
	if err != nil {
		return fmt.Errorf("nri: %s: %w", e, err)
	}
	return nil
}

// Create implements sandbox.Plugins.
func (p *Plugins) Create(ctx context.Context, pod *sandbox.Pod, c *sandbox.Container) ([]byte, *workload.Resources, error) {
	if !p.started.Load() {
		return nil, nil, nil
	}
	request := &api.CreateContainerRequest{Pod: podOf(pod), Container: p.containerOf(pod, c)}
	env := slices.Clone(request.Container.Env)
	r, err := p.nri.CreateContainer(ctx, request)
	if err != nil {
		return nil, nil, fmt.Errorf("nri: CreateContainer: %w", err)
	}
	if gone := removed(env, request.Container.Env); len(gone) > 0 {
		if r.Adjust == nil {
			r.Adjust = &api.ContainerAdjustment{}
		}
		for _, name := range gone {
			r.Adjust.RemoveEnv(name)
		}
	}
	p.evict(r.GetEvict())
	if _, err := p.updates(ctx, r.GetUpdate()); err != nil {
		return nil, nil, err
	}
	adjust := r.GetAdjust()
	if adjust == nil || proto.Size(adjust) == 0 {
		return nil, nil, nil
	}
	if err := refuse(adjust.GetLinux()); err != nil {
		return nil, nil, fmt.Errorf("%w: nri: %w", sandbox.ErrInvalid, err)
	}
	limits := takeLimits(adjust.GetLinux().GetResources())
	data, err := proto.Marshal(adjust)
	if err != nil {
		return nil, nil, fmt.Errorf("nri: CreateContainer: %w", err)
	}
	return data, limits, nil
}

// removed are the names of variables that plugins removed: the library (0.12.5) takes them out of the request for the plugins
// that come later, and does not have them in the adjustment.
func removed(before, after []string) (names []string) {
	for _, v := range before {
		name, _, _ := strings.Cut(v, "=")
		if !slices.ContainsFunc(after, func(v string) bool { return strings.HasPrefix(v, name+"=") }) {
			names = append(names, name)
		}
	}
	return names
}

// refuse names what a plugin may ask for and nobody would do.
func refuse(l *api.LinuxContainerAdjustment) error {
	if path := l.GetCgroupsPath(); path != "" {
		return fmt.Errorf("linux.cgroups_path: a plugin asks for %s; the kubelet's cgroup parent says where containers are", path)
	}
	for name, class := range map[string]*api.OptionalString{
		"blockio_class": l.GetResources().GetBlockioClass(), "rdt_class": l.GetResources().GetRdtClass(),
	} {
		if class.GetValue() != "" {
			return fmt.Errorf("linux.resources.%s: a plugin asks for %s; classes are chosen by a pod's annotations", name, class.GetValue())
		}
	}
	return nil
}

// Update implements sandbox.Plugins.
func (p *Plugins) Update(ctx context.Context, pod *sandbox.Pod, c *sandbox.Container, change *workload.Resources) (*workload.Resources, error) {
	if !p.started.Load() {
		return change, nil
	}
	r, err := p.nri.UpdateContainer(ctx, &api.UpdateContainerRequest{
		Pod: podOf(pod), Container: p.containerOf(pod, c), LinuxResources: resourcesOf(change),
	})
	if err != nil {
		return nil, fmt.Errorf("nri: UpdateContainer: %w", err)
	}
	p.evict(r.GetEvict())
	var others []*api.ContainerUpdate
	for _, u := range r.GetUpdate() {
		if u.GetContainerId() != c.ID {
			others = append(others, u)
			continue
		}
		if wanted := resourcesFrom(u.GetLinux().GetResources()); wanted != nil {
			wanted.OOMScoreAdj = change.OOMScoreAdj
			change = wanted
		}
	}
	_, err = p.updates(ctx, others)
	return change, err
}

// logger is NRI's log over ours.
type logger struct{ *slog.Logger }

func (l logger) Debugf(ctx context.Context, format string, a ...any) {
	l.DebugContext(ctx, "nri: "+fmt.Sprintf(format, a...))
}

func (l logger) Infof(ctx context.Context, format string, a ...any) {
	l.InfoContext(ctx, "nri: "+fmt.Sprintf(format, a...))
}

func (l logger) Warnf(ctx context.Context, format string, a ...any) {
	l.WarnContext(ctx, "nri: "+fmt.Sprintf(format, a...))
}

func (l logger) Errorf(ctx context.Context, format string, a ...any) {
	l.ErrorContext(ctx, "nri: "+fmt.Sprintf(format, a...))
}
