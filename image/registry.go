package image

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Auth is what a client sends with a pull (CRI AuthConfig).
type Auth struct {
	Username      string
	Password      string
	Auth          string // base64 of "username:password"
	ServerAddress string // if set, the registry that the rest is for
	IdentityToken string // an OAuth2 refresh token
	RegistryToken string // a bearer token, sent as it is
}

// credentials returns user and secret for a host; a secret without user is a refresh token (as containerd has it).
func (a *Auth) credentials(host string) (user, secret string, err error) {
	if a == nil || !a.isFor(host) {
		return "", "", nil
	}
	switch {
	case a.Username != "":
		return a.Username, a.Password, nil
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Auth != "":
		b, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return "", "", fmt.Errorf("auth: not base64: %w", ErrUnauthorized)
		}
		user, secret, ok := strings.Cut(string(b), ":")
		if !ok {
			return "", "", fmt.Errorf("auth: no colon between user and password: %w", ErrUnauthorized)
		}
		return user, strings.Trim(secret, "\x00"), nil
	}
	return "", "", nil
}

func (a *Auth) isFor(host string) bool {
	if a.ServerAddress == "" {
		return true
	}
	addr := a.ServerAddress
	if !strings.Contains(addr, "://") {
		addr = "https://" + addr
	}
	u, err := url.Parse(addr)
	return err == nil && hubAlias(u.Host) == hubAlias(host)
}

// hubAlias gives the names of Docker's registry one: clients file its credentials under index.docker.io.
func hubAlias(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// remote is the source of one pull: one set of connections and tokens.
type remote struct {
	ref     reference.Named
	host    string
	resolve remotes.Resolver
	fetch   remotes.Fetcher
	clients *clientSet
}

func (s *Store) openRegistry(ctx context.Context, ref reference.Named, auth *Auth) (*remote, error) {
	r := &remote{ref: ref, host: reference.Domain(ref), clients: &clientSet{}}
	hosts := dockerconfig.ConfigureHosts(ctx, dockerconfig.HostOptions{
		HostDir: s.hostDir,
		Credentials: func(host string) (string, string, error) {
			return auth.credentials(host)
		},
		UpdateClient: r.clients.add,
	})
	// Every call of the resolver asks for the hosts again. The same ones keep their connections and tokens.
	once := sync.OnceValues(func() ([]docker.RegistryHost, error) {
		h, err := hosts(r.host)
		if err != nil {
			return nil, fmt.Errorf("registry configuration of %s: %w", r.host, err)
		}
		return withToken(h, auth), nil
	})
	r.resolve = docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return once() },
		Headers: http.Header{"User-Agent": {"cri-shim"}},
	})
	var err error
	if r.fetch, err = r.resolve.Fetcher(ctx, ref.String()); err != nil {
		return nil, registryError(r.host, err)
	}
	return r, nil
}

// withToken sends a registry token as it is, instead of asking for one.
func withToken(hosts []docker.RegistryHost, auth *Auth) []docker.RegistryHost {
	if auth == nil || auth.RegistryToken == "" {
		return hosts
	}
	for i := range hosts {
		if !auth.isFor(hosts[i].Host) {
			continue
		}
		h := hosts[i].Header.Clone()
		if h == nil {
			h = http.Header{}
		}
		h.Set("Authorization", "Bearer "+auth.RegistryToken)
		hosts[i].Header, hosts[i].Authorizer = h, nil
	}
	return hosts
}

func (s *Store) hostDir(host string) (string, error) {
	for _, root := range s.cfg.RegistryConfigDir {
		dir, err := dockerconfig.HostDirFromRoot(root)(host)
		if err == nil || !errdefs.IsNotFound(err) {
			return dir, err
		}
	}
	return "", errdefs.ErrNotFound
}

// top asks the registry for what the reference names now.
func (r *remote) top(ctx context.Context, stall time.Duration) (ocispec.Descriptor, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*stall, fmt.Errorf("%w for %v", ErrStalled, 2*stall))
	defer cancel()
	_, desc, err := r.resolve.Resolve(ctx, r.ref.String())
	if err != nil {
		if c := context.Cause(ctx); c != nil {
			err = c
		}
		return desc, r.wrap(err)
	}
	return desc, checkDescriptor(desc)
}

func (r *remote) open(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	// URLs in a descriptor would let a manifest make this machine ask any host for anything.
	desc.URLs = nil
	rc, err := r.fetch.Fetch(ctx, desc)
	if err != nil || offset == 0 {
		return rc, err
	}
	if _, err := rc.(io.Seeker).Seek(offset, io.SeekStart); err != nil {
		rc.Close()
		return nil, err
	}
	return rc, nil
}

func (r *remote) wrap(err error) error { return registryError(r.host, err) }

func (r *remote) close() { r.clients.closeIdle() }

// clientSet closes the connections of a pull when it is over, and slows down where a registry asks for it.
type clientSet struct {
	mu  sync.Mutex
	all []*patient
}

func (c *clientSet) add(client *http.Client) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := client.Transport.(*patient); ok {
		return nil
	}
	p := &patient{client.Transport}
	client.Transport = p
	c.all = append(c.all, p)
	return nil
}

func (c *clientSet) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.all {
		p.closeIdle()
	}
}

// patient waits when a registry says 429: its Retry-After, or longer each time. The resolver would repeat at once.
type patient struct{ http.RoundTripper }

const (
	maxRetryAfter   = 20 * time.Second
	maxRateRetries  = 4
	firstRateLimit  = 500 * time.Millisecond
	maxErrorToDrain = 64 << 10
)

func (p *patient) RoundTrip(req *http.Request) (*http.Response, error) {
	for try := 0; ; try++ {
		resp, err := p.RoundTripper.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusTooManyRequests || try == maxRateRetries || req.Body != nil {
			return resp, err
		}
		wait := firstRateLimit << try
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
			wait = time.Duration(s) * time.Second
		}
		if wait > maxRetryAfter {
			return resp, nil
		}
		_, _ = io.CopyN(io.Discard, resp.Body, maxErrorToDrain)
		resp.Body.Close()
		select {
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		case <-time.After(wait):
		}
	}
}

func (p *patient) closeIdle() {
	if c, ok := p.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
