// Package sigtest makes signatures for tests: bundles as cosign 3 writes them, with certificates as of Fulcio, entries as
// of Rekor 1 and 2, time stamps, and the trusted root that goes with them. It is written from the formats' descriptions
// and shares no code with what verifies them, but for time stamps and the encoding of SCTs. What fails panics.
package sigtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strconv"
	"time"

	"github.com/digitorus/timestamp"
	ct "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/tls"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	ctx509util "github.com/google/certificate-transparency-go/x509util"
	"github.com/opencontainers/go-digest"
)

// MediaType is that of a bundle.
const MediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// Predicate is that of a signature by cosign.
const Predicate = "https://sigstore.dev/cosign/sign/v1"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func toJSON(v any) []byte { return must(json.Marshal(v)) }

// NewKey makes a key as cosign does.
func NewKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

// PEM is a public key as a file.
func PEM(pub crypto.PublicKey) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(pub))})
}

// Sigstore is an instance of all its services.
type Sigstore struct {
	root, fulcio, tsaCA, tsa             *x509.Certificate
	fulcioKey, tsaKey, ctKey, Rekor1     *ecdsa.PrivateKey
	Rekor2                               ed25519.PrivateKey
	rootKey                              *ecdsa.PrivateKey
	begin, end                           time.Time
	rekor1Name, rekor2Name, rekor1Origin string
}

// New makes one that exists since a year.
func New() *Sigstore {
	s := &Sigstore{
		rootKey: NewKey(), fulcioKey: NewKey(), tsaKey: NewKey(), ctKey: NewKey(), Rekor1: NewKey(),
		begin: time.Now().Add(-365 * 24 * time.Hour), end: time.Now().Add(365 * 24 * time.Hour),
		rekor1Name: "rekor.example", rekor1Origin: "rekor.example - 123456", rekor2Name: "log2026-1.rekor.example",
	}
	_, s.Rekor2, _ = ed25519.GenerateKey(rand.Reader)
	s.root = s.authority("sigstore", nil, s.rootKey, s.rootKey, 0)
	s.fulcio = s.authority("sigstore-intermediate", s.root, s.fulcioKey, s.rootKey, x509.ExtKeyUsageCodeSigning)
	tsaCAKey := NewKey()
	s.tsaCA = s.authority("tsa-intermediate", s.root, tsaCAKey, s.rootKey, x509.ExtKeyUsageTimeStamping)
	s.tsa = certificate(&x509.Certificate{
		NotBefore: s.begin, NotAfter: s.end, KeyUsage: x509.KeyUsageDigitalSignature, Subject: pkix.Name{CommonName: "tsa"},
		ExtraExtensions: []pkix.Extension{{
			Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true,
			Value: must(asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})),
		}},
	}, s.tsaCA, s.tsaKey.Public(), tsaCAKey)
	return s
}

func (s *Sigstore) authority(name string, parent *x509.Certificate, key, by *ecdsa.PrivateKey, use x509.ExtKeyUsage) *x509.Certificate {
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: name, Organization: []string{"sigstore.example"}}, NotBefore: s.begin, NotAfter: s.end,
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	if use != 0 {
		t.ExtKeyUsage = []x509.ExtKeyUsage{use}
	}
	return certificate(t, parent, key.Public(), by)
}

func certificate(t, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	if t.SerialNumber == nil {
		t.SerialNumber = must(rand.Int(rand.Reader, big.NewInt(1<<62)))
	}
	if parent == nil {
		parent = t
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, t, parent, pub, by))))
}

// FulcioPEM is the certificate authority as a policy takes it.
func (s *Sigstore) FulcioPEM() []byte {
	var b bytes.Buffer
	for _, c := range []*x509.Certificate{s.fulcio, s.root} {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

// RootPEM is the authority above it alone, and Intermediate what is between it and certificates.
func (s *Sigstore) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.root.Raw})
}

// Intermediate is the authority that signs.
func (s *Sigstore) Intermediate() *x509.Certificate { return s.fulcio }

