package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sigstore/sigstore-go/pkg/testing/data"

	"github.com/cri-shim/cri-shim/cmd/cri-shim-trust/sigtest"
)

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// shelf is a repository as the daemon shows it.
type shelf struct {
	t         testing.TB
	blobs     map[string][]byte
	manifests map[string][]byte
	referrers []ocispec.Descriptor
	asked     []wanted
}

func newShelf(t testing.TB) *shelf {
	return &shelf{t: t, blobs: map[string][]byte{}, manifests: map[string][]byte{}}
}

// daemon answers in the background, until the test ends.
func (s *shelf) daemon() *daemon {
	qr, qw := io.Pipe()
	ar, aw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		dec, enc := json.NewDecoder(qr), json.NewEncoder(aw)
		for {
			var q struct {
				Fetch wanted `json:"fetch"`
			}
			if dec.Decode(&q) != nil {
				return
			}
			s.asked = append(s.asked, q.Fetch)
			p := piece{NotFound: true}
			var ok bool
			switch q.Fetch.Kind {
			case "manifest":
				p.Data, ok = s.manifests[q.Fetch.Reference]
			case "blob":
				p.Data, ok = s.blobs[q.Fetch.Reference]
			case "referrers":
				p.Data, ok = mustJSON(s.t, s.referrers), true
			}
			p.NotFound = !ok
			if enc.Encode(p) != nil {
				return
			}
		}
	}()
	s.t.Cleanup(func() { qw.Close(); aw.Close(); <-done })
	return &daemon{json.NewDecoder(ar), json.NewEncoder(qw)}
}

// attach puts a bundle where cosign puts it; change may do something about it.
func (s *shelf) attach(subject digest.Digest, raw []byte, change func(*ocispec.Manifest, *ocispec.Descriptor)) {
	layer := ocispec.Descriptor{MediaType: sigtest.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	s.blobs[layer.Digest.String()] = raw
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: sigtest.MediaType,
		Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{layer}, Subject: &ocispec.Descriptor{Digest: subject},
		Annotations: map[string]string{"dev.sigstore.bundle.content": "dsse-envelope", predicateNote: sigtest.Predicate},
	}
	d := ocispec.Descriptor{MediaType: m.MediaType, ArtifactType: m.ArtifactType, Annotations: m.Annotations}
	if change != nil {
		change(&m, &d)
	}
	b := mustJSON(s.t, m)
	d.Digest, d.Size = digest.FromBytes(b), int64(len(b))
	s.manifests[d.Digest.String()] = b
	s.referrers = append(s.referrers, d)
}

const imageName = "registry.example/team/app:v1"

// policies is a folder with a policy of one requirement.
type policies struct {
	t   testing.TB
	dir string
}

func (p policies) write(name string, b []byte) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// ask asks about an image with this manifest.
func (p policies) ask(requirement string, byDigest bool, manifest []byte, d *daemon) (verdict, error) {
	p.t.Helper()
	policy := p.write("policy.json", fmt.Appendf(nil, `{"default": [{"type": "reject"}], "transports": {"docker": {"registry.example": [%s]}}}`, requirement))
	p.write("registries.d/r.yaml", fmt.Appendf(nil, "docker:\n  registry.example:\n    use-sigstore-attachments: true\n    bundles-by-digest: %v\n    lookaside: file://%s/none\n", byDigest, p.dir))
	return judge(&policyQuestion{
		Policy: policy, Registries: filepath.Join(p.dir, "registries.d"), Reference: imageName,
		Images: []candidate{{Digest: digest.FromBytes(manifest), MediaType: ocispec.MediaTypeImageManifest, Manifest: manifest}},
	}, d)
}

// fixture is what all cases share.
type fixture struct {
	policies
	sig                              *sigtest.Sigstore
	key, other                       *ecdsa.PrivateKey
	p384                             *ecdsa.PrivateKey
	byKey, byKeyLogged, byKeyLogged2 string // requirements
	keyless, trusted, workflow, pki  string
	pkiRoot                          string // with nothing between the authority and certificates
	manifest                         []byte
	id                               digest.Digest
}

const (
	email  = "release@example.org"
	issuer = "https://accounts.example"
	flow   = "https://ci.example/team/app/.github/workflows/release.yml@refs/heads/main"
)

