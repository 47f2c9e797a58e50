package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// EventKind is what happened to a pod sandbox or a container (CRI ContainerEventType).
type EventKind string

// The kinds of events.
const (
	EventCreated EventKind = "created"
	EventStarted EventKind = "started"
	EventStopped EventKind = "stopped"
	EventDeleted EventKind = "deleted"
)

// Event is one change of a pod sandbox or a container, with the state of its pod after it.
type Event struct {
	ID         string // of the container or, for the pod itself, of the pod
	Kind       EventKind
	At         time.Time
	Pod        *Pod
	Containers []*Container // the pod's, newest first
}

// eventBacklog is how many events may wait for one subscriber.
const eventBacklog = 1024

// ErrMissed: a subscriber was too slow; the text says how many events it has missed.
var ErrMissed = errors.New("events missed")

// events hands what happens to those who want to know. Nobody waits for a subscriber.
type events struct {
	mu     sync.Mutex
	all    map[*Subscription]bool
	closed bool
	sent   uint64 // to a subscriber each
	missed uint64
}

// Subscription is one client's view of the events from its beginning on.
type Subscription struct {
	from   *events
	wake   chan struct{} // has room for one
	queue  []*Event
	missed int
}

// Subscribe begins a subscription; Close ends it.
func (m *Manager) Subscribe() *Subscription {
	s := &Subscription{from: &m.events, wake: make(chan struct{}, 1)}
	m.events.mu.Lock()
	defer m.events.mu.Unlock()
	if m.events.all == nil {
		m.events.all = map[*Subscription]bool{}
	}
	m.events.all[s] = true
	return s
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.from.mu.Lock()
	defer s.from.mu.Unlock()
	delete(s.from.all, s)
	s.queue = nil
}

// Next waits for the next event. A subscriber that is so slow that events had to be dropped gets those before the
// gap, then ErrMissed: it must ask for the state anew.
func (s *Subscription) Next(ctx context.Context) (*Event, error) {
	for {
		s.from.mu.Lock()
		switch {
		case len(s.queue) > 0:
			e := s.queue[0]
			s.queue[0] = nil
			s.queue = s.queue[1:]
			s.from.mu.Unlock()
			return e, nil
		case s.missed > 0:
			n := s.missed
			s.from.mu.Unlock()
			return nil, fmt.Errorf("%w: %d after the last one that was sent: the client reads too slowly; list the pods and subscribe again", ErrMissed, n)
		case s.from.closed:
			s.from.mu.Unlock()
			return nil, fmt.Errorf("%w: the daemon is ending", ErrUnavailable)
		}
		s.from.mu.Unlock()
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Subscription) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (es *events) wanted() bool {
	es.mu.Lock()
	defer es.mu.Unlock()
	return len(es.all) > 0
}

func (es *events) publish(e *Event) {
	es.mu.Lock()
	defer es.mu.Unlock()
	for s := range es.all {
		if s.missed > 0 || len(s.queue) >= eventBacklog {
			s.missed++
			es.missed++
			continue
		}
		s.queue = append(s.queue, e)
		es.sent++
		s.poke()
	}
}

// EventCounts says how many clients there are for events, and how many were queued for one of them or missed by one.
func (m *Manager) EventCounts() (clients int, sent, missed uint64) {
	m.events.mu.Lock()
	defer m.events.mu.Unlock()
	return len(m.events.all), m.events.sent, m.events.missed
}

func (es *events) close() {
	es.mu.Lock()
	defer es.mu.Unlock()
	es.closed = true
	for s := range es.all {
		s.poke()
	}
}

// tellLocked publishes what happened to the object id of pod p. The manager's lock keeps events in the order in which
// things happen, and makes what they show true at one moment.
func (m *Manager) tellLocked(kind EventKind, id string, p *Pod) {
	if !m.events.wanted() {
		return
	}
	facts := *p
	e := &Event{ID: id, Kind: kind, At: time.Now(), Pod: &facts}
	for _, c := range m.ctrs {
		if c.PodID == p.ID && !c.CreatedAt.IsZero() {
			facts := c.Container
			e.Containers = append(e.Containers, &facts)
		}
	}
	slices.SortFunc(e.Containers, func(a, b *Container) int { return b.CreatedAt.Compare(a.CreatedAt) })
	m.events.publish(e)
}

func (m *Manager) tell(kind EventKind, id string, p *pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tellLocked(kind, id, &p.Pod)
}

// tellContainer publishes what happened to a container. One whose pod is gone has nobody who would understand it.
func (m *Manager) tellContainer(kind EventKind, c *ctr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tellContainerLocked(kind, c)
}

func (m *Manager) tellContainerLocked(kind EventKind, c *ctr) {
	if p := m.pods[c.PodID]; p != nil {
		m.tellLocked(kind, c.ID, &p.Pod)
	}
}

// tellEnd publishes once that a container has ended: after its start, should it have ended before that was recorded.
func (m *Manager) tellEnd(c *ctr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.starting {
		c.endUntold = true
		return
	}
	m.tellContainerLocked(EventStopped, c)
}

// tellStart ends what c.starting has begun.
func (m *Manager) tellStart(c *ctr, started bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c.starting = false
	if started {
		m.tellContainerLocked(EventStarted, c)
	}
	if c.endUntold {
		c.endUntold = false
		m.tellContainerLocked(EventStopped, c)
	}
}

// tellPodEnd publishes once that a pod which was ready is not any more.
func (m *Manager) tellPodEnd(p *pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.ended || p.ReadyAt.IsZero() {
		return
	}
	p.ended = true
	m.tellLocked(EventStopped, p.ID, &p.Pod)
}
