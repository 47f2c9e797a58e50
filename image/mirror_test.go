package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// hostsFor writes a hosts.toml for a registry and returns what makes a store use it.
func hostsFor(t testing.TB, registry, toml string) func(*Config) {
	t.Helper()
	certs := t.TempDir()
	if err := os.Mkdir(filepath.Join(certs, registry), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(certs, registry, "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	return func(c *Config) {
		c.RegistryConfigDir, c.ProgressTimeout = []string{certs}, 300*time.Millisecond
	}
}

func mirrored(server string, mirrors ...string) string {
	toml := fmt.Sprintf("server = %q\n", server)
	for _, m := range mirrors {
		toml += fmt.Sprintf("[host.%q]\n", m)
	}
	return toml
}

func onBlobs(f registry.Fault) func(*http.Request) *registry.Fault {
	return func(r *http.Request) *registry.Fault {
		if strings.Contains(r.URL.Path, "/blobs/") {
			return &f
		}
		return nil
	}
}

func onAll(f registry.Fault) func(*http.Request) *registry.Fault {
	return func(*http.Request) *registry.Fault { return &f }
}

// TestMirrorFallsThrough: whatever a mirror does, the registry behind it is asked, and what is wrong does not stay.
func TestMirrorFallsThrough(t *testing.T) {
	needRoot(t)
	for name, fault := range map[string]func(*http.Request) *registry.Fault{
		"not found":       onAll(registry.Fault{Status: 404}),
		"forbidden":       onAll(registry.Fault{Status: 403}),
		"broken":          onAll(registry.Fault{Status: 500}),
		"no blobs":        onBlobs(registry.Fault{Status: 404}),
		"stalls":          onBlobs(registry.Fault{StallAfter: 100 << 10}),
		"never answers":   onBlobs(registry.Fault{StallAfter: -1}),
		"cuts":            onBlobs(registry.Fault{CutAfter: 100 << 10}),
		"wrong blobs":     onBlobs(registry.Fault{FlipAt: 5000}),
		"wrong manifests": onAll(registry.Fault{FlipAt: 50}),
		"too short":       onBlobs(registry.Fault{Length: 300}),
		"too long":        onBlobs(registry.Fault{Length: 2 << 20}),
		"redirects":       onAll(registry.Fault{Redirect: "http://127.0.0.1:1/"}),
		"endless":         func(r *http.Request) *registry.Fault { return &registry.Fault{Redirect: r.URL.Path} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mirror, origin := newRegistry(t, registry.Options{}), newRegistry(t, registry.Options{})
			img := registry.Image{Layers: []registry.Layer{
				registry.Files(map[string]string{"a": incompressible(1<<20, 1)}), registry.Files(map[string]string{"b": incompressible(300<<10, 2)}),
			}}
			add(t, mirror, "app", "v1", img)
			want := add(t, origin, "app", "v1", img)
			mirror.SetFault(fault)
			s := openStore(t, t.TempDir(), hostsFor(t, "r.example", mirrored("http://"+origin.Host(), "http://"+mirror.Host())))
			got := mustPull(t, s, "r.example/app:v1")
			if got.ID != want.ID.String() {
				t.Errorf("Pull() = %s; want %s", got.ID, want.ID)
			}
			if left := names(t, s.path("ingest")); len(left) != 0 {
				t.Errorf("left in ingest: %v", left)
			}
		})
	}
}

// TestMirrorTakenTogether: each of two hosts has half of it right.
func TestMirrorTakenTogether(t *testing.T) {
	needRoot(t)
	a, b := newRegistry(t, registry.Options{}), newRegistry(t, registry.Options{})
	img := simple(incompressible(1<<20, 4))
	p := add(t, a, "app", "v1", img)
	add(t, b, "app", "v1", img)
	var n sync.Map
	a.SetFault(func(r *http.Request) *registry.Fault { // wrong, and it breaks off
		if strings.Contains(r.URL.Path, p.Layers[0].Digest.String()) {
			n.Store("a", true)
			return &registry.Fault{FlipAt: 5000, CutAfter: 100 << 10}
		}
		return nil
	})
	s := openStore(t, t.TempDir(), hostsFor(t, "r.example", mirrored("http://"+b.Host(), "http://"+a.Host())))
	mustPull(t, s, "r.example/app:v1")
	if _, ok := n.Load("a"); !ok {
		t.Error("the mirror was not asked")
	}
}

