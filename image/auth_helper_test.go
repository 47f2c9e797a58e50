package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// TestCredentialHelpers: programs that a docker configuration names.
func TestCredentialHelpers(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{Auth: registry.BearerAuth, Username: "u", Password: "pass-word", RefreshToken: "refresh"})
	add(t, r, "app", "v1", simple("x"))
	bin, dir := t.TempDir(), t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	helper := func(name, body string) {
		t.Helper()
		path := write(t, filepath.Join(bin, "docker-credential-"+name), "#!/bin/sh\n[ \"$1\" = get ] || exit 9\nread -r server\n"+body+"\n")
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	answer := `echo "{\"ServerURL\": \"$server\", \"Username\": \"%s\", \"Secret\": \"%s\"}"`
	helper("good", fmt.Sprintf("[ \"$server\" = %s ] || exit 8\n", r.Host())+fmt.Sprintf(answer, "u", "pass-word"))
	helper("token", fmt.Sprintf(answer, "<token>", "refresh"))
	helper("wrong", fmt.Sprintf(answer, "u", "s3cret"))
	helper("none", "echo credentials not found in native keychain; exit 1")
	helper("fails", "echo the vault is shut; exit 1")
	helper("garbage", "echo s3cret")
	for name, tc := range map[string]struct {
		file, says string
		ok         bool
	}{
		"helper":           {`{"credHelpers": {"%s": "good"}}`, "", true},
		"store":            {`{"credsStore": "good"}`, "", true},
		"empty entry":      {`{"auths": {"%s": {}}, "credsStore": "good"}`, "", true},
		"identity token":   {`{"credHelpers": {"%s": "token"}, "credsStore": "wrong"}`, "", true},
		"another's":        {`{"credHelpers": {"other.example": "good"}}`, "", false},
		"wrong":            {`{"credHelpers": {"%s": "wrong"}}`, "", false},
		"has none":         {`{"credHelpers": {"%s": "none"}}`, "", false},
		"fails":            {`{"credHelpers": {"%s": "fails"}}`, "the vault is shut", false},
		"garbage":          {`{"credHelpers": {"%s": "garbage"}}`, "not JSON", false},
		"not there":        {`{"credHelpers": {"%s": "missing"}}`, "docker-credential-missing", false},
		"a path":           {`{"credHelpers": {"%s": "../../bin/sh"}}`, "not a name", false},
		"entry goes first": {`{"auths": {"%s": {"username": "u", "password": "pass-word"}}, "credsStore": "fails"}`, "", true},
	} {
		text := tc.file
		if strings.Contains(text, "%s") {
			text = fmt.Sprintf(text, r.Host())
		}
		file := write(t, filepath.Join(dir, "config.json"), text)
		s := openStore(t, t.TempDir(), func(c *Config) { c.RegistryAuth = []string{file} })
		_, err := s.Pull(t.Context(), r.Host()+"/app:v1", nil, PullOptions{})
		if tc.ok && err != nil || !tc.ok && !errors.Is(err, ErrUnauthorized) {
			t.Errorf("%s: Pull = %v; want success: %t", name, err, tc.ok)
		}
		e, err := s.Why(t.Context(), r.Host()+"/app:v1", nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), tc.says) || strings.Contains(string(b), "s3cret") || strings.Contains(string(b), "pass-word") {
			t.Errorf("%s: Why = %s; want %q in it, and no secret", name, b, tc.says)
		}
	}
}