func newFixture(t testing.TB) *fixture {
	f := &fixture{policies: policies{t, t.TempDir()}, sig: sigtest.New(), key: sigtest.NewKey(), other: sigtest.NewKey(), manifest: []byte(`{"schemaVersion": 2}`)}
	f.id = digest.FromBytes(f.manifest)
	var err error
	if f.p384, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	const identity = `"signedIdentity": {"type": "matchRepository"}`
	rekor1, rekor2 := f.write("rekor1.pub", sigtest.PEM(f.sig.Rekor1.Public())), f.write("rekor2.pub", sigtest.PEM(f.sig.Rekor2.Public()))
	ca, root := f.write("fulcio.pem", f.sig.FulcioPEM()), f.write("trusted_root.json", f.sig.TrustedRoot())
	key := f.write("cosign.pub", sigtest.PEM(f.key.Public()))
	key384 := f.write("cosign384.pub", sigtest.PEM(f.p384.Public()))
	f.byKey = fmt.Sprintf(`{"type": "sigstoreSigned", "keyPaths": [%q, %q], %s}`, key384, key, identity)
	f.byKeyLogged = fmt.Sprintf(`{"type": "sigstoreSigned", "keyPath": %q, "rekorPublicKeyPath": %q, %s}`, key, rekor1, identity)
	f.byKeyLogged2 = fmt.Sprintf(`{"type": "sigstoreSigned", "keyData": %q, "rekorPublicKeyPaths": [%q, %q], %s}`,
		base64.StdEncoding.EncodeToString(sigtest.PEM(f.key.Public())), rekor1, rekor2, identity)
	who := fmt.Sprintf(`"oidcIssuer": %q, "subjectEmail": `, issuer)
	f.keyless = fmt.Sprintf(`{"type": "sigstoreSigned", "fulcio": {"caPath": %q, %s%q}, "rekorPublicKeyPath": %q, %s}`, ca, who, email, rekor1, identity)
	f.trusted = fmt.Sprintf(`{"type": "sigstoreSigned", "fulcio": {"caPath": %q, %s%q}, "rekorPublicKeyPath": %[1]q, %[4]s}`, root, who, email, identity)
	f.workflow = fmt.Sprintf(`{"type": "sigstoreSigned", "fulcio": {"caPath": %q, %s%q}, "rekorPublicKeyPath": %[1]q, %[4]s}`, root, who, flow, identity)
	f.pki = fmt.Sprintf(`{"type": "sigstoreSigned", "pki": {"caRootsPath": %q, "subjectEmail": %q, "subjectHostname": "ci.example"}, %s}`, ca, email, identity)
	f.pkiRoot = strings.Replace(f.pki, ca, f.write("root.pem", f.sig.RootPEM()), 1)
	return f
}

// set changes the value at a path of keys and indexes.
func set(v any, to any, path ...any) {
	for i, p := range path {
		last := i == len(path)-1
		switch p := p.(type) {
		case string:
			m := v.(map[string]any)
			if last {
				m[p] = to
			}
			v = m[p]
		case int:
			l := v.([]any)
			if last {
				l[p] = to
			}
			v = l[p]
		}
	}
}

var withName = map[string]string{"docker-reference": "registry.example/team/app"}

