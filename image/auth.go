package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Auth is what a client sends with a pull (CRI AuthConfig).
type Auth struct {
	Username      string
	Password      string
	Auth          string // base64 of "username:password"
	ServerAddress string // the registry that the rest is for; "" for the one that the reference names
	IdentityToken string // an OAuth2 refresh token
	RegistryToken string // a bearer token, sent as it is
}

// credential is what a host is offered, and who says so.
type credential struct {
	user, secret string // a secret without a user is a refresh token (as containerd has it)
	token        string // a bearer token, sent as it is
	source       string
}

func (c credential) empty() bool { return c.user == "" && c.secret == "" && c.token == "" }

// String never has the secret in it.
func (c credential) String() string {
	switch {
	case c.token != "":
		return "a bearer token of " + c.source
	case c.user != "":
		return fmt.Sprintf("user %q of %s", c.user, c.source)
	case c.secret != "":
		return "an identity token of " + c.source
	}
	return "none"
}

// credential returns what a holds.
func (a *Auth) credential(source string) (credential, error) {
	c := credential{source: source}
	switch {
	case a.RegistryToken != "":
		c.token = a.RegistryToken
	case a.Username != "":
		c.user, c.secret = a.Username, a.Password
	case a.IdentityToken != "":
		c.secret = a.IdentityToken
	case a.Auth != "":
		b, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return c, fmt.Errorf("auth: not base64: %w", ErrUnauthorized)
		}
		user, secret, ok := strings.Cut(string(b), ":")
		if !ok {
			return c, fmt.Errorf("auth: no colon between user and password: %w", ErrUnauthorized)
		}
		c.user, c.secret = user, strings.Trim(secret, "\x00")
	}
	return c, nil
}

// isFor tells whether the host may see a. Without a server address it is for the registry that the reference names,
// and not for a mirror of it.
func (a *Auth) isFor(host string, origin bool) bool {
	if a == nil {
		return false
	}
	if a.ServerAddress == "" {
		return origin
	}
	got, _ := splitAuthKey(a.ServerAddress)
	return got == hubAlias(host)
}

// hubAlias gives the names of Docker's registry one: clients file its credentials under index.docker.io.
func hubAlias(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// splitAuthKey takes a server address, or a key of a docker configuration, apart: https://index.docker.io/v1/,
// registry.example:5000, registry.example/team.
func splitAuthKey(key string) (host, path string) {
	if !strings.Contains(key, "://") {
		key = "https://" + key
	}
	u, err := url.Parse(key)
	if err != nil {
		return "", ""
	}
	path = strings.Trim(u.Path, "/")
	if path == "v1" || path == "v2" {
		path = ""
	}
	return hubAlias(u.Host), path
}

// authFile is a file in the format of docker's config.json, whose keys may have a path as in containers-auth.json(5).
type authFile struct {
	Auths map[string]authEntry `json:"auths"`
	// Programs that are asked for credentials; see auth_helper.go.
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

type authEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

const maxAuthFile = 1 << 20

// parseAuthFile never puts a part of the file into its error: it is full of secrets.
func parseAuthFile(b []byte) (*authFile, error) {
	f := &authFile{}
	if err := json.Unmarshal(b, f); err != nil {
		var at *json.SyntaxError
		if errors.As(err, &at) {
			return nil, fmt.Errorf("not JSON: at byte %d: %w", at.Offset, ErrInvalid)
		}
		return nil, fmt.Errorf("not a docker configuration (an object of \"auths\" by host): %w", ErrInvalid)
	}
	return f, nil
}

// find returns the entry whose key says most of host/repository.
func (f *authFile) find(host, repository string) (key string, e authEntry, ok bool) {
	best := -1
	for k, v := range f.Auths {
		h, path := splitAuthKey(k)
		if h != hubAlias(host) || path != "" && repository != path && !strings.HasPrefix(repository, path+"/") {
			continue
		}
		// The key itself settles a tie, so that the answer does not change from call to call.
		if len(path) > best || len(path) == best && k < key {
			best, key, e, ok = len(path), k, v, true
		}
	}
	return key, e, ok
}

// authFiles are the files that names lead to: a directory stands for the *.json files in it, in name order.
func authFiles(names []string) []string {
	var all []string
	for _, n := range names {
		if in, err := filepath.Glob(filepath.Join(n, "*.json")); err == nil && len(in) > 0 {
			all = append(all, in...)
			continue
		}
		if fi, err := os.Stat(n); err == nil && fi.IsDir() {
			continue
		}
		all = append(all, n)
	}
	return all
}

// fileCredential looks a host up in files, the first that knows it counts. A file that cannot be used is in problems:
// it costs the pulls that need it, not the others.
func fileCredential(ctx context.Context, files []string, host, repository string) (found credential, problems []error) {
	for _, name := range authFiles(files) {
		f, err := readAuthFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		key, e, ok := f.find(host, repository)
		if !ok || e == (authEntry{}) { // docker leaves an empty entry where a helper has the rest
			c, err := f.fromHelper(ctx, name, host)
			if err != nil {
				problems = append(problems, err)
			}
			if !c.empty() {
				return c, problems
			}
			continue
		}
		a := Auth{Username: e.Username, Password: e.Password, Auth: e.Auth, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
		c, err := a.credential(fmt.Sprintf("%s (%s)", name, key))
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %q: %w", name, key, err))
			continue
		}
		if !c.empty() {
			return c, problems
		}
	}
	return credential{source: "no file"}, problems
}

func readAuthFile(name string) (*authFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAuthFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxAuthFile {
		return nil, fmt.Errorf("%s: more than %d bytes: %w", name, maxAuthFile, ErrTooLarge)
	}
	parsed, err := parseAuthFile(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return parsed, nil
}
