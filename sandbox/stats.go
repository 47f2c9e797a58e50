package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/usage"
)

// ContainerStats is what a container uses.
type ContainerStats struct {
	Container *Container
	At        time.Time    // of the measurement
	Usage     *usage.Stats // nil: it does not run
	NanoCores uint64       // CPU use between this measurement and an earlier one
	Layer     LayerStats
	Processes usage.Processes // where MeasurePods was asked for all: with what they have open
}

// LayerStats is what the writable layer takes, as of At. Known is false until it was measured once.
type LayerStats struct {
	Dir           string // a folder on the file system in question
	At            time.Time
	Bytes, Inodes uint64
	Known         bool
}

// PodStats is what a pod uses.
type PodStats struct {
	Pod        *Pod
	At         time.Time
	Usage      usage.Stats // of everything in the pod
	NanoCores  uint64
	Network    []usage.Interface
	OwnNetwork bool // false on the node's network, whose traffic is not the pod's
	Processes  uint64
	Containers []*ContainerStats // those that run
	Err        error             // why it could not be measured: there is nothing but Pod then
}

// MeasureContainer measures one container. Of one that does not run only the writable layer is known.
func (m *Manager) MeasureContainer(ctx context.Context, id string) (*ContainerStats, error) {
	if c, err := m.container(id); err == nil {
		m.awaitLayers(ctx, c)
	}
	return m.measureContainerNow(ctx, id)
}

func (m *Manager) measureContainerNow(ctx context.Context, id string) (*ContainerStats, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, err
	}
	p, err := m.pod(c.PodID)
	if err != nil {
		return nil, err
	}
	s, err := m.measureContainer(ctx, m.snapshot(p), c, false)
	if err != nil {
		return nil, fmt.Errorf("stats of container %s: %w", c.ID, err)
	}
	return s, nil
}

func (m *Manager) measureContainer(ctx context.Context, p *Pod, c *ctr, all bool) (*ContainerStats, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &ContainerStats{Container: m.facts(c), At: time.Now()}
	s.Layer = m.layerStats(c)
	if s.Container.State() != ContainerRunning {
		return s, nil
	}
	u, err := m.cfg.Meter.Container(ctx, p, s.Container, all)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil // it has ended just now
	}
	if err != nil {
		return nil, err
	}
	s.At, s.Usage = time.Now(), u
	m.mu.Lock()
	defer m.mu.Unlock()
	s.NanoCores = c.cpu.rate(s.At, u.CPU.UsageNanos, s.Container.StartedAt)
	return s, nil
}

// MeasurePod measures a pod with its running containers.
func (m *Manager) MeasurePod(ctx context.Context, id string) (*PodStats, error) {
	if p, err := m.pod(id); err == nil {
		m.awaitLayers(ctx, m.containersOf(p.ID)...)
	}
	index := m.indexPods()
	index.networks = m.networks([]string{id})
	return m.measurePodOf(ctx, id, index)
}

func (m *Manager) measurePodOf(ctx context.Context, id string, index *podIndex) (*PodStats, error) {
	p, err := m.pod(id)
	if err != nil {
		return nil, err
	}
	s, err := m.measurePod(ctx, p, index)
	if err != nil {
		return nil, fmt.Errorf("stats of pod sandbox %s: %w", p.ID, err)
	}
	return s, nil
}

// MeasureContainers measures those of the containers that run.
func (m *Manager) MeasureContainers(ctx context.Context, all []*Container, each func(*ContainerStats) error) error {
	m.awaitLayersOf(ctx, all)
	for _, facts := range all {
		if facts.State() != ContainerRunning {
			continue
		}
		s, err := m.measureContainerNow(ctx, facts.ID)
		if errors.Is(err, ErrNotFound) || err == nil && s.Usage == nil {
			continue
		}
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			m.cfg.Log.Warn("statistics", "ctr", facts.ID, "err", err) // the others are told all the same
			continue
		}
		if err := each(s); err != nil {
			return err
		}
	}
	return nil
}

// MeasurePods measures pods with their running containers; all says whether all of the counters that metrics are made of
// are wanted. A pod that cannot be measured does not keep the others from being told.
func (m *Manager) MeasurePods(ctx context.Context, pods []*Pod, all bool, each func(*PodStats) error) error {
	m.awaitLayersOf(ctx, m.Containers())
	index := m.indexPods()
	index.all = all
	ids := make([]string, len(pods))
	for i, p := range pods {
		ids[i] = p.ID
	}
	index.networks = m.networks(ids)
	for _, facts := range pods {
		s, err := m.measurePodOf(ctx, facts.ID, index)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			m.cfg.Log.Warn("statistics", "pod", facts.ID, "err", err)
			s = &PodStats{Pod: facts, At: time.Now(), Err: err}
		}
		if err := each(s); err != nil {
			return err
		}
	}
	return nil
}

