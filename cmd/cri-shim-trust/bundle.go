package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/signature"
)

// Cosign 3 signs with a bundle: one JSON document with an in-toto statement about a digest, its signature, and what
// proves who made it when. go.podman.io/image reads none; what a bundle proves is checked by sigstore-go here, and what
// it says of the image's name is checked by go.podman.io/image again.

const (
	bundlePrefix    = "application/vnd.dev.sigstore.bundle"
	predicateNote   = "dev.sigstore.bundle.predicateType" // of a referrer: what is in its bundle
	signPredicate   = "https://sigstore.dev/cosign/sign/v1"
	maxBundle       = 1 << 20
	identityKey     = "docker-reference" // cosign sign --annotations docker-reference=NAME
	statementPrefix = "https://in-toto.io/Statement/"
)

// attachedBundle is a bundle and the referrer that brought it.
type attachedBundle struct {
	from digest.Digest
	raw  []byte
}

// statement is what is read of an in-toto statement.
type statement struct {
	Type          string `json:"_type"`
	PredicateType string `json:"predicateType"`
	Subject       []struct {
		Name        string            `json:"name"`
		Digest      map[string]string `json:"digest"`
		Annotations map[string]any    `json:"annotations"`
	} `json:"subject"`
}

// claims are the names that the statement says the image has; none if it is about a digest alone, as cosign's are.
func (s *statement) claims(id digest.Digest) (all []string) {
	for _, sub := range s.Subject {
		if sub.Digest[id.Algorithm().String()] != id.Encoded() {
			continue
		}
		if name, ok := sub.Annotations[identityKey].(string); ok {
			all = append(all, name)
		} else if sub.Name != "" {
			all = append(all, sub.Name)
		}
	}
	return all
}

// bundleJudge says whether bundles meet a requirement.
type bundleJudge struct {
	req      *sigstoreSigned
	roots    *roots
	image    candidate
	ref      reference.Named
	byDigest bool // a bundle that names no repository will do
}

// accept is nil if one of the bundles is accepted.
func (j *bundleJudge) accept(all []attachedBundle) error {
	var refused []error
	for _, b := range all {
		err := j.one(b.raw)
		if err == nil {
			return nil
		}
		refused = append(refused, fmt.Errorf("bundle %s: %w", b.from, err))
	}
	return errors.Join(refused...)
}

func (j *bundleJudge) one(raw []byte) (err error) {
	defer func() {
		// What parses it are libraries, and it is anybody's: one bundle must not stand for the others.
		if p := recover(); p != nil {
			err = fmt.Errorf("it cannot be read: %v", p)
		}
	}()
	if len(raw) > maxBundle {
		return fmt.Errorf("more than %d bytes", maxBundle)
	}
	b, err := j.read(raw)
	if err != nil {
		return err
	}
	envelope := b.GetDsseEnvelope()
	if envelope == nil {
		return errors.New("a signature of a file, and not a statement about an image")
	}
	if err := j.verify(b); err != nil {
		return err
	}
	var s statement
	if err := json.Unmarshal(envelope.GetPayload(), &s); err != nil {
		return fmt.Errorf("statement: %w", err)
	}
	if !strings.HasPrefix(s.Type, statementPrefix) {
		return fmt.Errorf("_type %.100q is no in-toto statement", s.Type)
	}
	if s.PredicateType != signPredicate {
		return fmt.Errorf("predicateType %.100q: an attestation, and not a signature (%s)", s.PredicateType, signPredicate)
	}
	return j.identity(s.claims(j.image.Digest))
}

// read decodes a bundle. Where the policy has an authority of one's own it may have a chain of certificates, which cosign
// writes then and version 0.3 of the format has no place for.
func (j *bundleJudge) read(raw []byte) (*bundle.Bundle, error) {
	var b bundle.Bundle
	err := b.UnmarshalJSON(raw)
	if err != nil && j.req.PKI != nil && b.Bundle != nil {
		if with, err := bundle.NewBundle(b.Bundle, bundle.AllowCertificateChain()); err == nil {
			return with, nil
		}
	}
	return &b, err
}

// verify proves who has signed the statement, that it was logged if the policy says so, and that it is about the image.
func (j *bundleJudge) verify(b *bundle.Bundle) error {
	content, err := b.VerificationContent()
	if err != nil {
		return err
	}
	cert := content.Certificate()
	switch wanted := j.req.Fulcio != nil || j.req.PKI != nil; {
	case wanted && cert == nil:
		return errors.New("signed with a key; the policy wants a certificate")
	case !wanted && cert != nil:
		return errors.New("signed with a certificate; the policy wants a key")
	}
	sum, err := hex.DecodeString(j.image.Digest.Encoded())
	if err != nil {
		return err
	}
	entries, err := b.TlogEntries()
	if err != nil {
		return err
	}
	m := &material{roots: j.roots}
	if m.logs, err = j.roots.logsFor(entries); err != nil {
		return err
	}
	artifact := verify.WithArtifactDigest(j.image.Digest.Algorithm().String(), sum)
	options := []verify.VerifierOption{verify.WithoutStatementPredicate()}
	if j.roots.logged() {
		options = append(options, verify.WithTransparencyLog(1))
	}
	switch {
	case j.req.Fulcio != nil:
		return j.verifyFulcio(b, cert, m, artifact, options)
	case j.req.PKI != nil:
		m.roots = j.roots.withIntermediates(content.Intermediates())
		return j.verifyPKI(b, cert, m, artifact, options)
	}
	return j.verifyKeys(b, m, artifact, options)
}