func FuzzHelper(f *testing.F) {
	f.Add([]byte(`{"Username": "<token>", "Secret": "x"}`))
	f.Add([]byte(`{"Username": "u", "Secret": "x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := parseHelper(b, "x"); err == nil && a.IdentityToken == "" && a.Username == "" {
			t.Errorf("parseHelper(%q) = %+v; want a credential or an error", b, a)
		}
	})
}

// TestTokenRenewed: a token that stops being good in the middle of a pull is replaced.
func TestTokenRenewed(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{Auth: registry.BearerAuth, Username: "u", Password: "p"})
	add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{
		registry.Files(map[string]string{"a": incompressible(100<<10, 1)}), registry.Files(map[string]string{"b": incompressible(100<<10, 2)}),
	}})
	var once sync.Once
	r.SetFault(func(req *http.Request) *registry.Fault { // behind authentication: this one was let through
		if strings.Contains(req.URL.Path, "/blobs/") {
			once.Do(r.Revoke)
		}
		return nil
	})
	s := openStore(t, t.TempDir())
	if _, err := s.Pull(t.Context(), r.Host()+"/app:v1", &Auth{Username: "u", Password: "p"}, PullOptions{}); err != nil {
		t.Errorf("Pull = %v; want nil", err)
	}
	tokens := 0
	for _, q := range r.Requests() {
		if q.Path == "/token" {
			tokens++
		}
	}
	if tokens < 2 {
		t.Errorf("%d tokens were asked for; want another after the first was revoked", tokens)
	}
}

// TestProxy: the proxy of the environment is used, but for the hosts in NO_PROXY. net/http reads it once in a process.
func TestProxy(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", simple("x"))
	var mu sync.Mutex
	var seen []string
	target, err := url.Parse("http://" + r.Host())
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		seen = append(seen, req.URL.String())
		mu.Unlock()
		forward.ServeHTTP(w, req)
	}))
	defer proxy.Close()
	var c Config
	hostsFor(t, "r.invalid", "server = \"http://r.invalid\"\n")(&c)
	run := func(env ...string) (string, error) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), append(env, "TEST_PULL_BY_PROXY=r.invalid/app:v1", "TEST_PULL_INTO_ROOT="+t.TempDir(), "TEST_PULL_HOSTS="+c.RegistryConfigDir[0])...)
		b, err := cmd.CombinedOutput()
		return string(b), err
	}
	if out, err := run("HTTP_PROXY=" + proxy.URL); err != nil {
		t.Errorf("a pull by a proxy: %v\n%s", err, out)
	}
	for _, want := range []string{"/manifests/v1", "/blobs/"} {
		if !strings.Contains(strings.Join(seen, " "), "http://r.invalid/v2/app"+want) {
			t.Errorf("the proxy was asked for %q; want %s", seen, want)
		}
	}
	n := len(seen)
	if out, err := run("HTTP_PROXY="+proxy.URL, "NO_PROXY=r.invalid"); err == nil || len(seen) != n {
		t.Errorf("a pull with NO_PROXY: %v, %d requests by the proxy; want an error and none\n%s", err, len(seen)-n, out)
	}
}

func pullByProxy(ref string) {
	s, err := Open(background(), Config{Root: os.Getenv("TEST_PULL_INTO_ROOT"), RegistryConfigDir: []string{os.Getenv("TEST_PULL_HOSTS")}})
	if err == nil {
		_, err = s.Pull(background(), ref, nil, PullOptions{})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestHostHeaders: what hosts.toml has for a host is sent to it, with every request, and to no other.
func TestHostHeaders(t *testing.T) {
	needRoot(t)
	count := func(r *registry.Server, value string) (*httptest.Server, *[2]int) {
		var n [2]int
		var mu sync.Mutex
		return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			mu.Lock()
			n[0]++
			if req.Header.Get("X-Site") == value {
				n[1]++
			}
			mu.Unlock()
			r.ServeHTTP(w, req)
		})), &n
	}
	mirrorRegistry, originRegistry := newRegistry(t, registry.Options{}), newRegistry(t, registry.Options{})
	add(t, originRegistry, "app", "v1", simple("x"))
	mirror, ofMirror := count(mirrorRegistry, "rack-7")
	defer mirror.Close()
	origin, ofOrigin := count(originRegistry, "")
	defer origin.Close()
	toml := mirrored(origin.URL, mirror.URL) + "[host.\"" + mirror.URL + "\".header]\nx-site = \"rack-7\"\n"
	s := openStore(t, t.TempDir(), hostsFor(t, "r.example", toml))
	mustPull(t, s, "r.example/app:v1")
	for name, n := range map[string]*[2]int{"mirror": ofMirror, "origin": ofOrigin} {
		if n[0] == 0 || n[0] != n[1] {
			t.Errorf("%s: %d requests, %d with the headers that are for it; want all", name, n[0], n[1])
		}
	}
}
