package image

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// signing is a store with a policy for one registry.
type signing struct {
	*Store
	t       testing.TB
	r       *registry.Server
	program string
	dir     string
	root    string
	layers  map[string]bool // of the images that were pushed
}

func (s *signing) add(t *testing.T, repo string) registry.Pushed {
	t.Helper()
	p := add(t, s.r, repo, "v1", simple(repo))
	for _, l := range p.Layers {
		s.layers[l.Digest.String()] = true
	}
	return p
}

// newSigning makes a registry, and files for a policy that is not there yet.
func newSigning(t *testing.T, o registry.Options) *signing {
	needRoot(t)
	s := &signing{t: t, r: newRegistry(t, o), program: trustProgram(t, "."), dir: t.TempDir(), root: t.TempDir(), layers: map[string]bool{}}
	s.sources("docker:\n  " + s.r.Host() + ":\n    use-sigstore-attachments: true\n    lookaside: file://" + s.dir + "/lookaside\n")
	return s
}

func (s *signing) sources(text string) {
	write(s.t, filepath.Join(s.dir, "registries.d", "r.yaml"), text)
}

// policy writes one with the requirement for the registry and opens the store.
func (s *signing) policy(requirement string) { s.policyFor(s.r.Host(), requirement) }

func (s *signing) policyFor(scope, requirement string) {
	s.t.Helper()
	write(s.t, filepath.Join(s.dir, "policy.json"),
		fmt.Sprintf(`{"default": [{"type": "reject"}], "transports": {"docker": {%q: [%s]}}}`, scope, requirement))
	s.reopen(func(c *Config) { c.SignaturePolicy = filepath.Join(s.dir, "policy.json") })
	time.Sleep(2 * clockGrain) // what is decided while a file is that new is not remembered
}

func (s *signing) reopen(change ...func(*Config)) {
	s.t.Helper()
	if s.Store != nil {
		if err := s.Close(); err != nil {
			s.t.Fatal(err)
		}
	}
	s.Store = openStore(s.t, s.root, append(change, func(c *Config) {
		c.SignatureSources, c.TrustProgram = filepath.Join(s.dir, "registries.d"), s.program
	})...)
}

// pull pulls repo:v1; want is "" for success, or a part of the reason for which it is denied.
func (s *signing) pull(t *testing.T, repo string, want ...string) *Image {
	t.Helper()
	before := len(s.r.Requests())
	img, err := s.Pull(t.Context(), s.r.Host()+"/"+repo+":v1", nil, PullOptions{})
	s.check(t, "Pull("+repo+")", err, want...)
	if err == nil {
		return img
	}
	isClean(t, s.Store)
	for _, q := range s.r.Requests()[before:] {
		if s.layers[filepath.Base(q.Path)] {
			t.Errorf("a layer was fetched of an image that is denied: %s", q.Path)
		}
	}
	return nil
}

func (s *signing) check(t *testing.T, what string, err error, want ...string) {
	t.Helper()
	if len(want) == 0 {
		if err != nil {
			t.Errorf("%s = %v; want nil", what, err)
		}
		return
	}
	if !errors.Is(err, ErrDenied) {
		t.Fatalf("%s = %v; want ErrDenied", what, err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s = %v; want it to have %q", what, err, w)
		}
	}
}