func TestBundles(t *testing.T) {
	f := newFixture(t)
	month := time.Now().Add(-30 * 24 * time.Hour) // long after the certificate, which is good for ten minutes
	key := sigtest.Signing{Key: f.key}
	keyed := func(version int) sigtest.Signing { return sigtest.Signing{Key: f.key, Rekor: version} }
	less := func(version int, change func(*sigtest.Signing)) sigtest.Signing {
		g := sigtest.Signing{Email: email, Issuer: issuer, At: month, Rekor: version, Stamp: version != 1}
		if change != nil {
			change(&g)
		}
		return g
	}
	long := sigtest.NewKey()
	strangers := sigtest.New()
	const entry = "tlogEntries"
	for name, tc := range map[string]struct {
		requirement string
		statement   sigtest.Statement // about the image, if it does not say
		signing     sigtest.Signing
		by          *sigtest.Sigstore
		strict      bool // names count
		change      func(b map[string]any)
		want        string
	}{
		"key":                  {requirement: f.byKey, signing: key},
		"key P-384":            {requirement: f.byKey, signing: sigtest.Signing{Key: f.p384}},
		"key Rekor 1":          {requirement: f.byKeyLogged, signing: keyed(1)},
		"key Rekor 2":          {requirement: f.byKeyLogged2, signing: keyed(2)},
		"key logged for free":  {requirement: f.byKey, signing: keyed(2)},
		"keyless Rekor 1":      {requirement: f.keyless, signing: less(1, nil)},
		"trusted root Rekor 1": {requirement: f.trusted, signing: less(1, nil)},
		"trusted root Rekor 2": {requirement: f.trusted, signing: less(2, nil)},
		"workflow":             {requirement: f.workflow, signing: less(2, func(g *sigtest.Signing) { g.Email, g.URI = "", flow })},
		"pki":                  {requirement: f.pki, signing: sigtest.Signing{Key: long, Cert: f.sig.IssueLong(long, email, "ci.example")}},

		"pki, a chain of one": {requirement: f.pki, signing: sigtest.Signing{Key: long, Cert: f.sig.IssueLong(long, email, "ci.example"), Chain: []*x509.Certificate{}}},
		"pki, its own chain": {requirement: f.pkiRoot, signing: sigtest.Signing{Key: long, Cert: f.sig.IssueLong(long, email, "ci.example"),
			Chain: []*x509.Certificate{f.sig.Intermediate()}}},

		"other key": {requirement: f.byKey, signing: sigtest.Signing{Key: f.other}, want: "could not verify envelope"},
		"other digest": {requirement: f.byKey, signing: key, statement: sigtest.Statement{Digest: digest.FromString("another")},
			want: "artifact digest does not match any digest in statement"},
		"payload": {requirement: f.byKey, signing: key, want: "could not verify envelope", change: func(b map[string]any) {
			set(b, sigtest.Statement{Digest: f.id, Name: "x"}.JSON(), "dsseEnvelope", "payload")
		}},
		"signature": {requirement: f.byKey, signing: key, want: "could not verify envelope", change: func(b map[string]any) {
			set(b, []byte("x"), "dsseEnvelope", "signatures", 0, "sig")
		}},
		"no signature": {requirement: f.byKey, signing: key, want: "signature", change: func(b map[string]any) {
			set(b, []any{}, "dsseEnvelope", "signatures")
		}},
		"attestation": {requirement: f.byKey, signing: key, statement: sigtest.Statement{Predicate: "https://slsa.dev/provenance/v1"},
			want: `predicateType "https://slsa.dev/provenance/v1": an attestation`},
		"no statement":   {requirement: f.byKey, signing: key, statement: sigtest.Statement{Type: "https://example.org/x"}, want: "no in-toto statement"},
		"key not logged": {requirement: f.byKeyLogged, signing: key, want: "not enough verified log entries from transparency log: 0 < 1"},
		"key other log":  {requirement: f.byKeyLogged, by: strangers, signing: keyed(1), want: "not enough verified log entries"},
		"key other log of 2": {requirement: f.byKeyLogged2, by: strangers, signing: keyed(2),
			want: "not enough verified log entries"},
		"log entry of another": {requirement: f.byKeyLogged, signing: keyed(1), want: "does not match", change: func(b map[string]any) {
			o := f.sig.Bundle(sigtest.Statement{Digest: f.id, Name: "other"}.JSON(), keyed(1))
			set(b, o["verificationMaterial"].(map[string]any)[entry], "verificationMaterial", entry)
		}},
		"log entry of another in Rekor 2": {requirement: f.byKeyLogged2, signing: keyed(2), want: "verifying", change: func(b map[string]any) {
			o := f.sig.Bundle(sigtest.Statement{Digest: f.id, Name: "other"}.JSON(), keyed(2))
			set(b, o["verificationMaterial"].(map[string]any)[entry], "verificationMaterial", entry)
		}},
		"inclusion proof": {requirement: f.byKeyLogged, signing: keyed(1), want: "inclusion", change: func(b map[string]any) {
			set(b, []any{make([]byte, 32)}, "verificationMaterial", entry, 0, "inclusionProof", "hashes")
		}},
		"email": {requirement: f.keyless, signing: less(1, func(g *sigtest.Signing) { g.Email = "mallory@example.org" }),
			want: `expected SAN value "release@example.org", got "mallory@example.org"`},
		"address as a URI": {requirement: f.keyless, signing: less(1, func(g *sigtest.Signing) { g.Email, g.URI = "", email }), want: "email"},
		"issuer": {requirement: f.trusted, signing: less(1, func(g *sigtest.Signing) { g.Issuer = "https://evil.example" }),
			want: `expected issuer value "https://accounts.example", got "https://evil.example"`},
		"other CA": {requirement: f.keyless, by: strangers, signing: less(1, nil), want: "not enough verified log entries"},
		"other CA, right log": {requirement: f.keyless, signing: less(1, func(g *sigtest.Signing) {
			k := sigtest.NewKey()
			g.Key = k
			g.Cert = strangers.Issue(*g)
		}), want: "leaf certificate verification failed"},
		"expired": {requirement: f.keyless, signing: less(1, func(g *sigtest.Signing) { g.Integrated = month.Add(time.Hour) }),
			want: "integrated time outside certificate validity"},
		"expired, no time": {requirement: f.trusted, signing: less(2, func(g *sigtest.Signing) { g.Stamp = false }),
			want: "threshold not met for verified signed & log entry integrated timestamps: 0 < 1"},
		"no promise": {requirement: f.keyless, signing: less(1, func(g *sigtest.Signing) { g.NoSET = true }), want: "timestamps: 0 < 1"},
		"time stamp of another": {requirement: f.trusted, signing: less(2, func(g *sigtest.Signing) { g.StampOfOthers = []byte("x") }),
			want: "timestamps: 0 < 1"},
		"time stamp without its authority": {requirement: strings.Replace(f.keyless, "rekor1", "rekor2", 1), signing: less(2, nil),
			want: "a trusted_root.json has them"},
		"no log": {requirement: f.trusted, signing: less(0, nil), want: "not enough verified log entries"},
		"no SCT": {requirement: f.trusted, signing: less(1, func(g *sigtest.Signing) { g.NoSCT = true }),
			want: "only able to verify 0 SCT entries"},
		"no SCT, and no log of them": {requirement: f.keyless, signing: less(1, func(g *sigtest.Signing) { g.NoSCT = true })},
		"key for a certificate":      {requirement: f.keyless, signing: keyed(1), want: "the policy wants a certificate"},
		"certificate for a key":      {requirement: f.byKey, signing: less(1, nil), want: "signed with a certificate; the policy wants a key"},
		"pki email": {requirement: f.pki, signing: sigtest.Signing{Key: long, Cert: f.sig.IssueLong(long, "mallory@example.org", "ci.example")},
			want: `email "release@example.org" not found`},
		"pki host": {requirement: f.pki, signing: sigtest.Signing{Key: long, Cert: f.sig.IssueLong(long, email, "evil.example")},
			want: "certificate is valid for evil.example"},
		"pki CA": {requirement: f.pki, signing: sigtest.Signing{Key: long, Cert: strangers.IssueLong(long, email, "ci.example")},
			want: "leaf certificate verification failed"},
		"pki, a chain is missing": {requirement: f.pkiRoot, signing: sigtest.Signing{Key: long, Cert: f.sig.IssueLong(long, email, "ci.example")},
			want: "leaf certificate verification failed"},
		"pki, a chain of others": {requirement: f.pkiRoot, signing: sigtest.Signing{Key: long, Cert: strangers.IssueLong(long, email, "ci.example"),
			Chain: []*x509.Certificate{strangers.Intermediate()}}, want: "leaf certificate verification failed"},
		"pki, no authority in its chain": {requirement: f.pki, signing: sigtest.Signing{Key: long, Cert: f.sig.IssueLong(long, email, "ci.example"),
			Chain: []*x509.Certificate{f.sig.IssueLong(long, email, "ci.example")}}, want: "non-CA certificate"},
		"a chain of Fulcio's": {requirement: f.keyless, signing: less(1, func(g *sigtest.Signing) { g.Chain = []*x509.Certificate{} }),
			want: "verification material cannot be X.509 certificate chain"},
		"pki expired": {requirement: f.pki, signing: less(0, func(g *sigtest.Signing) { g.Stamp = false }), want: "leaf certificate verification failed"},

		"media type of the document": {requirement: f.byKey, signing: key, want: "unsupported media type", change: func(b map[string]any) { b["mediaType"] = "text/plain" }},
		"version 0.4": {requirement: f.byKey, signing: key, want: "not yet supported", change: func(b map[string]any) {
			b["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.4+json"
		}},
		"no material": {requirement: f.byKey, signing: key, want: "missing verification material", change: func(b map[string]any) { delete(b, "verificationMaterial") }},
		"a file's signature": {requirement: f.byKey, signing: key, want: "a signature of a file", change: func(b map[string]any) {
			delete(b, "dsseEnvelope")
			b["messageSignature"] = map[string]any{"messageDigest": map[string]any{"algorithm": "SHA2_256", "digest": []byte("x")}, "signature": []byte("x")}
		}},
		"payload type": {requirement: f.byKey, signing: key, want: "could not verify envelope", change: func(b map[string]any) {
			set(b, "text/plain", "dsseEnvelope", "payloadType")
		}},

		"nameless": {requirement: f.byKey, signing: key, strict: true,
			want: `it names no repository, and signedIdentity {"type":"matchRepository"} wants one: sign with --annotations docker-reference=NAME`},
		"named":        {requirement: f.byKey, signing: key, strict: true, statement: sigtest.Statement{Annotations: withName}},
		"subject name": {requirement: f.byKey, signing: key, strict: true, statement: sigtest.Statement{Name: "registry.example/team/app"}},
		"misnamed": {requirement: f.byKey, signing: key, strict: true, statement: sigtest.Statement{Name: "registry.example/team/other"},
			want: `Signature for identity "registry.example/team/other" is not accepted`},
		"misnamed by digest": {requirement: f.byKey, signing: key, statement: sigtest.Statement{Annotations: map[string]string{"docker-reference": "x.example/y"}},
			want: `Signature for identity "x.example/y" is not accepted`},
		"no name at all":    {requirement: f.byKey, signing: key, strict: true, statement: sigtest.Statement{Name: ":::"}, want: "is not accepted"},
		"keyless and named": {requirement: f.trusted, signing: less(2, nil), strict: true, statement: sigtest.Statement{Annotations: withName}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.statement.Digest == "" {
				tc.statement.Digest = f.id
			}
			if tc.by == nil {
				tc.by = f.sig
			}
			b := tc.by.Bundle(tc.statement.JSON(), tc.signing)
			if tc.change != nil {
				tc.change(b)
			}
			s := newShelf(t)
			s.attach(f.id, mustJSON(t, b), nil)
			v, err := f.ask(tc.requirement, !tc.strict, f.manifest, s.daemon())
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case tc.want == "" && !v.Allowed:
				t.Errorf("denied: %s", v.Reason)
			case tc.want != "" && v.Allowed:
				t.Errorf("allowed; want %q", tc.want)
			case tc.want != "":
				for _, w := range []string{tc.want, "sigstoreSigned", "bundle " + s.referrers[0].Digest.String()} {
					if !strings.Contains(v.Reason, w) {
						t.Errorf("reason = %s; want it to have %q", v.Reason, w)
					}
				}
			}
		})
	}
}