// TestMirrorsNamed: the error has the hosts in the order in which they were asked, with what each said.
func TestMirrorsNamed(t *testing.T) {
	needRoot(t)
	mirror, origin := newRegistry(t, registry.Options{}), newRegistry(t, registry.Options{})
	mirror.SetFault(onAll(registry.Fault{Status: 503, Message: "tired"}))
	s := openStore(t, t.TempDir(), hostsFor(t, "r.example", mirrored("http://"+origin.Host(), "http://127.0.0.1:1", "http://"+mirror.Host())))
	_, err := s.Pull(t.Context(), "r.example/app:v1", nil, PullOptions{})
	if !errors.Is(err, ErrNotFound) {
		t.Fatalf("Pull() = %v; want ErrNotFound, which is what the registry itself says", err)
	}
	at := 0
	for _, want := range []string{"r.example", "[1] registry 127.0.0.1:1:", "refused", "[2] registry " + mirror.Host(), "503", "[3] registry " + origin.Host(), "not found"} {
		i := strings.Index(err.Error()[at:], want)
		if i < 0 {
			t.Fatalf("Pull() = %v; want %q after byte %d", err, want, at)
		}
		at += i
	}
}

// TestMirrorCapabilities: a host is asked for that only which it is trusted with.
func TestMirrorCapabilities(t *testing.T) {
	needRoot(t)
	mirror, origin := newRegistry(t, registry.Options{}), newRegistry(t, registry.Options{})
	add(t, mirror, "app", "v1", simple("another image under the same tag"))
	p := add(t, origin, "app", "v1", simple("x"))
	toml := mirrored("http://"+origin.Host(), "http://"+mirror.Host()) + "capabilities = [\"pull\"]\n"
	s := openStore(t, t.TempDir(), hostsFor(t, "r.example", toml))
	if img := mustPull(t, s, "r.example/app:v1"); img.ID != p.ID.String() {
		t.Errorf("Pull() = %s; want %s of the host that may resolve", img.ID, p.ID)
	}
	for _, q := range mirror.Requests() {
		if strings.HasSuffix(q.Path, "/manifests/v1") {
			t.Errorf("the mirror was asked for the tag: %+v", q)
		}
	}
}

// TestCredentialsStay: what is for one host is never seen by another.
func TestCredentialsStay(t *testing.T) {
	needRoot(t)
	const header = "s3cret-of-hosts-toml"
	for name, elsewhere := range map[string]int{"answers": 404, "asks for a password": 401} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var seen []string
			thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				seen = append(seen, fmt.Sprint(r.Header))
				mu.Unlock()
				if elsewhere == 401 {
					w.Header().Set("WWW-Authenticate", `Basic realm="please"`)
				}
				w.WriteHeader(elsewhere)
			}))
			defer thief.Close()
			mirror := newRegistry(t, registry.Options{Auth: registry.BasicAuth, Username: "m", Password: "mirror-word"})
			origin := newRegistry(t, registry.Options{Auth: registry.BasicAuth, Username: "u", Password: "pass-word"})
			add(t, origin, "app", "v1", simple("x"))
			origin.SetFault(onBlobs(registry.Fault{Redirect: thief.URL + "/"}))
			toml := mirrored("http://"+origin.Host(), "http://"+mirror.Host()) + "[host.\"http://" + mirror.Host() + "\".header]\nx-key = \"" + header + "\"\n"
			// The root's header must come before the first table.
			toml = "header = { \"x-key\" = \"" + header + "\" }\n" + toml
			s := openStore(t, t.TempDir(), hostsFor(t, "r.example", toml))
			_, err := s.Pull(t.Context(), "r.example/app:v1", &Auth{Username: "u", Password: "pass-word"}, PullOptions{})
			if err == nil {
				t.Fatal("Pull() = nil; want an error: nobody has the blobs")
			}
			mu.Lock()
			defer mu.Unlock()
			if len(seen) == 0 {
				t.Fatal("the redirect was not followed")
			}
			for _, secret := range []string{header, "pass-word", base64.StdEncoding.EncodeToString([]byte("u:pass-word")), "Authorization"} {
				if strings.Contains(strings.Join(seen, " "), secret) {
					t.Errorf("the host that was redirected to has seen %q: %v", secret, seen)
				}
			}
			for _, q := range mirror.Requests() {
				if q.Authorization != "" {
					t.Errorf("the mirror has seen the credentials of the registry: %+v", q)
				}
			}
		})
	}
}

