package image

import (
	"context"
	"net/http"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// renewing asks for another token when a registry does not take one any more. The client does so by itself where the
// answer has error="invalid_token" (RFC 6750, section 3.1); not all registries say that.
type renewing struct {
	host  string
	fresh func() docker.Authorizer

	mu    sync.Mutex
	inner docker.Authorizer
	last  string // what was sent most recently
}

func (r *renewing) current() docker.Authorizer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inner == nil {
		r.inner = r.fresh()
	}
	return r.inner
}

// Authorize implements docker.Authorizer.
func (r *renewing) Authorize(ctx context.Context, req *http.Request) error {
	if err := r.current().Authorize(ctx, req); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = req.Header.Get("Authorization")
	return nil
}

// AddResponses implements docker.Authorizer. Its last response is a 401; only the first of a request makes a new token, so
// that one that is refused at once is not asked for again and again.
func (r *renewing) AddResponses(ctx context.Context, responses []*http.Response) error {
	if len(responses) == 1 {
		req := responses[0].Request
		sent := req.Header.Get("Authorization")
		r.mu.Lock()
		if strings.HasPrefix(sent, "Bearer ") && sent == r.last && req.URL.Host == r.host {
			r.inner, r.last = r.fresh(), ""
		}
		r.mu.Unlock()
	}
	return r.current().AddResponses(ctx, responses)
}
