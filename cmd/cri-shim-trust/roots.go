package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
)

// sigstoreSigned is that requirement of a policy; of the others it has the files.
type sigstoreSigned struct {
	Type                string
	KeyPath             string
	KeyPaths            []string
	KeyData             []byte
	KeyDatas            [][]byte
	RekorPublicKeyPath  string
	RekorPublicKeyPaths []string
	RekorPublicKeyData  []byte
	RekorPublicKeyDatas [][]byte
	Fulcio              *struct {
		CAPath                   string
		CAData                   []byte
		OIDCIssuer, SubjectEmail string
	}
	PKI *struct {
		CARootsPath, CAIntermediatesPath string
		CARootsData, CAIntermediatesData []byte
		SubjectEmail, SubjectHostname    string
	}
	SignedIdentity json.RawMessage
}

// given is what a policy gives, by path or in itself.
type given struct {
	name string // for errors
	data []byte
}

// trustedRoot is whether it is sigstore's trusted_root.json and not PEM.
func (g given) trustedRoot() bool { return bytes.HasPrefix(bytes.TrimSpace(g.data), []byte("{")) }

func gather(label string, paths []string, datas [][]byte) (all []given, err error) {
	for _, p := range paths {
		if p == "" {
			continue
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		all = append(all, given{p, b})
	}
	for _, b := range datas {
		if b != nil {
			all = append(all, given{label, b})
		}
	}
	return all, nil
}

func (r *sigstoreSigned) keys() ([]given, error) {
	return gather("the policy's key", append([]string{r.KeyPath}, r.KeyPaths...), append([][]byte{r.KeyData}, r.KeyDatas...))
}

func (r *sigstoreSigned) logs() ([]given, error) {
	return gather("the policy's Rekor key", append([]string{r.RekorPublicKeyPath}, r.RekorPublicKeyPaths...),
		append([][]byte{r.RekorPublicKeyData}, r.RekorPublicKeyDatas...))
}

func (r *sigstoreSigned) authorities() (all []given, err error) {
	switch {
	case r.Fulcio != nil:
		return gather("the policy's CA", []string{r.Fulcio.CAPath}, [][]byte{r.Fulcio.CAData})
	case r.PKI != nil:
		return gather("the policy's CA", []string{r.PKI.CARootsPath}, [][]byte{r.PKI.CARootsData})
	}
	return nil, nil
}

// roots are what one requirement trusts.
type roots struct {
	root.BaseTrustedMaterial
	keys []signature.Verifier // one of them has signed
	cas  []root.CertificateAuthority
	tsas []root.TimestampingAuthority
	ct   map[string]*root.TransparencyLog
	logs map[string]*root.TransparencyLog // with an address, of a trusted root
	bare []crypto.PublicKey               // keys of logs without one
	pem  bool                             // what is there is PEM, which legacy signatures can be judged by, too
}

func (r *roots) TimestampingAuthorities() []root.TimestampingAuthority { return r.tsas }
func (r *roots) FulcioCertificateAuthorities() []root.CertificateAuthority {
	return r.cas
}
func (r *roots) CTLogs() map[string]*root.TransparencyLog { return r.ct }
func (r *roots) logged() bool                             { return len(r.logs)+len(r.bare) > 0 }

func (r *sigstoreSigned) roots() (*roots, error) {
	t := &roots{ct: map[string]*root.TransparencyLog{}, logs: map[string]*root.TransparencyLog{}, pem: true}
	keys, err := r.keys()
	if err != nil {
		return nil, err
	}
	for _, g := range keys {
		if err := t.addKey(g); err != nil {
			return nil, fmt.Errorf("key %s: %w", g.name, err)
		}
	}
	cas, err := r.authorities()
	if err != nil {
		return nil, err
	}
	logs, err := r.logs()
	if err != nil {
		return nil, err
	}
	for _, g := range cas {
		if err := t.addCA(g, r); err != nil {
			return nil, fmt.Errorf("authority %s: %w", g.name, err)
		}
	}
	for _, g := range logs {
		if err := t.addLog(g); err != nil {
			return nil, fmt.Errorf("key of a log %s: %w", g.name, err)
		}
	}
	return t, nil
}

// addKey adds a key with the hashes that cosign has signed with: the key's own, and SHA-256 before that.
func (r *roots) addKey(g given) error {
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(g.data)
	if err != nil {
		return err
	}
	v, err := signature.LoadDefaultVerifier(pub)
	if err != nil {
		return err
	}
	r.keys = append(r.keys, v)
	if k, ok := pub.(*ecdsa.PublicKey); ok && k.Curve != elliptic.P256() {
		v, err := signature.LoadVerifier(pub, crypto.SHA256)
		if err != nil {
			return err
		}
		r.keys = append(r.keys, v)
	}
	return nil
}

func (r *roots) addCA(g given, req *sigstoreSigned) error {
	if g.trustedRoot() {
		t, err := r.addTrustedRoot(g)
		if err != nil {
			return err
		}
		if req.PKI != nil {
			return errors.New("a trusted root; \"pki\" takes certificates (PEM)")
		}
		if len(t.FulcioCertificateAuthorities()) == 0 {
			return errors.New("the trusted root has no certificate authority")
		}
		r.cas = append(r.cas, t.FulcioCertificateAuthorities()...)
		return nil
	}
	ca, err := newPool(g.data)
	if err != nil {
		return err
	}
	if req.PKI != nil {
		more, err := gather("the policy's intermediate CA", []string{req.PKI.CAIntermediatesPath}, [][]byte{req.PKI.CAIntermediatesData})
		if err != nil {
			return err
		}
		for _, g := range more {
			if !ca.intermediates.AppendCertsFromPEM(g.data) {
				return fmt.Errorf("%s: no certificate (PEM)", g.name)
			}
		}
	}
	r.cas = append(r.cas, ca)
	return nil
}

func (r *roots) addLog(g given) error {
	if g.trustedRoot() {
		t, err := r.addTrustedRoot(g)
		if err != nil {
			return err
		}
		if len(t.RekorLogs()) == 0 {
			return errors.New("the trusted root has no transparency log")
		}
		maps.Copy(r.logs, t.RekorLogs())
		return nil
	}
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(g.data)
	if err != nil {
		return err
	}
	r.bare = append(r.bare, pub)
	return nil
}

// addTrustedRoot takes what no policy has a field for: timestamp authorities, and logs of certificates.
func (r *roots) addTrustedRoot(g given) (*root.TrustedRoot, error) {
	r.pem = false
	t, err := root.NewTrustedRootFromJSON(g.data)
	if err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	r.tsas = append(r.tsas, t.TimestampingAuthorities()...)
	maps.Copy(r.ct, t.CTLogs())
	return t, nil
}

// pool is certificate authorities without a time: each of the certificates is trusted, as podman has it.
type pool struct{ roots, intermediates *x509.CertPool }

func newPool(pem []byte) (pool, error) {
	p := pool{x509.NewCertPool(), x509.NewCertPool()}
	if !p.roots.AppendCertsFromPEM(pem) {
		return p, errors.New("no certificate (PEM)")
	}
	return p, nil
}

// withIntermediates are the roots for one bundle, which brings certificates between its own and an authority's.
func (r *roots) withIntermediates(certs []*x509.Certificate) *roots {
	with := *r
	with.cas = nil
	for _, ca := range r.cas {
		if p, ok := ca.(pool); ok && len(certs) > 0 {
			p.intermediates = p.intermediates.Clone()
			for _, c := range certs {
				p.intermediates.AddCert(c)
			}
			ca = p
		}
		with.cas = append(with.cas, ca)
	}
	return &with
}

// Verify implements root.CertificateAuthority.
func (p pool) Verify(leaf *x509.Certificate, at time.Time) ([][]*x509.Certificate, error) {
	return leaf.Verify(x509.VerifyOptions{
		Roots: p.roots, Intermediates: p.intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	})
}

// material is the roots as one bundle needs them.
type material struct {
	*roots
	key  signature.Verifier // nil: a certificate is wanted
	logs map[string]*root.TransparencyLog
}

// RekorLogs implements root.TrustedMaterial.
func (m *material) RekorLogs() map[string]*root.TransparencyLog { return m.logs }

// PublicKeyVerifier implements root.TrustedMaterial. The hint is a bundle's own: it decides nothing.
func (m *material) PublicKeyVerifier(string) (root.TimeConstrainedVerifier, error) {
	if m.key == nil {
		return nil, errors.New("signed with a key; the policy wants a certificate")
	}
	return root.NewExpiringKey(m.key, time.Time{}, time.Time{}), nil
}

// logsFor are the logs that could have made the entries. The identity of a log of Rekor 2 is made of its key and its
// name, and a policy has the key alone; the name is taken from the entry, for what it says is signed with the key.
func (r *roots) logsFor(entries []*tlog.Entry) (map[string]*root.TransparencyLog, error) {
	logs := maps.Clone(r.logs)
	for _, pub := range r.bare {
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			return nil, err
		}
		id := sha256.Sum256(der)
		logs[hex.EncodeToString(id[:])] = bareLog(pub, id[:], "")
		for _, e := range entries {
			text := e.TransparencyLogEntry().GetInclusionProof().GetCheckpoint().GetEnvelope()
			origin, _, _ := strings.Cut(text, "\n")
			at := "https://" + origin
			if u, err := url.Parse(at); err != nil || u.Hostname() != origin {
				continue // of Rekor 1, or nothing
			}
			if _, id, err := note.KeyHash(origin, pub); err == nil {
				logs[hex.EncodeToString(id)] = bareLog(pub, id, at)
			}
		}
	}
	return logs, nil
}

func bareLog(pub crypto.PublicKey, id []byte, at string) *root.TransparencyLog {
	return &root.TransparencyLog{
		BaseURL: at, ID: id, PublicKey: pub, HashFunc: crypto.SHA256, SignatureHashFunc: signatureHash(pub),
		ValidityPeriodStart: time.Unix(1, 0), // since ever, and not never
	}
}

// signatureHash is what a log with that key hashes with before it signs.
func signatureHash(pub crypto.PublicKey) crypto.Hash {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P384():
			return crypto.SHA384
		case elliptic.P521():
			return crypto.SHA512
		}
	case ed25519.PublicKey:
		return crypto.SHA512
	}
	return crypto.SHA256
}
