package image

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
)

// Explanation says from where a reference would be pulled now, with what, and what the hosts answer.
type Explanation struct {
	Reference string   `json:"reference"`         // in full
	Config    string   `json:"config,omitempty"`  // the directory with the registry's configuration
	Present   string   `json:"present,omitempty"` // ID of the image that the store has under the name
	Digest    string   `json:"digest,omitempty"`  // what a pull would get: the answer of the first host that has one
	From      string   `json:"from,omitempty"`    // that host
	Hosts     []Answer `json:"hosts"`             // in the order in which they are asked
	Problems  []string `json:"problems,omitempty"`
}

// Answer is what there is to know of one host.
type Answer struct {
	URL          string        `json:"url"`
	Capabilities []string      `json:"capabilities"`
	Proxy        string        `json:"proxy,omitempty"`
	Credential   string        `json:"credential"` // who is asking, by whose word; never the secret
	Digest       string        `json:"digest,omitempty"`
	Error        string        `json:"error,omitempty"`
	Took         time.Duration `json:"took"`
}

// Why asks every host that ref could be pulled from what it names, and pulls nothing.
func (s *Store) Why(ctx context.Context, ref string, auth *Auth) (*Explanation, error) {
	named, err := parseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("why: %w", err)
	}
	ctx = containerdLog(ctx, s.log)
	r := &remote{ref: named, conns: &connections{}, blamed: map[int]int{}}
	defer r.close()
	hosts, problems, err := s.cfg.hosts(ctx, named, auth, r.conns)
	if err != nil {
		return nil, fmt.Errorf("why %s: %w", named, err)
	}
	e := &Explanation{Reference: named.String()}
	if dir, err := s.cfg.hostDir(reference.Domain(named)); err == nil {
		e.Config = filepath.Clean(dir)
	}
	if img, err := s.Get(named.String()); err == nil {
		e.Present = img.ID
	}
	for _, p := range problems {
		e.Problems = append(e.Problems, p.Error())
	}
	for _, h := range hosts {
		a := h.explain()
		start := time.Now()
		desc, err := r.topOf(ctx, h, 2*s.cfg.ProgressTimeout)
		a.Took = time.Since(start)
		if err != nil {
			a.Error = registryError(h.Host, err).Error()
		} else {
			a.Digest = desc.Digest.String()
			if e.Digest == "" {
				e.Digest, e.From = a.Digest, a.URL
			}
		}
		e.Hosts = append(e.Hosts, a)
	}
	return e, context.Cause(ctx)
}

func (h *registryHost) explain() Answer {
	a := Answer{URL: h.address(), Credential: h.credential.String()}
	for _, c := range []struct {
		has  docker.HostCapabilities
		name string
	}{{docker.HostCapabilityPull, "pull"}, {docker.HostCapabilityResolve, "resolve"}} {
		if h.can(c.has) {
			a.Capabilities = append(a.Capabilities, c.name)
		}
	}
	if req, err := http.NewRequest(http.MethodGet, a.URL, nil); err == nil {
		if u, err := http.ProxyFromEnvironment(req); err == nil && u != nil {
			a.Proxy = u.Redacted()
		}
	}
	return a
}