// TrustedRoot is the same with the logs and the time stamp authority, as sigstore publishes it.
func (s *Sigstore) TrustedRoot() []byte {
	span := map[string]any{"start": s.begin.UTC().Format(time.RFC3339), "end": s.end.UTC().Format(time.RFC3339)}
	chain := func(all ...*x509.Certificate) map[string]any {
		var c []any
		for _, one := range all {
			c = append(c, map[string]any{"rawBytes": one.Raw})
		}
		return map[string]any{"uri": "https://" + all[0].Subject.CommonName + ".example", "certChain": map[string]any{"certificates": c}, "validFor": span}
	}
	log := func(at, details string, pub crypto.PublicKey, id []byte) map[string]any {
		return map[string]any{
			"baseUrl": at, "hashAlgorithm": "SHA2_256", "logId": map[string]any{"keyId": id},
			"publicKey": map[string]any{"rawBytes": must(x509.MarshalPKIXPublicKey(pub)), "keyDetails": details, "validFor": span},
		}
	}
	return toJSON(map[string]any{
		"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
		"tlogs": []any{
			log("https://"+s.rekor1Name, "PKIX_ECDSA_P256_SHA_256", s.Rekor1.Public(), keyID(s.Rekor1.Public())),
			log("https://"+s.rekor2Name, "PKIX_ED25519", s.Rekor2.Public(), s.rekor2ID()),
		},
		"ctlogs":                 []any{log("https://ct.example", "PKIX_ECDSA_P256_SHA_256", s.ctKey.Public(), keyID(s.ctKey.Public()))},
		"certificateAuthorities": []any{chain(s.fulcio, s.root)},
		"timestampAuthorities":   []any{chain(s.tsa, s.tsaCA, s.root)},
	})
}

func keyID(pub crypto.PublicKey) []byte {
	sum := sha256.Sum256(must(x509.MarshalPKIXPublicKey(pub)))
	return sum[:]
}

// rekor2ID is the key's identity as signed notes have it (C2SP signed-note).
func (s *Sigstore) rekor2ID() []byte {
	sum := sha256.Sum256(append([]byte(s.rekor2Name+"\n\x01"), s.Rekor2.Public().(ed25519.PublicKey)...))
	return sum[:]
}

// Statement is what is signed. The zero value of a field is what cosign writes.
type Statement struct {
	Digest      digest.Digest
	Type        string
	Predicate   string
	Name        string
	Annotations map[string]string
}

// JSON is the in-toto statement.
func (st Statement) JSON() []byte {
	subject := map[string]any{"digest": map[string]string{st.Digest.Algorithm().String(): st.Digest.Encoded()}}
	if st.Name != "" {
		subject["name"] = st.Name
	}
	if st.Annotations != nil {
		subject["annotations"] = st.Annotations
	}
	if st.Type == "" {
		st.Type = "https://in-toto.io/Statement/v1"
	}
	if st.Predicate == "" {
		st.Predicate = Predicate
	}
	return toJSON(map[string]any{"_type": st.Type, "subject": []any{subject}, "predicateType": st.Predicate, "predicate": map[string]any{}})
}

// Signing is how a statement is signed.
type Signing struct {
	Key           crypto.Signer // nil: a new one, with a certificate
	Cert          *x509.Certificate
	Email, URI    string
	Issuer        string
	At            time.Time // when; now, if it is zero
	Integrated    time.Time // when the log says that it was; At, if it is zero
	Rekor         int       // version of the log; 0 for none
	Stamp         bool      // a time stamp of At
	NoSCT, NoSET  bool
	Chain         []*x509.Certificate // written after Cert, as cosign does for authorities other than Fulcio; may be empty
	StampOfOthers []byte              // a signature that the time stamp is of, instead
}