// TestAuthFiles: files give each host its credential; a path in the key says more than a host alone.
func TestAuthFiles(t *testing.T) {
	needRoot(t)
	mirror := newRegistry(t, registry.Options{Auth: registry.BasicAuth, Username: "m", Password: "mirror-word"})
	origin := newRegistry(t, registry.Options{Auth: registry.BearerAuth, Username: "u", Password: "pass-word"})
	p := add(t, origin, "team/app", "v1", simple("x"))
	add(t, mirror, "other/app", "v1", simple("y"))
	dir := t.TempDir()
	b64 := base64.StdEncoding.EncodeToString([]byte("m:mirror-word"))
	for name, text := range map[string]string{
		"00-broken.json": `{"auths": {"x": s3cret`,
		"10.json":        fmt.Sprintf(`{"auths": {"https://%s/v1/": {"auth": %q}, "r.example": {"username": "wrong", "password": "wrong"}}}`, mirror.Host(), b64),
		"20.json":        `{"auths": {"r.example/team": {"username": "u", "password": "pass-word"}}}`,
		"ignored.txt":    `{"auths": {"r.example/team/app": {"username": "never", "password": "never"}}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A file alone counts as it stands; of the directory, the first file that knows the host does.
	byFile := func(files ...string) func(*Config) {
		return func(c *Config) {
			hostsFor(t, "r.example", mirrored("http://"+origin.Host(), "http://"+mirror.Host()))(c)
			c.RegistryAuth = nil
			for _, f := range files {
				c.RegistryAuth = append(c.RegistryAuth, filepath.Join(dir, f))
			}
		}
	}
	s := openStore(t, t.TempDir(), byFile("none.json", "00-broken.json", "20.json", "10.json"))
	if img := mustPull(t, s, "r.example/team/app:v1"); img.ID != p.ID.String() {
		t.Errorf("Pull() = %s; want %s", img.ID, p.ID)
	}
	mustPull(t, s, "r.example/other/app:v1") // of the mirror, by the key with a scheme
	s = openStore(t, t.TempDir(), byFile(""))
	_, err := s.Pull(t.Context(), "r.example/team/app:v1", nil, PullOptions{})
	if !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("Pull() = %v; want ErrUnauthorized: the first file has another password", err)
	}

	e, err := s.Why(t.Context(), "r.example/team/app:v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%+v", e)
	for _, want := range []string{`user "m" of ` + dir + "/10.json", `user "wrong" of`, "not found", "401 Unauthorized", "00-broken.json"} {
		if !strings.Contains(text, want) {
			t.Errorf("Why() = %s; want %q in it", text, want)
		}
	}
	for _, secret := range []string{"mirror-word", "pass-word", "s3cret", b64} {
		if strings.Contains(text, secret) {
			t.Errorf("Why() = %s; it has a secret", text)
		}
	}
	s = openStore(t, t.TempDir(), byFile("20.json", "10.json"))
	if e, err = s.Why(t.Context(), "r.example/team/app:v1", nil); err != nil || e.Digest != p.Manifest.Digest.String() || !strings.Contains(e.From, origin.Host()) {
		t.Errorf("Why() = %+v, %v; want %s of %s", e, err, p.Manifest.Digest, origin.Host())
	}
}

// TestHostsRefused: a file that cannot be what its writer meant stops the pull, with its name.
func TestHostsRefused(t *testing.T) {
	for name, tc := range map[string]struct{ toml, says string }{
		"syntax":     {"server = \"http://x\"\n[host\n", "line 2"},
		"type":       {"server = 5\n", "hosts.toml"},
		"capability": {"[host.\"https://m\"]\ncapabilities = [\"pul\"]\n", `"pul"`},
		"ca":         {"[host.\"https://m\"]\nca = [1]\n", "ca:"},
		"client":     {"[host.\"https://m\"]\nclient = [[\"one\"]]\n", "client:"},
		"header":     {"[host.\"https://m\".header]\na = 1\n", "header"},
		"timeout":    {"[host.\"https://m\"]\ndial_timeout = \"soon\"\n", "dial_timeout"},
		"scheme":     {"server = \"httpx://m\"\n", "address"},
		"user":       {"server = \"https://u:p@m\"\n", "credentials"},
		"no file":    {"[host.\"https://m\"]\nca = \"none.pem\"\n", "none.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), hostsFor(t, "r.example", tc.toml))
			_, err := s.Pull(t.Context(), "r.example/app:v1", nil, PullOptions{})
			if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "r.example") {
				t.Errorf("Pull() = %v; want an error that says %q", err, tc.says)
			}
		})
	}
}

// TestTLS: a registry with a certificate of its own authority that wants one of its clients.
func TestTLS(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", simple("x"))
	certPEM, keyPEM := clientCertificate(t)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	srv := httptest.NewUnstartedServer(r)
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	srv.StartTLS()
	defer srv.Close()
	dir := t.TempDir()
	for name, b := range map[string][]byte{
		"ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), "cert.pem": certPEM, "key.pem": keyPEM,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ca, client := fmt.Sprintf("ca = %q\n", dir+"/ca.pem"), fmt.Sprintf("client = [[%q, %q]]\n", dir+"/cert.pem", dir+"/key.pem")
	for name, tc := range map[string]struct{ toml, says string }{
		"both":         {ca + client, ""},
		"no authority": {client, "certificate"},
		"no client":    {ca, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), hostsFor(t, "r.example", fmt.Sprintf("server = %q\n", srv.URL)+tc.toml))
			_, err := s.Pull(t.Context(), "r.example/app:v1", nil, PullOptions{})
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("Pull() = %v; want an error that says %q", err, tc.says)
			}
		})
	}
}

func clientCertificate(t *testing.T) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})
}

// TestPlainHTTP: a registry with TLS cannot send us to one without, nor a token's password.
func TestPlainHTTP(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://198.51.100.1/"+r.URL.Path, http.StatusTemporaryRedirect)
		},
		"token": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://198.51.100.1/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewTLSServer(h)
			defer srv.Close()
			toml := fmt.Sprintf("server = %q\nskip_verify = true\n", srv.URL)
			s := openStore(t, t.TempDir(), hostsFor(t, "r.example", toml))
			start := time.Now()
			_, err := s.Pull(t.Context(), "r.example/app:v1", &Auth{Username: "u", Password: "p"}, PullOptions{})
			if err == nil || !strings.Contains(err.Error(), "plain HTTP is not configured") {
				t.Errorf("Pull() = %v after %v; want it to refuse plain HTTP", err, time.Since(start))
			}
		})
	}
}

// TestTokenRedirect: a password in a form is not sent on.
func TestTokenRedirect(t *testing.T) {
	var seen bool
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { seen = true }))
	defer thief.Close()
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			http.Redirect(w, r, thief.URL+"/token", http.StatusTemporaryRedirect)
			return
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, srv.URL))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer srv.Close()
	s := openStore(t, t.TempDir())
	_, err := s.Pull(t.Context(), strings.TrimPrefix(srv.URL, "http://")+"/app:v1", &Auth{Username: "u", Password: "p"}, PullOptions{})
	if err == nil || seen {
		t.Errorf("Pull() = %v, the password was sent on: %t; want an error, and no", err, seen)
	}
}

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": time.Minute, "7": 7 * time.Second, "-1": time.Minute, "soon": time.Minute, "Mon, 02 Jan 2006 15:04:05 GMT": 0, "99999999999999": time.Minute,
	} {
		got := retryAfter(value, time.Minute)
		if value == "99999999999999" && got > maxRetryAfter {
			continue // out of proportion either way
		}
		if got != want {
			t.Errorf("retryAfter(%q) = %v; want %v", value, got, want)
		}
	}
	in := time.Now().Add(30 * time.Second).UTC().Format(http.TimeFormat)
	if got := retryAfter(in, 0); got < 25*time.Second || got > 30*time.Second {
		t.Errorf("retryAfter(%q) = %v; want about 30s", in, got)
	}
}

func FuzzHosts(f *testing.F) {
	f.Add([]byte(mirrored("https://a.example", "http://b.example", "c")))
	f.Add([]byte("ca = [\"a\"]\nclient = [[\"a\",\"b\"]]\nheader = {a = \"b\", c = [\"d\"]}\n[host.\"x\"]\nskip_verify = true\n"))
	f.Fuzz(func(t *testing.T, b []byte) { _ = checkHosts(b) })
}

func FuzzAuthFile(f *testing.F) {
	f.Add([]byte(`{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}, "r.example/team": {"username": "u"}}}`), "r.example", "team/app")
	f.Fuzz(func(t *testing.T, b []byte, host, repository string) {
		file, err := parseAuthFile(b)
		if err != nil {
			return
		}
		key, e, ok := file.find(host, repository)
		if ok && file.Auths[key] != e {
			t.Errorf("find(%q, %q) = %q with another's entry", host, repository, key)
		}
	})
}
