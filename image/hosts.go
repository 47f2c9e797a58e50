package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/pelletier/go-toml/v2"
)

// registryHost is one of the places that a reference can be pulled from: a mirror, or the registry itself. Each has
// a resolver of its own, so that it is known who said what.
type registryHost struct {
	docker.RegistryHost
	origin     bool // the registry itself, which comes last
	credential credential
	resolver   remotes.Resolver
	fetcher    remotes.Fetcher
}

func (h *registryHost) address() string { return h.Scheme + "://" + h.Host + h.Path }

func (h *registryHost) can(c docker.HostCapabilities) bool { return h.Capabilities.Has(c) }

// hostsFile and hostEntry are what containerd reads of hosts.toml.
type hostsFile struct {
	Server string `toml:"server"`
	hostEntry
	Host map[string]hostEntry `toml:"host"`
}

type hostEntry struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// checkHosts refuses what containerd's reader would log and then ignore: it goes on without the file, so a typing
// error in it would send every pull, and its credentials, past the mirror that was to be used.
func checkHosts(b []byte) error {
	var f hostsFile
	if err := toml.Unmarshal(b, &f); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ := at.Position()
			return fmt.Errorf("line %d: %w: %w", line, ErrInvalid, err)
		}
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := f.check(f.Server); err != nil {
		return err
	}
	for name, e := range f.Host {
		if name == "" {
			return fmt.Errorf("[host.\"\"]: no address: %w", ErrInvalid)
		}
		if err := e.check(name); err != nil {
			return fmt.Errorf("[host.%q]: %w", name, err)
		}
	}
	return nil
}

func (e *hostEntry) check(address string) error {
	if address != "" {
		if !strings.HasPrefix(address, "http") {
			address = "https://" + address
		}
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("%q is not the address of a registry: %w", address, ErrInvalid)
		}
		if u.User != nil {
			return fmt.Errorf("a user in the address: credentials belong into an auth file: %w", ErrInvalid)
		}
	}
	for _, c := range e.Capabilities {
		switch strings.ToLower(c) {
		case "pull", "resolve", "push", "referrers":
		default:
			return fmt.Errorf("capabilities: %q is none of pull, resolve, push, referrers: %w", c, ErrInvalid)
		}
	}
	if !isStrings(e.CA) {
		return fmt.Errorf("ca: want a file name, or a list of them: %w", ErrInvalid)
	}
	if !isPairs(e.Client) {
		return fmt.Errorf("client: want a file name, or a list of names or of pairs of them: %w", ErrInvalid)
	}
	for k, v := range e.Header {
		if v == nil || !isStrings(v) {
			return fmt.Errorf("header %q: want a string, or a list of them: %w", k, ErrInvalid)
		}
	}
	if e.DialTimeout != "" {
		if _, err := time.ParseDuration(e.DialTimeout); err != nil {
			return fmt.Errorf("dial_timeout: %q is no duration: %w", e.DialTimeout, ErrInvalid)
		}
	}
	return nil
}

func isStrings(v any) bool {
	switch v := v.(type) {
	case nil, string:
		return true
	case []any:
		for _, s := range v {
			if _, ok := s.(string); !ok {
				return false
			}
		}
		return true
	}
	return false
}

func isPairs(v any) bool {
	list, ok := v.([]any)
	if !ok {
		return isStrings(v)
	}
	for _, p := range list {
		pair, isList := p.([]any)
		if isList && (len(pair) != 2 || !isStrings(p)) {
			return false
		}
		if _, isString := p.(string); !isString && !isList {
			return false
		}
	}
	return true
}