// Bundle signs, and returns a bundle whose parts may be changed before it is written.
func (s *Sigstore) Bundle(statement []byte, g Signing) map[string]any {
	if g.At.IsZero() {
		g.At = time.Now()
	}
	if g.Integrated.IsZero() {
		g.Integrated = g.At
	}
	const payloadType = "application/vnd.in-toto+json"
	pae := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(statement), statement)
	material := map[string]any{}
	var verifier []byte // PEM
	var v2 map[string]any
	if g.Key == nil || g.Cert != nil {
		if g.Key == nil {
			g.Key = NewKey()
		}
		if g.Cert == nil {
			g.Cert = s.Issue(g)
		}
		if g.Chain == nil {
			material["certificate"] = map[string]any{"rawBytes": g.Cert.Raw}
		} else {
			var all []any
			for _, c := range append([]*x509.Certificate{g.Cert}, g.Chain...) {
				all = append(all, map[string]any{"rawBytes": c.Raw})
			}
			material["x509CertificateChain"] = map[string]any{"certificates": all}
		}
		verifier = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.Cert.Raw})
		v2 = map[string]any{"x509Certificate": map[string]any{"rawBytes": g.Cert.Raw}}
	} else {
		material["publicKey"] = map[string]any{"hint": base64.StdEncoding.EncodeToString(keyID(g.Key.Public()))}
		verifier = PEM(g.Key.Public())
		v2 = map[string]any{"publicKey": map[string]any{"rawBytes": must(x509.MarshalPKIXPublicKey(g.Key.Public()))}}
	}
	sig := sign(g.Key, pae)
	switch g.Rekor {
	case 1:
		material["tlogEntries"] = []any{s.entry1(statement, pae, sig, verifier, g)}
	case 2:
		v2["keyDetails"] = "PKIX_ECDSA_P256_SHA_256"
		material["tlogEntries"] = []any{s.entry2(pae, sig, v2)}
	}
	if g.Stamp {
		of := sig
		if g.StampOfOthers != nil {
			of = g.StampOfOthers
		}
		material["timestampVerificationData"] = map[string]any{"rfc3161Timestamps": []any{map[string]any{"signedTimestamp": s.stamp(of, g.At)}}}
	}
	return map[string]any{
		"mediaType": MediaType, "verificationMaterial": material,
		"dsseEnvelope": map[string]any{"payload": statement, "payloadType": payloadType, "signatures": []any{map[string]any{"sig": sig}}},
	}
}

// Issue makes a certificate that is good for ten minutes, as Fulcio does.
func (s *Sigstore) Issue(g Signing) *x509.Certificate {
	t := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<62))), NotBefore: g.At.Add(-time.Minute), NotAfter: g.At.Add(9 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}, Value: must(asn1.MarshalWithParams(g.Issuer, "utf8"))}},
	}
	if g.Email != "" {
		t.EmailAddresses = []string{g.Email}
	}
	if g.URI != "" {
		t.URIs = []*url.URL{must(url.Parse(g.URI))}
	}
	if !g.NoSCT {
		pre := certificate(t, s.fulcio, g.Key.Public(), s.fulcioKey)
		t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier(ctx509.OIDExtensionCTSCT), Value: s.sct(pre, g.At)})
	}
	return certificate(t, s.fulcio, g.Key.Public(), s.fulcioKey)
}

// IssueLong makes a certificate of an authority of one's own, good for a year.
func (s *Sigstore) IssueLong(key crypto.Signer, email, host string) *x509.Certificate {
	return certificate(&x509.Certificate{
		NotBefore: s.begin, NotAfter: s.end, EmailAddresses: []string{email}, DNSNames: []string{host},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}, s.fulcio, key.Public(), s.fulcioKey)
}

// sct is the promise of the log of certificates (RFC 6962, 3.2 and 3.3).
func (s *Sigstore) sct(pre *x509.Certificate, at time.Time) []byte {
	sct := ct.SignedCertificateTimestamp{SCTVersion: ct.V1, LogID: ct.LogID{KeyID: [32]byte(keyID(s.ctKey.Public()))}, Timestamp: uint64(at.UnixMilli())}
	data := must(ct.SerializeSCTSignatureInput(sct, ct.LogEntry{Leaf: ct.MerkleTreeLeaf{
		Version: ct.V1, LeafType: ct.TimestampedEntryLeafType,
		TimestampedEntry: &ct.TimestampedEntry{
			Timestamp: sct.Timestamp, EntryType: ct.PrecertLogEntryType,
			PrecertEntry: &ct.PreCert{IssuerKeyHash: sha256.Sum256(s.fulcio.RawSubjectPublicKeyInfo), TBSCertificate: pre.RawTBSCertificate},
		},
	}}))
	sct.Signature = ct.DigitallySigned{Algorithm: tls.SignatureAndHashAlgorithm{Hash: tls.SHA256, Signature: tls.ECDSA}, Signature: sign(s.ctKey, data)}
	list := must(ctx509util.MarshalSCTsIntoSCTList([]*ct.SignedCertificateTimestamp{&sct}))
	return must(asn1.Marshal(must(tls.Marshal(*list))))
}