func TestSigstoreKey(t *testing.T) {
	s := newSigning(t, registry.Options{})
	key, other := newSigner(t), newSigner(t)
	pub := write(t, filepath.Join(s.dir, "cosign.pub"), key.pub)
	s.policy(fmt.Sprintf(`{"type": "sigstoreSigned", "keyPath": %q, "signedIdentity": {"type": "matchRepository"}}`, pub))
	scope := fmt.Sprintf("scope docker %q: ", s.r.Host())
	what := "sigstoreSigned key " + pub
	name := func(repo string) string { return s.r.Host() + "/" + repo }

	for _, referrer := range []bool{false, true} {
		repo := fmt.Sprintf("good-%v", referrer)
		p := s.add(t, repo)
		key.attach(t, name(repo), p.Manifest.Digest).push(t, s.r, repo, p.Manifest, referrer)
		s.pull(t, repo)
		if err := s.Remove(t.Context(), name(repo)+":v1"); err != nil {
			t.Fatal(err)
		}
	}
	s.add(t, "unsigned")
	s.pull(t, "unsigned", scope, what, "no signature exists")

	p := s.add(t, "tampered")
	a := key.attach(t, name("tampered"), p.Manifest.Digest)
	a.payload = bytes.Replace(a.payload, []byte("critical"), []byte("Critical"), 1)
	a.push(t, s.r, "tampered", p.Manifest, false)
	s.pull(t, "tampered", scope, what, "cryptographic signature verification failed")

	p = s.add(t, "stranger")
	other.attach(t, name("stranger"), p.Manifest.Digest).push(t, s.r, "stranger", p.Manifest, true)
	s.pull(t, "stranger", scope, what, "cryptographic signature verification failed")

	p = s.add(t, "identity")
	key.attach(t, name("elsewhere"), p.Manifest.Digest).push(t, s.r, "identity", p.Manifest, false)
	s.pull(t, "identity", scope, what, "Signature for identity", "is not accepted")

	p = s.add(t, "digest")
	key.attach(t, name("digest"), digest.FromString("another")).push(t, s.r, "digest", p.Manifest, false)
	s.pull(t, "digest", scope, what, "does not match")

	// A registry that the policy does not speak of.
	s.policyFor("registry.example", `{"type": "insecureAcceptAnything"}`)
	s.pull(t, "good-true", `scope "default": `, "rejected by policy")

	// What cannot be evaluated denies.
	write(t, filepath.Join(s.dir, "policy.json"), "{")
	s.pull(t, "good-true", "policy.json", "unexpected")
	s.policyFor(s.r.Host(), fmt.Sprintf(`{"type": "sigstoreSigned", "keyPath": "%s/none"}`, s.dir))
	s.pull(t, "good-true", s.dir+"/none", "no such file")
	s.sources("docker: [\n")
	s.pull(t, "good-true", "r.yaml")
	s.program = "/nonexistent"
	s.policyFor(s.r.Host(), `{"type": "insecureAcceptAnything"}`)
	s.pull(t, "good-true", "cri-shim-trust", "no such file")
	s.program = write(t, filepath.Join(s.dir, "program"), "#!/bin/sh\necho '{}'\n")
	if err := os.Chmod(s.program, 0o755); err != nil {
		t.Fatal(err)
	}
	s.reopen(func(c *Config) { c.SignaturePolicy = filepath.Join(s.dir, "policy.json") })
	s.pull(t, "good-true", "an answer that is none")
}

// TestSigstoreIndex: a signature may be the index's, or that of this platform's manifest in it; and signatures are
// asked for with the credentials of the pull.
func TestSigstoreIndex(t *testing.T) {
	s := newSigning(t, registry.Options{Auth: registry.BearerAuth, Username: "u", Password: "p"})
	key := newSigner(t)
	pub := write(t, filepath.Join(s.dir, "cosign.pub"), key.pub)
	s.policy(fmt.Sprintf(`{"type": "sigstoreSigned", "keyPath": %q, "signedIdentity": {"type": "matchRepository"}}`, pub))
	for _, which := range []string{"index", "manifest", "neither"} {
		p := add(t, s.r, which, "", simple(which))
		id, err := s.r.AddIndex(which, "v1", false, p.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		of := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: id}
		if which == "manifest" {
			of = p.Manifest
		}
		if which != "neither" {
			key.attach(t, s.r.Host()+"/"+which, of.Digest).push(t, s.r, which, of, false)
		}
		img, err := s.Pull(t.Context(), s.r.Host()+"/"+which+":v1", &Auth{Username: "u", Password: "p"}, PullOptions{})
		if which == "neither" {
			s.check(t, which, err, id.String(), p.Manifest.Digest.String(), "no signature exists")
			continue
		}
		s.check(t, which, err)
		if err == nil {
			s.check(t, "Admit("+which+")", s.Admit(t.Context(), img.ID)) // without credentials: it is remembered
		}
	}
}

