package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/cmd/cri-shim-trust/sigtest"
)

// claim is what cosign signed before version 3.
func claim(t testing.TB, name string, id digest.Digest) []byte {
	return mustJSON(t, map[string]any{
		"critical": map[string]any{
			"identity": map[string]any{"docker-reference": name}, "image": map[string]any{"docker-manifest-digest": id},
			"type": "cosign container image signature",
		},
		"optional": nil,
	})
}

// attachOld puts a signature of the old kind where cosign put it.
func (s *shelf) attachOld(of digest.Digest, key *ecdsa.PrivateKey, signed, payload []byte) {
	s.t.Helper()
	sum := sha256.Sum256(signed)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		s.t.Fatal(err)
	}
	layer := ocispec.Descriptor{
		MediaType: simpleSigning, Digest: digest.FromBytes(payload), Size: int64(len(payload)),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)},
	}
	s.blobs[layer.Digest.String()] = payload
	s.manifests[strings.Replace(of.String(), ":", "-", 1)+".sig"] = mustJSON(s.t, ocispec.Manifest{Layers: []ocispec.Descriptor{layer}})
}

// TestPolicy: which requirements count, and that a signature of the old kind is of the key, the digest and the name.
func TestPolicy(t *testing.T) {
	p := policies{t, t.TempDir()}
	key, other := sigtest.NewKey(), sigtest.NewKey()
	signedBy := func(name string, k *ecdsa.PrivateKey) string {
		path := p.write(name, sigtest.PEM(k.Public()))
		return fmt.Sprintf(`{"type": "sigstoreSigned", "keyPath": %q, "signedIdentity": {"type": "matchRepository"}}`, path)
	}
	good, bad := signedBy("key.pub", key), signedBy("other.pub", other)
	p.write("registries.d/r.yaml", fmt.Appendf(nil, "default-docker:\n  use-sigstore-attachments: true\n  lookaside: file://%s/none\n", p.dir))
	manifest := []byte(`{"schemaVersion": 2}`)
	id := digest.FromBytes(manifest)
	const name, accept, reject = "registry.example/team/app", `{"type": "insecureAcceptAnything"}`, `{"type": "reject"}`
	at := func(scope, requirements string) string { return fmt.Sprintf(`{%q: [%s]}`, scope, requirements) }
	right := claim(t, name, id)
	for what, tc := range map[string]struct {
		scopes string // of the transport docker
		key    *ecdsa.PrivateKey
		signed []byte
		// payload is what the registry has, if that is not what was signed.
		payload, manifest []byte
		want              string
	}{
		"good":                {scopes: at(name, good), key: key, signed: right},
		"other key":           {scopes: at(name, bad), key: key, signed: right, want: "cryptographic signature verification failed"},
		"unsigned":            {scopes: at(name, good), want: "no signature exists"},
		"payload":             {scopes: at(name, good), key: key, signed: right, payload: bytes.Replace(right, []byte("null"), []byte("{}"), 1), want: "cryptographic signature verification failed"},
		"digest":              {scopes: at(name, good), key: key, signed: claim(t, name, digest.FromString("x")), want: "does not match"},
		"name":                {scopes: at(name, good), key: key, signed: claim(t, "registry.example/team/other", id), want: "is not accepted"},
		"manifest":            {scopes: at(name, good), key: key, signed: right, manifest: []byte(`{"schemaVersion": 3}`), want: "manifest has digest"},
		"default":             {scopes: at("elsewhere.example", accept), key: key, signed: right, want: `scope "default": ` + id.String() + ": reject"},
		"repository":          {scopes: fmt.Sprintf(`{"registry.example": [%s], "": [%[1]s], %q: [%s]}`, accept, name, reject), want: "reject"},
		"host":                {scopes: fmt.Sprintf(`{"": [%s], "registry.example": [%s]}`, accept, reject), want: "reject"},
		"any":                 {scopes: at("", accept)},
		"both keys":           {scopes: at(name, good+", "+bad), key: key, signed: right, want: "other.pub"},
		"both keys, reversed": {scopes: at(name, bad+", "+good), key: key, signed: right, want: "other.pub"},
	} {
		t.Run(what, func(t *testing.T) {
			s := newShelf(t)
			if tc.payload == nil {
				tc.payload = tc.signed
			}
			if tc.manifest == nil {
				tc.manifest = manifest
			}
			if tc.key != nil {
				s.attachOld(id, tc.key, tc.signed, tc.payload)
			}
			v, err := judge(&policyQuestion{
				Policy:     p.write("policy.json", fmt.Appendf(nil, `{"default": [%s], "transports": {"docker": %s}}`, reject, tc.scopes)),
				Registries: filepath.Join(p.dir, "registries.d"), Reference: imageName,
				Images: []candidate{{Digest: id, MediaType: ocispec.MediaTypeImageManifest, Manifest: tc.manifest}},
			}, s.daemon())
			if err != nil {
				t.Fatal(err)
			}
			if v.Allowed != (tc.want == "") || !strings.Contains(v.Reason, tc.want) {
				t.Errorf("verdict = %v, %s; want %q", v.Allowed, v.Reason, tc.want)
			}
		})
	}
}
