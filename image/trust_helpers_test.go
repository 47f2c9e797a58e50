package image

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// trustProgram builds cri-shim-trust, or another program of its module.
func trustProgram(t testing.TB, pkg string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("../cmd/cri-shim-trust/build.sh", out, pkg)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, b)
	}
	return out
}

// needProgram skips the test if a program of the distribution is missing.
func needProgram(t testing.TB, name, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s (Debian's package %s)", name, pkg)
	}
}

func command(t testing.TB, env []string, stdin string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, errs.String())
	}
	return string(out)
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// signer is a key that signs as cosign does.
type signer struct {
	key crypto.Signer
	pub string // PEM
}

func newSigner(t testing.TB) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, pemOf(t, key.Public())}
}

func pemOf(t testing.TB, pub crypto.PublicKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func (s signer) sign(t testing.TB, payload []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(payload)
	sig, err := s.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// claim is cosign's payload: that this digest is this repository's.
func claim(identity string, id digest.Digest) []byte {
	b, _ := json.Marshal(map[string]any{
		"critical": map[string]any{
			"identity": map[string]any{"docker-reference": identity},
			"image":    map[string]any{"docker-manifest-digest": id},
			"type":     "cosign container image signature",
		},
		"optional": nil,
	})
	return b
}

// attachment is a signature in a registry.
type attachment struct {
	payload     []byte
	signature   []byte
	annotations map[string]string // more of them
}

func (s signer) attach(t testing.TB, identity string, id digest.Digest) attachment {
	payload := claim(identity, id)
	return attachment{payload: payload, signature: s.sign(t, payload)}
}

// push stores a as cosign does: under a tag made of the digest of the image or, as OCI 1.1 has it, as a referrer.
func (a attachment) push(t testing.TB, r *registry.Server, repo string, of ocispec.Descriptor, referrer bool) {
	t.Helper()
	layer, err := r.AddBlob(a.payload)
	if err != nil {
		t.Fatal(err)
	}
	layer.MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
	layer.Annotations = map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(a.signature)}
	for k, v := range a.annotations {
		layer.Annotations[k] = v
	}
	config, err := r.AddBlob([]byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	config.MediaType = ocispec.MediaTypeImageConfig
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}}
	tag := strings.Replace(of.Digest.String(), ":", "-", 1) + ".sig"
	if referrer {
		tag, m.ArtifactType = "", "application/vnd.dev.cosign.artifact.sig.v1+json"
		m.Subject = &ocispec.Descriptor{MediaType: of.MediaType, Digest: of.Digest, Size: of.Size}
	}
	if _, err := r.AddManifest(repo, tag, mustJSON(t, m)); err != nil {
		t.Fatal(err)
	}
}
