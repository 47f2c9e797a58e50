package sandbox

import (
	"context"
	"errors"
	"time"
)

const (
	// layerAge is how old the size of a layer may be that a client is told.
	layerAge = 10 * time.Second
	// layerShare bounds the disk time spent on measuring: a layer whose walk took a second is left alone for this many.
	layerShare = 20
	// layerPatience is how long a call waits for sizes that nobody knows yet.
	layerPatience = 100 * time.Millisecond
)

// layerUse is what is known of one writable layer.
type layerUse struct {
	LayerStats
	took   time.Duration // of the last walk
	wanted bool
	first  chan struct{} // closed once it is known or cannot be
}

// layerMeter wakes the one goroutine that walks layers: only those that somebody asks for, one after another, never
// while a client waits for it.
type layerMeter struct{ work chan struct{} }

// layerStats is what is known of a container's layer. What is old is measured anew in the background.
func (m *Manager) layerStats(c *ctr) LayerStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &c.layer
	if age := time.Since(l.At); !l.wanted && age > layerAge && age > layerShare*l.took {
		l.wanted = true
		if l.first == nil {
			l.first = make(chan struct{})
		}
		select {
		case m.layers.work <- struct{}{}:
		default:
		}
	}
	s := l.LayerStats
	s.Dir = m.layerDir("")
	return s
}

// awaitLayers has layers measured that are not known well enough, and gives those that were never measured a moment:
// most are small.
func (m *Manager) awaitLayers(ctx context.Context, all ...*ctr) {
	var unknown []chan struct{}
	for _, c := range all {
		if !m.layerStats(c).Known {
			m.mu.Lock()
			unknown = append(unknown, c.layer.first)
			m.mu.Unlock()
		}
	}
	if len(unknown) == 0 {
		return
	}
	patience := time.After(layerPatience)
	for _, first := range unknown {
		select {
		case <-first:
		case <-patience:
			return
		case <-ctx.Done():
			return
		}
	}
}

// LayersUsage adds up the writable layers of all containers and names their folder. It takes what is known; what is old
// is measured anew in the background.
func (m *Manager) LayersUsage(ctx context.Context) LayerStats {
	var all []*ctr
	m.mu.Lock()
	for _, c := range m.ctrs {
		all = append(all, c)
	}
	m.mu.Unlock()
	m.awaitLayers(ctx, all...)
	sum := LayerStats{Dir: m.layerDir(""), At: time.Now(), Known: true}
	for _, c := range all {
		l := m.layerStats(c)
		sum.Bytes += l.Bytes
		sum.Inodes += l.Inodes
		sum.Known = sum.Known && l.Known
	}
	return sum
}

// awaitLayersOf does so for the containers that run.
func (m *Manager) awaitLayersOf(ctx context.Context, all []*Container) {
	var running []*ctr
	m.mu.Lock()
	for _, facts := range all {
		if c := m.ctrs[facts.ID]; c != nil && facts.State() == ContainerRunning {
			running = append(running, c)
		}
	}
	m.mu.Unlock()
	m.awaitLayers(ctx, running...)
}

// measureLayers walks the layers that are asked for.
func (m *Manager) measureLayers(ctx context.Context) {
	for {
		select {
		case <-m.layers.work:
		case <-ctx.Done():
			return
		}
		for _, c := range m.wantedLayers() {
			m.measureLayer(ctx, c)
		}
	}
}

func (m *Manager) wantedLayers() []*ctr {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*ctr
	for _, c := range m.ctrs {
		if c.layer.wanted {
			all = append(all, c)
		}
	}
	return all
}

func (m *Manager) measureLayer(ctx context.Context, c *ctr) {
	begun := time.Now()
	bytes, inodes, err := m.cfg.Meter.Layer(ctx, m.layerDir(c.ID))
	if err != nil && !errors.Is(err, context.Canceled) {
		m.cfg.Log.Warn("size of a writable layer", "ctr", c.ID, "err", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &c.layer
	l.wanted, l.took, l.At = false, time.Since(begun), time.Now()
	if err == nil {
		l.Bytes, l.Inodes, l.Known = bytes, inodes, true
	}
	select {
	case <-l.first:
	default:
		close(l.first)
	}
}
