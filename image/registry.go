package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// remote is the source of one pull: one set of connections and tokens.
type remote struct {
	ref   reference.Named
	hosts []*registryHost
	conns *connections

	mu     sync.Mutex
	blamed map[int]int // how often a host did not deliver
}

func (s *Store) openRegistry(ctx context.Context, ref reference.Named, auth *Auth) (*remote, error) {
	r := &remote{ref: ref, conns: &connections{}, blamed: map[int]int{}}
	hosts, problems, err := s.cfg.hosts(ctx, ref, auth, r.conns)
	if err != nil {
		return nil, err
	}
	for _, p := range problems {
		s.log.Warn("registry credentials", "image", ref.String(), "err", p)
	}
	r.hosts = hosts
	return r, nil
}

func (r *remote) registry() string { return reference.Domain(r.ref) }

func (r *remote) host(place int) string { return r.hosts[place].Host }

func (r *remote) close() { r.conns.closeIdle() }

// top asks the hosts, one after the other, for what the reference names now.
func (r *remote) top(ctx context.Context, stall time.Duration) (ocispec.Descriptor, error) {
	var t tried
	for i, h := range r.hosts {
		desc, err := r.topOf(ctx, h, 2*stall)
		if err == nil {
			return desc, nil
		}
		if ctx.Err() != nil {
			return desc, registryError(h.Host, context.Cause(ctx))
		}
		if !errors.Is(err, errNotForThis) {
			r.blame(i)
		}
		t.add(registryError(h.Host, err))
	}
	return ocispec.Descriptor{}, t.err(r.registry())
}

// errNotForThis: the configuration keeps a host from being asked.
var errNotForThis = errors.New("not configured for this")

func (r *remote) topOf(ctx context.Context, h *registryHost, limit time.Duration) (ocispec.Descriptor, error) {
	need, what := docker.HostCapabilityResolve, "resolve"
	if _, ok := r.ref.(reference.Digested); ok {
		need, what = docker.HostCapabilityPull, "pull"
	}
	if !h.can(need) {
		return ocispec.Descriptor{}, fmt.Errorf("%w: its capabilities have no %q", errNotForThis, what)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w for %v", ErrStalled, limit))
	defer cancel()
	_, desc, err := h.resolver.Resolve(ctx, r.ref.String())
	if err != nil {
		if c := context.Cause(ctx); c != nil {
			err = c
		}
		return desc, err
	}
	return desc, checkDescriptor(desc)
}

// places implements source: those hosts come last that have failed before.
func (r *remote) places() []int {
	var all []int
	for i, h := range r.hosts {
		if h.can(docker.HostCapabilityPull) {
			all = append(all, i)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(all, func(a, b int) int { return r.blamed[a] - r.blamed[b] })
	return all
}

func (r *remote) blame(place int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blamed[place]++
}

func (r *remote) open(ctx context.Context, desc ocispec.Descriptor, offset int64, place int) (io.ReadCloser, error) {
	// URLs in a descriptor would let a manifest make this machine ask any host for anything.
	desc.URLs = nil
	rc, err := r.openAt(ctx, desc, offset, place)
	var status remoteserrors.ErrUnexpectedStatus
	if offset == 0 || !errors.As(err, &status) || status.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		return rc, err
	}
	// It does not want to begin there. What comes before is thrown away.
	if rc, err = r.openAt(ctx, desc, 0, place); err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, rc, offset); err != nil {
		rc.Close()
		return nil, fmt.Errorf("without a range: %w", noEOF(err))
	}
	return rc, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (r *remote) openAt(ctx context.Context, desc ocispec.Descriptor, offset int64, place int) (io.ReadCloser, error) {
	rc, err := r.hosts[place].fetcher.Fetch(ctx, desc)
	if err != nil || offset == 0 {
		return rc, err
	}
	if _, err := rc.(io.Seeker).Seek(offset, io.SeekStart); err != nil {
		rc.Close()
		return nil, err
	}
	// The seek alone asks nobody: the read does, and what it is told should be known here.
	first := make([]byte, 1)
	n, err := io.ReadFull(rc, first)
	if err != nil {
		rc.Close()
		return nil, noEOF(err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(strings.NewReader(string(first[:n])), rc), rc}, nil
}

func (r *remote) wrap(place int, err error) error {
	if place < 0 || place >= len(r.hosts) {
		return registryError(r.registry(), err)
	}
	return registryError(r.hosts[place].Host, err)
}

// tried collects what the hosts said, in the order in which they were asked.
type tried []error

func (t *tried) add(err error) { *t = append(*t, err) }

// err is of the kind of the last one: that is the registry itself, which knows best.
func (t tried) err(registry string) error {
	switch len(t) {
	case 0:
		return fmt.Errorf("registry %s: no host is configured to be asked: %w", registry, ErrUnavailable)
	case 1:
		return t[0]
	}
	said := make([]string, 0, len(t))
	for i, err := range t {
		said = append(said, fmt.Sprintf("[%d] %v", i+1, err))
	}
	return &kindError{
		text:  fmt.Sprintf("%d hosts were tried for %s: %s", len(t), registry, strings.Join(said, "; ")),
		kinds: []error{t[len(t)-1]},
	}
}
