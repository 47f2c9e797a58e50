package image

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// PullProgress is how far a pull is.
type PullProgress struct {
	Reference string        `json:"reference"`
	Stage     string        `json:"stage"` // resolve, layers or commit
	Elapsed   time.Duration `json:"elapsed"`
	// Host is the one that sent the last bytes.
	Host   string `json:"host,omitempty"`
	Layers int    `json:"layers"` // of the image; 0 before that is known
	Done   int    `json:"done"`   // of them, here
	// Bytes are those of the layers, compressed, that were not here when the pull began; BytesDone, of them, those that
	// have come, or were here from an interrupted pull.
	Bytes     int64 `json:"bytes"`
	BytesDone int64 `json:"bytesDone"`
	// Rate is bytes per second from the network, since layers are fetched.
	Rate int64 `json:"rate"`
}

// The stages of a pull.
const (
	stageResolve = "resolve"
	stageLayers  = "layers"
	stageCommit  = "commit"
)

// progress is a pull as it goes. A nil one, of an import, counts nothing.
type progress struct {
	ref   string
	start time.Time

	mu     sync.Mutex
	stages []stageTime
	host   string
	layers int
	done   int
	bytes  int64

	came     atomic.Int64  // bytes of layers, from the network or a partial download
	total    *atomic.Int64 // of all pulls: bytes from the network
	network  atomic.Int64  // of them, those from the network
	waited   atomic.Int64  // ns that layers waited for the network
	building atomic.Int64  // ns that layers were in the making, waiting included
}

type stageTime struct {
	name string
	at   time.Time
}

// PullResult is how a pull ended and where its time went. Fetching and unpacking are one stage, split as for the log.
type PullResult struct {
	Err                            error
	Took                           time.Duration
	Resolve, Fetch, Unpack, Commit time.Duration
	Bytes                          int64 // from the network
}

// result ends a pull.
func (p *progress) result(err error) PullResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := PullResult{Err: err, Took: time.Since(p.start), Resolve: p.took(stageResolve), Commit: p.took(stageCommit), Bytes: p.network.Load()}
	layers := p.took(stageLayers)
	if b := p.building.Load(); b > 0 {
		r.Fetch = time.Duration(float64(layers) * min(1, float64(p.waited.Load())/float64(b)))
	}
	r.Unpack = layers - r.Fetch
	return r
}

func newProgress(ref string, total *atomic.Int64) *progress {
	now := time.Now()
	return &progress{ref: ref, start: now, total: total, stages: []stageTime{{stageResolve, now}}}
}

func (p *progress) enter(stage string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stages = append(p.stages, stageTime{stage, time.Now()})
}

func (p *progress) expect(layers, here int, bytes int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layers, p.done, p.bytes = p.layers+layers, p.done+here, p.bytes+bytes
}

func (p *progress) layerDone() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
}

// read counts what a reader of a layer has got, and how long that took.
func (p *progress) read(n int, since time.Time, host string) {
	if p == nil {
		return
	}
	p.waited.Add(int64(time.Since(since)))
	if n == 0 {
		return
	}
	p.came.Add(int64(n))
	p.network.Add(int64(n))
	p.total.Add(int64(n))
	p.mu.Lock()
	p.host = host
	p.mu.Unlock()
}

// had counts what there was already.
func (p *progress) had(n int64) {
	if p != nil {
		p.came.Add(n)
	}
}

// built adds the time of making one layer.
func (p *progress) built(since time.Time) {
	if p != nil {
		p.building.Add(int64(time.Since(since)))
	}
}

func (p *progress) now() PullProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.stages[len(p.stages)-1]
	out := PullProgress{
		Reference: p.ref, Stage: last.name, Elapsed: time.Since(p.start), Host: p.host, Layers: p.layers, Done: p.done, Bytes: p.bytes,
		// A layer that is fetched again after what came was wrong counts once.
		BytesDone: min(p.came.Load(), p.bytes),
	}
	if since := p.took(stageLayers).Seconds(); since > 0 {
		out.Rate = int64(float64(p.network.Load()) / since)
	}
	return out
}

// took is the time spent in a stage so far. The caller holds mu.
func (p *progress) took(stage string) time.Duration {
	for i, s := range p.stages {
		if s.name != stage {
			continue
		}
		if i+1 < len(p.stages) {
			return p.stages[i+1].at.Sub(s.at)
		}
		return time.Since(s.at)
	}
	return 0
}

// attrs are the figures for the log, the time split. Layers are fetched and unpacked at once and several at a time: the
// time of that stage is split as its layers' own time was, between waiting for the network and the rest.
func (p *progress) attrs() []any {
	r := p.result(nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	round := func(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
	out := []any{
		slog.Duration("resolve", round(r.Resolve)), slog.Duration("fetch", round(r.Fetch)),
		slog.Duration("unpack", round(r.Unpack)), slog.Duration("commit", round(r.Commit)),
		slog.Int64("fetched", r.Bytes),
	}
	if p.host != "" {
		out = append(out, slog.String("host", p.host))
	}
	return out
}

// Fetched is the number of bytes of layers that pulls got from registries since Open, those that go on included.
func (s *Store) Fetched() int64 { return s.fetched.Load() }

// Pulls are those that go on, the oldest first: all, or those of one reference.
func (s *Store) Pulls(_ context.Context, ref string) ([]PullProgress, error) {
	want := ""
	if ref != "" {
		n, err := parseReference(ref)
		if err != nil {
			return nil, err
		}
		want = n.String()
	}
	s.mu.RLock()
	var going []*progress
	for p := range s.progress {
		if want == "" || p.ref == want {
			going = append(going, p)
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(going, func(a, b *progress) int {
		if c := a.start.Compare(b.start); c != 0 {
			return c
		}
		return strings.Compare(a.ref, b.ref)
	})
	var all []PullProgress
	for _, p := range going {
		all = append(all, p.now())
	}
	return all, nil
}

// watch lists a pull until the returned function is called.
func (s *Store) watch(p *progress) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progress[p] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.progress, p)
	}
}