// podIndex says which containers pods have, and how many pods name a group, as of one moment.
type podIndex struct {
	containers map[string][]*ctr
	groups     map[string]int
	networks   map[string]sys.Counters
	all        bool // counters are wanted
}

// networks reads the network counters of the ready pods that have a network of their own.
func (m *Manager) networks(ids []string) map[string]sys.Counters {
	var ready, paths []string
	for _, id := range ids {
		p, err := m.pod(id)
		if err != nil {
			continue
		}
		if facts := m.snapshot(p); facts.State() == PodReady && m.ownsNetwork(facts) {
			ready, paths = append(ready, facts.ID), append(paths, facts.Netns)
		}
	}
	out := make(map[string]sys.Counters, len(ready))
	if len(ready) == 0 {
		return out
	}
	for i, c := range sys.NetworkCounters(paths...) {
		out[ready[i]] = c
	}
	return out
}

func (m *Manager) indexPods() *podIndex {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := &podIndex{containers: make(map[string][]*ctr, len(m.pods)), groups: make(map[string]int, len(m.pods))}
	for _, c := range m.ctrs {
		x.containers[c.PodID] = append(x.containers[c.PodID], c)
	}
	for _, p := range m.pods {
		// A stopped pod holds nothing in its group: the kubelet makes a pod's next sandbox in the same one.
		if p.State() != PodNotReady && p.Config.CgroupParent != "" {
			x.groups[groupOf(&p.Pod)]++
		}
	}
	return x
}

func groupOf(p *Pod) string { return filepath.Clean("/" + p.Config.CgroupParent) }

// shares says whether the group that a client named for a pod has more in it than the pod.
func (x *podIndex) shares(p *Pod) bool {
	if p.Config.CgroupParent == "" {
		return false
	}
	others := x.groups[groupOf(p)]
	if p.State() != PodNotReady {
		others--
	}
	return groupOf(p) == "/" || others > 0
}

func (m *Manager) measurePod(ctx context.Context, p *pod, all *podIndex) (*PodStats, error) {
	s := &PodStats{Pod: m.snapshot(p), At: time.Now(), OwnNetwork: m.ownsNetwork(&p.Pod)}
	for _, c := range all.containers[p.ID] {
		cs, err := m.measureContainer(ctx, s.Pod, c, all.all)
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c.ID, err)
		}
		if cs.Usage == nil {
			continue
		}
		s.Containers = append(s.Containers, cs)
		n, err := m.cfg.Meter.Processes(ctx, s.Pod, cs.Container, all.all)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("container %s: %w", c.ID, err)
		}
		cs.Processes = n
		s.Processes += n.Count
	}
	if err := m.measurePodGroup(ctx, s, all); err != nil {
		return nil, err
	}
	network := all.networks[s.Pod.ID]
	if network.Err != nil && !errors.Is(network.Err, fs.ErrNotExist) && s.stillReady(m) {
		return nil, network.Err
	}
	s.Network = network.Interfaces
	m.mu.Lock()
	defer m.mu.Unlock()
	s.NanoCores = p.cpu.rate(s.At, s.Usage.CPU.UsageNanos, s.Pod.CreatedAt)
	return s, nil
}

// stillReady tells a namespace that cannot be read from one that was unpinned meanwhile.
func (s *PodStats) stillReady(m *Manager) bool {
	p, err := m.Pod(s.Pod.ID)
	return err == nil && p.State() == PodReady
}

// measurePodGroup reads the group that the client made for the pod, so that processes count that are in none of its
// containers. Where several pods share that group, or it is gone, the containers are added up.
func (m *Manager) measurePodGroup(ctx context.Context, s *PodStats, all *podIndex) error {
	if !all.shares(s.Pod) {
		u, err := m.cfg.Meter.Pod(ctx, s.Pod, all.all)
		if err == nil {
			s.At, s.Usage = time.Now(), *u
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	s.Usage.Memory.Limit, s.Usage.Memory.SwapLimit = usage.Unlimited, usage.Unlimited
	for _, c := range s.Containers {
		s.Usage.Add(c.Usage)
	}
	s.At = time.Now()
	return nil
}

// cpuWindow is the shortest time over which a rate is taken: clients that ask often get the last one again.
const cpuWindow = time.Second

// cpuRate turns a counter of CPU time into a rate.
type cpuRate struct {
	at    time.Time
	used  uint64
	nanos uint64 // a second
}

// rate takes a sample and returns nanoseconds of CPU time a second since the sample before, or, for the first, since
// the beginning.
func (r *cpuRate) rate(at time.Time, used uint64, begun time.Time) uint64 {
	since, before := r.at, r.used
	if since.IsZero() {
		since, before = begun, 0
	} else if at.Sub(since) < cpuWindow {
		return r.nanos
	}
	r.nanos = 0
	if took := at.Sub(since); took > 0 && used > before {
		r.nanos = uint64(float64(used-before) / took.Seconds())
	}
	r.at, r.used = at, used
	return r.nanos
}