// TestReferrers: what is listed as a signature, and is none; and one that is good among many.
func TestReferrers(t *testing.T) {
	f := newFixture(t)
	good := mustJSON(t, f.sig.Bundle(sigtest.Statement{Digest: f.id}.JSON(), sigtest.Signing{Key: f.key}))
	bad := mustJSON(t, f.sig.Bundle(sigtest.Statement{Digest: f.id}.JSON(), sigtest.Signing{Key: f.other}))
	bare := func(_ *ocispec.Manifest, d *ocispec.Descriptor) {
		d.ArtifactType, d.Annotations = ocispec.MediaTypeEmptyJSON, nil
	}
	other := func(m *ocispec.Manifest, d *ocispec.Descriptor) {
		m.Annotations = map[string]string{predicateNote: "https://slsa.dev/provenance/v1"}
		d.Annotations = m.Annotations
	}
	for name, tc := range map[string]struct {
		fill func(s *shelf)
		want string
	}{
		"good":      {func(s *shelf) { s.attach(f.id, good, nil) }, ""},
		"bare list": {func(s *shelf) { s.attach(f.id, good, bare) }, ""},
		"artifact by config": {func(s *shelf) {
			s.attach(f.id, good, func(m *ocispec.Manifest, d *ocispec.Descriptor) {
				m.ArtifactType, m.Config.MediaType = "", sigtest.MediaType
			})
		}, ""},
		"after bad ones": {func(s *shelf) { s.attach(f.id, bad, nil); s.attach(f.id, []byte("{"), nil); s.attach(f.id, good, nil) }, ""},
		"after attestations": {func(s *shelf) {
			repeat(2*maxReferrers, func(i int) { s.attach(f.id, fmt.Appendf(nil, "%d", i), other) })
			s.attach(f.id, good, nil)
		}, ""},
		"after bare attestations": {func(s *shelf) {
			repeat(2*maxReferrers, func(i int) {
				s.attach(f.id, fmt.Appendf(nil, "%d", i), func(m *ocispec.Manifest, d *ocispec.Descriptor) { other(m, d); bare(m, d) })
			})
			s.attach(f.id, good, bare)
		}, ""},
		"too many to look at": {func(s *shelf) {
			repeat(maxLooks, func(i int) {
				s.attach(f.id, fmt.Appendf(nil, "%d", i), func(m *ocispec.Manifest, d *ocispec.Descriptor) { other(m, d); bare(m, d) })
			})
			s.attach(f.id, good, bare)
		}, "more than 128 that may be signatures"},
		"none":         {func(s *shelf) {}, "A signature was required, but no signature exists"},
		"attestations": {func(s *shelf) { s.attach(f.id, good, other) }, "no signature exists"},
		"attestation in truth": {func(s *shelf) {
			s.attach(f.id, good, func(m *ocispec.Manifest, d *ocispec.Descriptor) {
				m.Annotations = map[string]string{predicateNote: "x"}
			})
		}, "no signature exists"},
		"too many": {func(s *shelf) {
			repeat(maxReferrers, func(i int) { s.attach(f.id, fmt.Appendf(nil, "%d", i), nil) })
			s.attach(f.id, good, nil)
		}, "more than 32 signatures"},
		"of another image": {func(s *shelf) { s.attach(digest.FromString("another"), good, nil) },
			"listed as one of " + f.id.String() + ", and it is about " + digest.FromString("another").String()},
		"of nothing": {func(s *shelf) {
			s.attach(f.id, good, func(m *ocispec.Manifest, _ *ocispec.Descriptor) { m.Subject = nil })
		}, "it is about nothing"},
		"missing":        {func(s *shelf) { s.attach(f.id, good, nil); clear(s.manifests) }, "not found"},
		"bundle missing": {func(s *shelf) { s.attach(f.id, good, nil); clear(s.blobs) }, "bundle " + digest.FromBytes(good).String() + ": not found"},
		"no JSON":        {func(s *shelf) { s.attach(f.id, []byte("nothing"), nil) }, "syntax error"},
		"no manifest":    {func(s *shelf) { s.attach(f.id, good, nil); s.manifests[s.referrers[0].Digest.String()] = []byte("x") }, "invalid character"},
		"two layers": {func(s *shelf) {
			s.attach(f.id, good, func(m *ocispec.Manifest, _ *ocispec.Descriptor) { m.Layers = append(m.Layers, m.Layers[0]) })
		}, "a bundle of 2 layers"},
		"layer's type": {func(s *shelf) {
			s.attach(f.id, good, func(m *ocispec.Manifest, _ *ocispec.Descriptor) { m.Layers[0].MediaType = "text/plain" })
		}, `is "text/plain", and no bundle`},
		"oversize": {func(s *shelf) {
			s.attach(f.id, good, func(m *ocispec.Manifest, _ *ocispec.Descriptor) { m.Layers[0].Size = maxBundle + 1 })
		}, "a bundle of 1048577 bytes; at most 1048576 are taken"},
		"oversize, a lie": {func(s *shelf) {
			s.attach(f.id, append(good, make([]byte, maxBundle)...), func(m *ocispec.Manifest, _ *ocispec.Descriptor) { m.Layers[0].Size = 1 })
		}, "more than 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			tc.fill(s)
			v, err := f.ask(f.byKey, true, f.manifest, s.daemon())
			if err != nil {
				t.Fatal(err)
			}
			if v.Allowed != (tc.want == "") || !strings.Contains(v.Reason, tc.want) {
				t.Errorf("verdict = %v, %.2000s; want %q", v.Allowed, v.Reason, tc.want)
			}
			if n := len(s.asked); n > 3+maxLooks+maxReferrers {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func repeat(n int, f func(int)) {
	for i := range n {
		f(i)
	}
}

// TestRoots: what is wrong with the files of a policy, and signatures of the old kind under a trusted root.
func TestRoots(t *testing.T) {
	f := newFixture(t)
	root := filepath.Join(f.dir, "trusted_root.json")
	good := mustJSON(t, f.sig.Bundle(sigtest.Statement{Digest: f.id}.JSON(), sigtest.Signing{Key: f.key}))
	s := newShelf(t)
	s.attach(f.id, good, nil)
	f.write("bad.json", []byte("{}"))
	f.write("empty.json", []byte(`{"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`))
	for name, tc := range map[string]struct{ requirement, want string }{
		"no file":          {strings.Replace(f.byKey, "cosign.pub", "none.pub", 1), "none.pub: no such file"},
		"no key":           {strings.Replace(f.byKey, "cosign.pub", "trusted_root.json", 1), "key " + root + ": PEM decoding failed"},
		"no trusted root":  {strings.ReplaceAll(f.trusted, "trusted_root", "bad"), "bad.json: trusted root: unsupported TrustedRoot media type"},
		"no CA":            {strings.Replace(f.keyless, "fulcio.pem", "rekor1.pub", 1), "rekor1.pub: no certificate (PEM)"},
		"no CA in it":      {strings.ReplaceAll(f.trusted, "trusted_root", "empty"), "the trusted root has no certificate authority"},
		"no log in it":     {strings.Replace(f.byKeyLogged, "rekor1.pub", "empty.json", 1), "key of a log " + f.dir + "/empty.json: the trusted root has no transparency log"},
		"pki":              {strings.Replace(f.pki, "fulcio.pem", "trusted_root.json", 1), `a trusted root; "pki" takes certificates (PEM)`},
		"no Rekor key":     {strings.Replace(f.byKeyLogged, "rekor1.pub", "fulcio.pem", 1), "key of a log " + f.dir + "/fulcio.pem"},
		"nothing but root": {f.trusted, "the policy wants a certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := f.ask(tc.requirement, true, f.manifest, s.daemon())
			if err != nil {
				t.Fatal(err)
			}
			if v.Allowed || !strings.Contains(v.Reason, tc.want) {
				t.Errorf("verdict = %v, %s; want %q", v.Allowed, v.Reason, tc.want)
			}
		})
	}
	none := newShelf(t)
	v, err := f.ask(f.trusted, true, f.manifest, none.daemon())
	if err != nil || v.Allowed || !strings.Contains(v.Reason, "no bundle exists") {
		t.Errorf("without a bundle: %+v, %v", v, err)
	}
	layer := []byte("{}")
	none.blobs[digest.FromBytes(layer).String()] = layer
	none.manifests[strings.Replace(f.id.String(), ":", "-", 1)+".sig"] = mustJSON(t, ocispec.Manifest{
		Layers: []ocispec.Descriptor{{MediaType: simpleSigning, Digest: digest.FromBytes(layer), Size: 2}},
	})
	v, err = f.ask(f.trusted, true, f.manifest, none.daemon())
	if err != nil || v.Allowed || !strings.Contains(v.Reason, "1 signatures that are no bundles") {
		t.Errorf("with a signature of the old kind: %+v, %v", v, err)
	}
	// Every file counts for how long the verdict holds.
	v, err = f.ask(f.byKeyLogged2, true, f.manifest, s.daemon())
	if err != nil || !strings.Contains(strings.Join(v.Files, " "), "rekor2.pub") {
		t.Errorf("files = %v, %v", v.Files, err)
	}
}

// TestPublicGood: a bundle that the public instance has made: its certificate, SCT, log entry and identity are good. It
// is no signature of an image.
func TestPublicGood(t *testing.T) {
	p := policies{t, t.TempDir()}
	root := p.write("trusted_root.json", mustJSON(t, data.TrustedRoot(t, "public-good.json")))
	raw := mustJSON(t, data.Bundle(t, "sigstore.js@2.0.0-provenance.sigstore.json"))
	var env struct {
		DSSE struct{ Payload []byte } `json:"dsseEnvelope"`
	}
	var s statement
	if err := json.Unmarshal(raw, &env); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(env.DSSE.Payload, &s); err != nil {
		t.Fatal(err)
	}
	id := digest.NewDigestFromEncoded(digest.SHA512, s.Subject[0].Digest["sha512"])
	req := sigstoreSigned{Type: "sigstoreSigned", RekorPublicKeyPath: root, SignedIdentity: []byte(`{"type": "matchRepository"}`)}
	who := fmt.Sprintf(`{"Fulcio": {"CAPath": %q, "OIDCIssuer": "https://token.actions.githubusercontent.com",
		"SubjectEmail": "https://github.com/sigstore/sigstore-js/.github/workflows/release.yml@refs/heads/main"}}`, root)
	if err := json.Unmarshal([]byte(who), &req); err != nil {
		t.Fatal(err)
	}
	trusted, err := req.roots()
	if err != nil {
		t.Fatal(err)
	}
	j := bundleJudge{req: &req, roots: trusted, image: candidate{Digest: id}, byDigest: true}
	if err := j.one(raw); err == nil || !strings.Contains(err.Error(), "an attestation, and not a signature") {
		t.Errorf("one = %v; want the predicate to be all that is wrong", err)
	}
	req.Fulcio.SubjectEmail += "2"
	if err := j.one(raw); err == nil || !strings.Contains(err.Error(), "expected SAN value") {
		t.Errorf("one = %v; want another identity", err)
	}
}

// FuzzBundle: a bundle is anybody's, and nobody has signed with these roots.
func FuzzBundle(f *testing.F) {
	fx := newFixture(f)
	st := sigtest.Statement{Digest: fx.id}.JSON()
	for _, g := range []sigtest.Signing{
		{Key: fx.other, Rekor: 1}, {Key: fx.other, Rekor: 2, Stamp: true},
		{Email: email, Issuer: issuer, Rekor: 1}, {URI: flow, Issuer: issuer, Rekor: 2, Stamp: true},
	} {
		f.Add(mustJSON(f, fx.sig.Bundle(st, g)))
	}
	var judges []bundleJudge
	fresh := newFixture(f)
	for _, text := range []string{fresh.byKey, fresh.byKeyLogged2, fresh.keyless, fresh.trusted, fresh.pki} {
		var req sigstoreSigned
		if err := json.Unmarshal([]byte(text), &req); err != nil {
			f.Fatal(err)
		}
		trusted, err := req.roots()
		if err != nil {
			f.Fatal(err)
		}
		judges = append(judges, bundleJudge{req: &req, roots: trusted, image: candidate{Digest: fx.id, Manifest: fx.manifest}, byDigest: true})
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, j := range judges {
			if err := j.one(b); err == nil {
				t.Error("accepted")
			} else if strings.Contains(err.Error(), "it cannot be read") {
				t.Errorf("panic: %v", err)
			}
		}
	})
}

func BenchmarkBundle(b *testing.B) {
	f := newFixture(b)
	for name, c := range map[string]struct {
		requirement string
		signing     sigtest.Signing
	}{
		"key":     {f.byKey, sigtest.Signing{Key: f.key}},
		"keyless": {f.trusted, sigtest.Signing{Email: email, Issuer: issuer, Rekor: 2, Stamp: true}},
	} {
		raw := mustJSON(b, f.sig.Bundle(sigtest.Statement{Digest: f.id}.JSON(), c.signing))
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				s := newShelf(b)
				s.attach(f.id, raw, nil)
				if v, err := f.ask(c.requirement, true, f.manifest, s.daemon()); err != nil || !v.Allowed {
					b.Fatal(v, err)
				}
			}
		})
	}
}