// sign signs as the key does by default: ECDSA over the hash of its size, Ed25519 over the message.
func sign(key crypto.Signer, message []byte) []byte {
	if k, ok := key.(ed25519.PrivateKey); ok {
		return ed25519.Sign(k, message)
	}
	if k, ok := key.(*ecdsa.PrivateKey); ok && k.Curve == elliptic.P384() {
		sum := sha512.Sum384(message)
		return must(key.Sign(rand.Reader, sum[:], crypto.SHA384))
	}
	sum := sha256.Sum256(message)
	return must(key.Sign(rand.Reader, sum[:], crypto.SHA256))
}

// entry1 is one of Rekor 1, with its promise (SET) and a proof in a tree of two.
func (s *Sigstore) entry1(statement, pae, sig, verifier []byte, g Signing) map[string]any {
	hash := func(b []byte) map[string]any {
		sum := sha256.Sum256(b)
		return map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}
	}
	body := toJSON(map[string]any{"apiVersion": "0.0.1", "kind": "dsse", "spec": map[string]any{
		"envelopeHash": hash(pae), "payloadHash": hash(statement),
		"signatures": []any{map[string]any{"signature": base64.StdEncoding.EncodeToString(sig), "verifier": verifier}},
	}})
	id := keyID(s.Rekor1.Public())
	e := map[string]any{
		"logIndex": "1001", "logId": map[string]any{"keyId": id}, "kindVersion": map[string]any{"kind": "dsse", "version": "0.0.1"},
		"integratedTime": strconv.FormatInt(g.Integrated.Unix(), 10), "canonicalizedBody": body,
		"inclusionProof": proof(body, s.rekor1Origin, s.rekor1Name, id[:4], s.Rekor1),
	}
	if !g.NoSET {
		// Keys in order, no spaces: the canonical form (RFC 8785).
		set := toJSON(map[string]any{"body": body, "integratedTime": g.Integrated.Unix(), "logID": hex.EncodeToString(id), "logIndex": 1001})
		e["inclusionPromise"] = map[string]any{"signedEntryTimestamp": sign(s.Rekor1, set)}
	}
	return e
}

// entry2 is one of Rekor 2, which has a proof and no time.
func (s *Sigstore) entry2(pae, sig []byte, verifier map[string]any) map[string]any {
	sum := sha256.Sum256(pae)
	body := toJSON(map[string]any{"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": map[string]any{"hashedRekordV002": map[string]any{
		"data":      map[string]any{"algorithm": "SHA2_256", "digest": sum[:]},
		"signature": map[string]any{"content": sig, "verifier": verifier},
	}}})
	id := s.rekor2ID()
	return map[string]any{
		"logIndex": "1", "logId": map[string]any{"keyId": id}, "kindVersion": map[string]any{"kind": "hashedrekord", "version": "0.0.2"},
		"integratedTime": "0", "canonicalizedBody": body,
		"inclusionProof": proof(body, s.rekor2Name, s.rekor2Name, id[:4], s.Rekor2),
	}
}

// proof shows that body is the second leaf of a tree of two (RFC 6962, 2.1), whose root the log has signed.
func proof(body []byte, origin, name string, keyHash []byte, key crypto.Signer) map[string]any {
	leaf := func(b []byte) []byte { sum := sha256.Sum256(append([]byte{0}, b...)); return sum[:] }
	first, second := leaf([]byte("another")), leaf(body)
	root := sha256.Sum256(append(append([]byte{1}, first...), second...))
	text := fmt.Sprintf("%s\n2\n%s\n", origin, base64.StdEncoding.EncodeToString(root[:]))
	note := fmt.Sprintf("%s\n— %s %s\n", text, name, base64.StdEncoding.EncodeToString(append(bytes.Clone(keyHash), sign(key, []byte(text))...)))
	return map[string]any{
		"logIndex": "1", "treeSize": "2", "rootHash": root[:], "hashes": []any{first}, "checkpoint": map[string]any{"envelope": note},
	}
}

// stamp is a time stamp of a signature (RFC 3161).
func (s *Sigstore) stamp(sig []byte, at time.Time) []byte {
	req := must(timestamp.ParseRequest(must(timestamp.CreateRequest(bytes.NewReader(sig), &timestamp.RequestOptions{Hash: crypto.SHA256}))))
	t := timestamp.Timestamp{
		HashAlgorithm: req.HashAlgorithm, HashedMessage: req.HashedMessage, Time: at,
		Policy: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}, ExtraExtensions: req.Extensions,
	}
	return must(t.CreateResponseWithOpts(s.tsa, s.tsaKey, crypto.SHA256))
}