// hostDir finds the directory with a host's configuration.
func (c *Config) hostDir(host string) (string, error) {
	for _, root := range c.RegistryConfigDir {
		dir, err := dockerconfig.HostDirFromRoot(root)(host)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		name := filepath.Join(dir, "hosts.toml")
		b, err := os.ReadFile(name)
		if err == nil {
			err = checkHosts(b)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		return dir, nil
	}
	return "", errdefs.ErrNotFound
}

// hosts returns where ref can be pulled from, in the order in which they are asked, and what is wrong with the files
// that credentials are in.
func (c *Config) hosts(ctx context.Context, ref reference.Named, auth *Auth, conns *connections) ([]*registryHost, []error, error) {
	domain := reference.Domain(ref)
	configured, err := dockerconfig.ConfigureHosts(ctx, dockerconfig.HostOptions{
		HostDir: c.hostDir, UpdateClient: conns.add,
	})(domain)
	if err != nil {
		return nil, nil, fmt.Errorf("registry configuration of %s: %w", domain, err)
	}
	var problems []error
	hosts := make([]*registryHost, 0, len(configured))
	for i, h := range configured {
		host := &registryHost{RegistryHost: h, origin: i == len(configured)-1 || hubAlias(h.Host) == domain}
		// A registry that has settings of its own is often both a host and the server of its file.
		if same := slices.IndexFunc(hosts, func(o *registryHost) bool { return o.address() == host.address() }); same >= 0 {
			continue
		}
		var bad []error
		if host.credential, bad, err = c.credentialFor(ctx, host, ref, auth); err != nil {
			return nil, nil, err
		}
		for _, b := range bad { // each host finds the same files
			if !slices.ContainsFunc(problems, func(p error) bool { return p.Error() == b.Error() }) {
				problems = append(problems, b)
			}
		}
		if err := host.prepare(ctx, ref); err != nil {
			return nil, nil, err
		}
		hosts = append(hosts, host)
	}
	return hosts, problems, nil
}

func (c *Config) credentialFor(ctx context.Context, h *registryHost, ref reference.Named, auth *Auth) (credential, []error, error) {
	if auth.isFor(h.Host, h.origin) {
		cred, err := auth.credential("the pull request")
		if err != nil || !cred.empty() {
			return cred, nil, err
		}
	}
	cred, problems := fileCredential(ctx, c.RegistryAuth, h.Host, reference.Path(ref))
	if !cred.empty() || !h.origin {
		return cred, problems, nil
	}
	// The files may know the registry by the name that the reference has, and not by its server's.
	return firstOf(cred, problems)(fileCredential(ctx, c.RegistryAuth, reference.Domain(ref), reference.Path(ref)))
}

func firstOf(none credential, problems []error) func(credential, []error) (credential, []error, error) {
	return func(c credential, _ []error) (credential, []error, error) {
		if c.empty() {
			c = none
		}
		return c, problems, nil // the second look finds the same ones
	}
}

// prepare gives the host a client that keeps its credential to itself.
func (h *registryHost) prepare(ctx context.Context, ref reference.Named) error {
	plain := h.Scheme == "http" || reflect.TypeOf(h.Client.Transport) == reflect.TypeOf(docker.NewHTTPFallback(nil))
	client := *h.Client
	client.Transport = &guard{base: &patient{h.Client.Transport}, host: h.Host, plain: plain, header: h.Header}
	h.Client = &client
	if h.credential.token != "" {
		h.Header = h.Header.Clone()
		if h.Header == nil {
			h.Header = http.Header{}
		}
		h.Header.Set("Authorization", "Bearer "+h.credential.token)
		h.Authorizer = nil
	} else {
		// A host that a redirect leads to may ask for authentication too: only this one gets an answer.
		name, user, secret := h.Host, h.credential.user, h.credential.secret
		header := h.Header
		h.Authorizer = &renewing{host: name, fresh: func() docker.Authorizer {
			return docker.NewDockerAuthorizer(docker.WithAuthClient(&client), docker.WithAuthHeader(header),
				docker.WithAuthCreds(func(host string) (string, string, error) {
					if host != name {
						return "", "", nil
					}
					return user, secret, nil
				}))
		}}
	}
	h.resolver = docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return []docker.RegistryHost{h.RegistryHost}, nil },
		Headers: http.Header{"User-Agent": {"cri-shim"}},
	})
	var err error
	h.fetcher, err = h.resolver.Fetcher(ctx, ref.String())
	return err
}