// TestSignaturesEverywhere: import, tag and what was here before the policy.
func TestSignaturesEverywhere(t *testing.T) {
	s := newSigning(t, registry.Options{})
	key := newSigner(t)
	good := s.add(t, "good")
	s.add(t, "bad")
	key.attach(t, s.r.Host()+"/good", good.Manifest.Digest).push(t, s.r, "good", good.Manifest, false)
	s.reopen()
	goodImage, badImage := s.pull(t, "good"), s.pull(t, "bad")
	archive := export(t, s.Store, s.r.Host()+"/bad:v1")
	s.check(t, "Admit without a policy", s.Admit(t.Context(), badImage.ID))

	pub := write(t, filepath.Join(s.dir, "cosign.pub"), key.pub)
	requirement := fmt.Sprintf(`{"type": "sigstoreSigned", "keyPath": %q, "signedIdentity": {"type": "matchRepository"}}`, pub)
	s.policy(requirement)
	s.check(t, "Admit(bad)", s.Admit(t.Context(), badImage.ID), "no signature exists")
	s.check(t, "Admit(good)", s.Admit(t.Context(), goodImage.ID))
	_, err := s.Tag(t.Context(), goodImage.ID, s.r.Host()+"/renamed:v1", false)
	s.check(t, "Tag", err, "no signature exists")
	if err := s.Remove(t.Context(), badImage.ID); err != nil {
		t.Fatal(err)
	}
	_, err = s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{})
	s.check(t, "Import(bad)", err, "no signature exists")
	if len(s.List()) != 1 {
		t.Errorf("List() = %d images; want one", len(s.List()))
	}

	// Once the clock has moved on, an approval counts until a file that it rests on changes, and no longer.
	time.Sleep(2 * clockGrain)
	s.check(t, "Admit(good)", s.Admit(t.Context(), goodImage.ID))
	asked := len(s.r.Requests())
	s.check(t, "Admit(good)", s.Admit(t.Context(), goodImage.ID))
	s.reopen(func(c *Config) { c.SignaturePolicy = filepath.Join(s.dir, "policy.json") })
	s.check(t, "Admit(good) of another daemon", s.Admit(t.Context(), goodImage.ID))
	if n := len(s.r.Requests()) - asked; n != 0 {
		t.Errorf("%d requests for an image that is approved; want none", n)
	}
	write(t, pub, newSigner(t).pub)
	s.check(t, "Admit(good) with another key", s.Admit(t.Context(), goodImage.ID), "verification failed")
	write(t, pub, key.pub)
	s.check(t, "Admit(good) with its key", s.Admit(t.Context(), goodImage.ID))
	write(t, filepath.Join(s.dir, "registries.d", "more.yaml"), "docker:\n  "+s.r.Host()+"/good:\n    use-sigstore-attachments: false\n")
	s.check(t, "Admit(good) without attachments", s.Admit(t.Context(), goodImage.ID), "no signature exists")
}

// gpg is GnuPG with keys of its own.
type gpg struct {
	t   testing.TB
	env []string
}

func newGPG(t testing.TB) gpg {
	t.Helper()
	home, err := os.MkdirTemp("", "gpg") // short: the agent's socket is in it
	if err != nil {
		t.Fatal(err)
	}
	g := gpg{t, []string{"GNUPGHOME=" + home}}
	t.Cleanup(func() {
		command(t, g.env, "", "gpgconf", "--kill", "all")
		os.RemoveAll(home)
	})
	return g
}