func (j *bundleJudge) verifyKeys(b *bundle.Bundle, m *material, artifact verify.ArtifactPolicyOption, options []verify.VerifierOption) error {
	var refused []error
	for _, m.key = range j.roots.keys {
		v, err := verify.NewVerifier(m, append(options, verify.WithNoObserverTimestamps())...)
		if err != nil {
			return err
		}
		if _, err = v.Verify(b, verify.NewPolicy(artifact, verify.WithKey())); err == nil {
			return nil
		}
		if !slices.ContainsFunc(refused, func(was error) bool { return was.Error() == err.Error() }) {
			refused = append(refused, err)
		}
	}
	return errors.Join(refused...)
}

func (j *bundleJudge) verifyFulcio(b *bundle.Bundle, cert *x509.Certificate, m *material, artifact verify.ArtifactPolicyOption, options []verify.VerifierOption) error {
	f := j.req.Fulcio
	options = append(options, verify.WithObserverTimestamps(1))
	if len(j.roots.ct) > 0 {
		options = append(options, verify.WithSignedCertificateTimestamps(1))
	}
	who, err := verify.NewShortCertificateIdentity(f.OIDCIssuer, "", f.SubjectEmail, "")
	if err != nil {
		return err
	}
	v, err := verify.NewVerifier(m, options...)
	if err != nil {
		return err
	}
	if _, err := v.Verify(b, verify.NewPolicy(artifact, verify.WithCertificateIdentity(who))); err != nil {
		if len(j.roots.tsas) == 0 && len(b.GetVerificationMaterial().GetTimestampVerificationData().GetRfc3161Timestamps()) > 0 {
			err = fmt.Errorf("%w (it has a time stamp, and the policy no authority for those: a trusted_root.json has them)", err)
		}
		return err
	}
	// The identity is text to the library. An address must not be met by a name that is none.
	if strings.Contains(f.SubjectEmail, "://") {
		for _, u := range cert.URIs {
			if u.String() == f.SubjectEmail {
				return nil
			}
		}
		return fmt.Errorf("certificate: URI %q not found (got %q)", f.SubjectEmail, cert.URIs)
	}
	if !slices.Contains(cert.EmailAddresses, f.SubjectEmail) {
		return fmt.Errorf("certificate: email %q not found (got %q)", f.SubjectEmail, cert.EmailAddresses)
	}
	return nil
}

// verifyPKI is for certificates that live longer than a signature takes, and which no log knows of.
func (j *bundleJudge) verifyPKI(b *bundle.Bundle, cert *x509.Certificate, m *material, artifact verify.ArtifactPolicyOption, options []verify.VerifierOption) error {
	v, err := verify.NewVerifier(m, append(options, verify.WithCurrentTime())...)
	if err != nil {
		return err
	}
	if _, err := v.Verify(b, verify.NewPolicy(artifact, verify.WithoutIdentitiesUnsafe())); err != nil {
		return err
	}
	p := j.req.PKI
	if p.SubjectEmail != "" && !slices.Contains(cert.EmailAddresses, p.SubjectEmail) {
		return fmt.Errorf("certificate: email %q not found (got %q)", p.SubjectEmail, cert.EmailAddresses)
	}
	if p.SubjectHostname != "" {
		if err := cert.VerifyHostname(p.SubjectHostname); err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
	}
	if p.SubjectEmail == "" && p.SubjectHostname == "" {
		return errors.New("pki: neither subjectEmail nor subjectHostname")
	}
	return nil
}

// identity compares the names that the statement gives to the image with signedIdentity.
func (j *bundleJudge) identity(claims []string) error {
	if len(claims) == 0 {
		if j.byDigest {
			return nil
		}
		return fmt.Errorf("the signature is good for the digest, but it names no repository, and signedIdentity %s wants one: "+
			"sign with --annotations %s=NAME, or have \"bundles-by-digest: true\" in registries.d", j.req.SignedIdentity, identityKey)
	}
	var refused []error
	for _, name := range claims {
		err := j.matches(name)
		if err == nil {
			return nil
		}
		refused = append(refused, err)
	}
	return errors.Join(refused...)
}

// matches asks go.podman.io/image, which compares names in signatures of its own kind only: so it gets one, by a key
// that is known to nobody else.
func (j *bundleJudge) matches(name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	pub, err := cryptoutils.MarshalPublicKeyToPEM(key.Public())
	if err != nil {
		return err
	}
	raw, err := json.Marshal(map[string]any{"default": []any{
		map[string]any{"type": "sigstoreSigned", "keyData": pub, "signedIdentity": j.req.SignedIdentity},
	}})
	if err != nil {
		return err
	}
	policy, err := signature.NewPolicyFromBytes(raw)
	if err != nil {
		return err
	}
	payload, err := json.Marshal(map[string]any{"critical": map[string]any{
		"identity": map[string]any{"docker-reference": name},
		"image":    map[string]any{"docker-manifest-digest": j.image.Digest},
		"type":     "cosign container image signature",
	}, "optional": nil})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(payload)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		return err
	}
	file, err := sigstoreFile(simpleSigning, payload, map[string]string{
		"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig),
	})
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cri-shim-trust-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := writeDir(dir, j.image.Manifest, [][]byte{file}); err != nil {
		return err
	}
	img, done, err := open(dir, j.ref)
	if err != nil {
		return err
	}
	defer done()
	return ask(policy.Default[0], img)
}
