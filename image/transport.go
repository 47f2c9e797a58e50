package image

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// guard keeps what is meant for one host from another: redirects lose credentials, and plain HTTP is for those hosts
// only that are configured so, and for this machine.
type guard struct {
	base   http.RoundTripper
	host   string
	plain  bool
	header http.Header // from hosts.toml; may have secrets under any name
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && !g.plain && !isLoopback(req.URL.Hostname()) {
		return nil, fmt.Errorf("%s sends us on to http://%s: plain HTTP is not configured: %w", g.host, req.URL.Host, errRefused)
	}
	if leftHome(req) {
		if req.Body != nil && req.Body != http.NoBody {
			return nil, fmt.Errorf("%s sends credentials on to %s: %w", g.host, req.URL.Host, errRefused)
		}
		req = req.Clone(req.Context())
		for _, k := range []string{"Authorization", "Proxy-Authorization", "Cookie", "Cookie2"} {
			req.Header.Del(k)
		}
		for k := range g.header {
			req.Header.Del(k)
			delete(req.Header, k) // containerd does not make the names canonical
		}
	}
	return g.base.RoundTrip(req)
}

// leftHome tells a request that redirects have led away from the host that the first one was for. The same name with
// another port is another host; net/http takes it for the same.
func leftHome(req *http.Request) bool {
	first := req
	for range 20 { // net/http follows 10
		if first.Response == nil {
			break
		}
		if first = first.Response.Request; first == nil {
			return true
		}
	}
	return first.URL.Host != req.URL.Host || first.URL.Scheme == "https" && req.URL.Scheme != "https"
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// patient waits when a registry says 429: its Retry-After, or longer each time. The resolver would repeat at once.
type patient struct{ base http.RoundTripper }

const (
	maxRetryAfter   = 20 * time.Second
	maxRateRetries  = 4
	firstRateLimit  = 500 * time.Millisecond
	maxErrorToDrain = 64 << 10
)

// RoundTrip implements http.RoundTripper.
func (p *patient) RoundTrip(req *http.Request) (*http.Response, error) {
	for try := 0; ; try++ {
		resp, err := p.base.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusTooManyRequests || try == maxRateRetries {
			return resp, err
		}
		wait := retryAfter(resp.Header.Get("Retry-After"), firstRateLimit<<try)
		if wait > maxRetryAfter {
			return resp, nil
		}
		if req.Body != nil && req.Body != http.NoBody {
			if req.GetBody == nil {
				return resp, nil
			}
			body, err := req.GetBody()
			if err != nil {
				return resp, nil
			}
			req = req.Clone(req.Context())
			req.Body = body
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

// retryAfter reads the header: seconds, or a date (RFC 9110, section 10.2.3).
func retryAfter(value string, otherwise time.Duration) time.Duration {
	if s, err := strconv.Atoi(value); err == nil && s >= 0 {
		return time.Duration(min(s, 1<<20)) * time.Second
	}
	if t, err := http.ParseTime(value); err == nil {
		return max(time.Until(t), 0)
	}
	return otherwise
}

// connections are closed when a pull is over.
type connections struct {
	mu  sync.Mutex
	all []http.RoundTripper
}

func (c *connections) add(client *http.Client) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, client.Transport)
	return nil
}

func (c *connections) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.all {
		if c, ok := t.(interface{ CloseIdleConnections() }); ok {
			c.CloseIdleConnections()
		}
	}
}