func (g gpg) run(stdin string, args ...string) string {
	g.t.Helper()
	return command(g.t, g.env, stdin, "gpg", append([]string{"--batch", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
}

// TestSimpleSigning: GnuPG's signatures in a folder and on a server.
func TestSimpleSigning(t *testing.T) {
	needProgram(t, "gpg", "gnupg")
	s := newSigning(t, registry.Options{})
	gpg := newGPG(t).run
	gpg("", "--quick-generate-key", "release@example.org", "ed25519", "sign", "never")
	gpg("", "--quick-generate-key", "other@example.org", "rsa2048", "sign", "never")
	gpg("", "--faked-system-time", "20200101T000000", "--quick-generate-key", "old@example.org", "rsa2048", "sign", "1y")
	pub := write(t, filepath.Join(s.dir, "release.gpg"), gpg("", "--export", "release@example.org"))
	old := write(t, filepath.Join(s.dir, "old.gpg"), gpg("", "--export", "--armor", "old@example.org"))

	sign := func(user, identity string, id digest.Digest, more ...string) string {
		payload := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"atomic container signature"},"optional":{"creator":"test"}}`, identity, id)
		return gpg(payload, append(more, "--local-user", user, "--sign")...)
	}
	store := func(dir, repo string, id digest.Digest, n int, sig string) {
		write(t, fmt.Sprintf("%s/%s@%s=%s/signature-%d", dir, repo, id.Algorithm(), id.Encoded(), n), sig)
	}
	name := func(repo string) string { return s.r.Host() + "/" + repo + ":v1" }
	lookaside := filepath.Join(s.dir, "lookaside")
	requirement := func(key string) string {
		return fmt.Sprintf(`{"type": "signedBy", "keyType": "GPGKeys", "keyPath": %q}`, key)
	}
	s.policy(requirement(pub))
	what := "signedBy key " + pub

	p := s.add(t, "good")
	store(lookaside, "good", p.Manifest.Digest, 1, sign("other@example.org", name("good"), p.Manifest.Digest))
	store(lookaside, "good", p.Manifest.Digest, 2, sign("release@example.org", name("good"), p.Manifest.Digest))
	img := s.pull(t, "good")
	if img == nil {
		t.FailNow()
	}
	if err := s.Remove(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	for repo, tc := range map[string]struct {
		make func(id digest.Digest) string
		want string
	}{
		"missing":  {nil, "no signature exists"},
		"stranger": {func(id digest.Digest) string { return sign("other@example.org", name("stranger"), id) }, "Key not found"},
		"identity": {func(id digest.Digest) string { return sign("release@example.org", name("elsewhere"), id) }, "is not accepted"},
		"digest": {func(digest.Digest) string {
			return sign("release@example.org", name("digest"), digest.FromString("another"))
		}, "does not match"},
		"tampered": {func(id digest.Digest) string {
			b := []byte(sign("release@example.org", name("tampered"), id, "--compress-algo", "none"))
			i := bytes.Index(b, []byte("atomic container"))
			b[i] = 'A'
			return string(b)
		}, "ignature"},
		"garbage": {func(digest.Digest) string { return "\x99nothing" }, "signature"},
	} {
		p := s.add(t, repo)
		if tc.make != nil {
			store(lookaside, repo, p.Manifest.Digest, 1, tc.make(p.Manifest.Digest))
		}
		s.pull(t, repo, what, tc.want)
	}

	// An expired key, whose signature was good when it was made.
	p = s.add(t, "expired")
	store(lookaside, "expired", p.Manifest.Digest, 1,
		sign("old@example.org", name("expired"), p.Manifest.Digest, "--faked-system-time", "20200601T000000"))
	s.policy(requirement(old))
	s.pull(t, "expired", "signedBy key "+old, "expired")

	// A server instead of the folder; what it says besides "not found" is in the reason.
	status := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status != http.StatusOK {
			w.WriteHeader(status)
			return
		}
		http.FileServer(http.Dir(lookaside)).ServeHTTP(w, r)
	}))
	defer srv.Close()
	s.sources("default-docker:\n  lookaside: " + srv.URL + "\n")
	s.policy(requirement(pub))
	if img := s.pull(t, "good"); img != nil {
		if err := s.Remove(t.Context(), img.ID); err != nil {
			t.Fatal(err)
		}
	}
	status = http.StatusServiceUnavailable
	s.pull(t, "good", "lookaside "+srv.URL, "503")
}

// TestSignaturesOfSkopeo: what another program has signed and pushed.
func TestSignaturesOfSkopeo(t *testing.T) {
	needProgram(t, "skopeo", "skopeo")
	needProgram(t, "gpg", "gnupg")
	s := newSigning(t, registry.Options{})
	s.add(t, "source")
	g := newGPG(t)
	g.run("", "--quick-generate-key", "release@example.org", "rsa2048", "sign", "never")
	pub := write(t, filepath.Join(s.dir, "release.gpg"), g.run("", "--export", "release@example.org"))
	write(t, filepath.Join(s.dir, "accept.json"), `{"default": [{"type": "insecureAcceptAnything"}]}`)
	command(t, g.env, "", "skopeo", "--policy", filepath.Join(s.dir, "accept.json"), "--registries.d", filepath.Join(s.dir, "registries.d"),
		"copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--sign-by", "release@example.org",
		"docker://"+s.r.Host()+"/source:v1", "docker://"+s.r.Host()+"/target:v1")
	s.policy(fmt.Sprintf(`{"type": "signedBy", "keyType": "GPGKeys", "keyPath": %q}`, pub))
	s.pull(t, "source", "no signature exists") // the same manifest under another name
	s.pull(t, "target")
}

// TestSigstoreKeyless: a certificate of Fulcio for an identity, and Rekor's word that it was used while it was valid;
// both authorities are files. Nothing is asked of anybody else.
func TestSigstoreKeyless(t *testing.T) {
	s := newSigning(t, registry.Options{})
	ca, rekor := newAuthority(t), newSigner(t)
	roots := write(t, filepath.Join(s.dir, "fulcio.pem"), ca.pem)
	log := write(t, filepath.Join(s.dir, "rekor.pub"), rekor.pub)
	s.policy(fmt.Sprintf(`{"type": "sigstoreSigned", "signedIdentity": {"type": "matchRepository"}, "rekorPublicKeyPath": %q,
		"fulcio": {"caPath": %q, "oidcIssuer": "https://accounts.example", "subjectEmail": "release@example.org"}}`, log, roots))
	signed := time.Now().Add(-30 * 24 * time.Hour) // long after the certificate, which is good for ten minutes
	for repo, tc := range map[string]struct {
		ca            authority
		rekor         signer
		email, issuer string
		integrated    time.Time
		want          string
	}{
		"good":     {ca, rekor, "release@example.org", "https://accounts.example", signed, ""},
		"email":    {ca, rekor, "mallory@example.org", "https://accounts.example", signed, "email"},
		"issuer":   {ca, rekor, "release@example.org", "https://evil.example", signed, "OIDC issuer"},
		"ca":       {newAuthority(t), rekor, "release@example.org", "https://accounts.example", signed, "certificate"},
		"rekor":    {ca, newSigner(t), "release@example.org", "https://accounts.example", signed, "Rekor"},
		"too-late": {ca, rekor, "release@example.org", "https://accounts.example", signed.Add(time.Hour), "expired"},
	} {
		p := s.add(t, repo)
		key, cert := tc.ca.issue(t, tc.email, tc.issuer, signed.Add(-time.Minute))
		a := key.attach(t, s.r.Host()+"/"+repo, p.Manifest.Digest)
		a.annotations = map[string]string{
			"dev.sigstore.cosign/certificate": cert,
			"dev.sigstore.cosign/bundle":      tc.rekor.entry(t, a, cert, tc.integrated),
		}
		a.push(t, s.r, repo, p.Manifest, false)
		if tc.want == "" {
			if img := s.pull(t, repo); img != nil {
				if err := s.Remove(t.Context(), img.ID); err != nil {
					t.Fatal(err)
				}
			}
			continue
		}
		s.pull(t, repo, "sigstoreSigned CA "+roots, "release@example.org of https://accounts.example", tc.want)
	}
}

// authority issues certificates as Fulcio does.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  string
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fulcio"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-365 * 24 * time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{key, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

func (a authority) issue(t testing.TB, email, issuer string, from time.Time) (signer, string) {
	t.Helper()
	s := newSigner(t)
	// The extension of Fulcio's certificates that says who vouches for the address; the raw string is its first form.
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: from, NotAfter: from.Add(10 * time.Minute), EmailAddresses: []string{email},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte(issuer)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, s.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return s, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// entry is Rekor's promise that it has logged the signature (a "SET"), as cosign attaches it.
func (s signer) entry(t testing.TB, a attachment, cert string, at time.Time) string {
	t.Helper()
	sum := sha256.Sum256(a.payload)
	body := mustJSON(t, map[string]any{
		"apiVersion": "0.0.1", "kind": "hashedrekord",
		"spec": map[string]any{
			"data": map[string]any{"hash": map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}},
			"signature": map[string]any{
				"content":   base64.StdEncoding.EncodeToString(a.signature),
				"publicKey": map[string]any{"content": base64.StdEncoding.EncodeToString([]byte(cert))},
			},
		},
	})
	// Keys in order and no spaces: the canonical form (RFC 8785), which is what is signed.
	payload := mustJSON(t, map[string]any{"body": body, "integratedTime": at.Unix(), "logID": "00", "logIndex": 1})
	return string(mustJSON(t, map[string]any{"SignedEntryTimestamp": s.sign(t, payload), "Payload": json.RawMessage(payload)}))
}
