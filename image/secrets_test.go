package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// lockedBuffer is for loggers, which write from several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestNoSecretsInLogs: neither what a client sends to be let in nor what registries answer with it is in the log,
// at any level, or in an error.
func TestNoSecretsInLogs(t *testing.T) {
	needRoot(t)
	const user, password, refresh, key = "robot-user", "pass-word-9731", "refresh-4482", "key-in-a-header-6650"
	basic := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	for _, kind := range []registry.AuthKind{registry.BasicAuth, registry.BearerAuth} {
		r := newRegistry(t, registry.Options{Auth: kind, Username: user, Password: password, RefreshToken: refresh})
		add(t, r, "app", "v1", simple("x"))
		token := r.Token()
		for name, auth := range map[string]*Auth{
			"password": {Username: user, Password: password},
			"base64":   {Auth: basic},
			"identity": {IdentityToken: refresh},
			"token":    {RegistryToken: token},
			"wrong":    {Username: "somebody", Password: refresh},
		} {
			t.Run(string(kind)+" "+name, func(t *testing.T) {
				var text lockedBuffer
				certs := t.TempDir()
				writeHosts(t, certs, r.Host(), fmt.Sprintf("[host.\"http://%s\".header]\nx-api-key = %q\n", r.Host(), key))
				s := openStore(t, t.TempDir(), func(c *Config) {
					c.RegistryConfigDir = []string{certs}
					c.Log = slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))
				})
				_, err := s.Pull(t.Context(), r.Host()+"/app:v1", auth, PullOptions{})
				got := text.String() + fmt.Sprint(err)
				for _, secret := range []string{password, refresh, key, basic, token, "Bearer " + token[:8]} {
					if strings.Contains(got, secret) {
						t.Errorf("%q is in the log or the error:\n%s", secret, got)
					}
				}
				if !strings.Contains(got, "do request") || !strings.Contains(got, "request.method=HEAD") {
					t.Errorf("the registry client's requests are not in the log:\n%s", got)
				}
				for _, req := range r.Requests() {
					if got := strings.TrimPrefix(req.Authorization, "Bearer "); len(got) > 8 && strings.Contains(text.String(), got) {
						t.Errorf("Authorization %q is in the log", req.Authorization)
					}
				}
			})
		}
	}
}

func writeHosts(t *testing.T, root, host, text string) {
	t.Helper()
	dir := filepath.Join(root, host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestNoSignaturesInLogs: registries redirect to storage with a signature in the URL, and set cookies.
func TestNoSignaturesInLogs(t *testing.T) {
	needRoot(t)
	const signature, cookie = "X-Signature=abcdef0123", "session-5519"
	var storage *httptest.Server
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", simple("x"))
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Set-Cookie", cookie)
		if strings.Contains(req.URL.Path, "/blobs/") {
			http.Redirect(w, req, storage.URL+req.URL.Path+"?"+signature, http.StatusTemporaryRedirect)
			return
		}
		r.ServeHTTP(w, req)
	}))
	defer front.Close()
	for name, answer := range map[string]http.Handler{
		"good": r,
		"refused": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
		}),
		"cut": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
	} {
		t.Run(name, func(t *testing.T) {
			storage = httptest.NewServer(answer)
			defer storage.Close()
			var text lockedBuffer
			s := openStore(t, t.TempDir(), func(c *Config) {
				c.Log = slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))
			})
			_, err := s.Pull(t.Context(), strings.TrimPrefix(front.URL, "http://")+"/app:v1", nil, PullOptions{})
			if (err == nil) != (name == "good") {
				t.Errorf("Pull() = %v", err)
			}
			got := text.String() + fmt.Sprint(err)
			for _, secret := range []string{signature, cookie} {
				if strings.Contains(got, secret) {
					t.Errorf("%q is in the log or the error:\n%s", secret, got)
				}
			}
		})
	}
}

// TestRegistryErrorKinds: what says that a registry cannot be reached has that kind, and a call that was given up
// has not.
func TestRegistryErrorKinds(t *testing.T) {
	request := func(err error) error {
		return fmt.Errorf("resolve: %w", &url.Error{Op: "Head", URL: "https://r.example/v2/?secret=1", Err: err})
	}
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{request(syscall.ECONNREFUSED), true},
		{request(&net.DNSError{Name: "r.example"}), true},
		{request(context.Canceled), false},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, true},
		{fmt.Errorf("body: %w", io.ErrUnexpectedEOF), true},
		{&os.PathError{Op: "open", Path: "ca.crt", Err: syscall.ENOENT}, false},
	} {
		err := registryError("r.example", tt.err)
		if errors.Is(err, ErrUnavailable) != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("registryError(%v) = %v, unavailable %t; want %t", tt.err, err, errors.Is(err, ErrUnavailable), tt.want)
		}
		if tt.want && strings.Contains(err.Error(), "secret") {
			t.Errorf("registryError(%v) = %v; want no query", tt.err, err)
		}
	}
}
