package image

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// recipient is a key that layers are encrypted for.
type recipient struct {
	name    string            // as ocicrypt has it
	private map[string]string // the files that open it
	env     []string
}

func newRSA(t testing.TB) (*rsa.PrivateKey, string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func newJWE(t testing.TB) recipient {
	key, private := newRSA(t)
	pub := write(t, filepath.Join(t.TempDir(), "pub.pem"), pemOf(t, key.Public()))
	return recipient{name: "jwe:" + pub, private: map[string]string{"key.pem": private}}
}

func newPKCS7(t testing.TB) recipient {
	key, private := newRSA(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "node"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDataEncipherment}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	path := write(t, filepath.Join(t.TempDir(), "cert.pem"), cert)
	return recipient{name: "pkcs7:" + path, private: map[string]string{"key.pem": private, "cert.pem": cert}}
}

func newPGP(t testing.TB) recipient {
	needProgram(t, "gpg", "gnupg")
	g := newGPG(t)
	g.run("", "--quick-generate-key", "node@example.org", "default", "default", "never")
	return recipient{name: "pgp:node@example.org", private: map[string]string{"ring.gpg": g.run("", "--export-secret-keys", "node@example.org")}, env: g.env}
}

// sealing makes encrypted images.
type sealing struct {
	t    testing.TB
	tool string
	r    *registry.Server
}

func newSealing(t testing.TB, r *registry.Server) sealing {
	return sealing{t, trustProgram(t, "testtool"), r}
}

// add pushes an image whose layers are encrypted, but for the first.
func (s sealing) add(repo string, to recipient, img registry.Image) registry.Pushed {
	s.t.Helper()
	p := add(s.t, s.r, repo, "plain", img)
	for i := 1; i < len(p.Layers); i++ {
		out := filepath.Join(s.t.TempDir(), "layer")
		annotations := command(s.t, to.env, string(img.Layers[i].Blob()), s.tool, out, to.name)
		b, err := os.ReadFile(out)
		if err != nil {
			s.t.Fatal(err)
		}
		d, err := s.r.AddBlob(b)
		if err != nil {
			s.t.Fatal(err)
		}
		d.MediaType = p.Layers[i].MediaType + "+encrypted"
		fromJSON(s.t, annotations, &d.Annotations)
		p.Layers[i] = d
	}
	p.Manifest = s.push(repo, p, p.Layers)
	return p
}

// push gives repo:v1 other layers.
func (s sealing) push(repo string, p registry.Pushed, layers []ocispec.Descriptor) ocispec.Descriptor {
	s.t.Helper()
	config, err := os.ReadFile(filepath.Join(s.r.Root(), "blobs", "sha256", p.ID.Encoded()))
	if err != nil {
		s.t.Fatal(err)
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: layers,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: p.ID, Size: int64(len(config))}}
	raw := mustJSON(s.t, m)
	id, err := s.r.AddManifest(repo, "v1", raw)
	if err != nil {
		s.t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: id, Size: int64(len(raw))}
}

func twoLayers(name string) registry.Image {
	return registry.Image{Layers: []registry.Layer{
		registry.Files(map[string]string{"plain": "in the open"}),
		registry.Files(map[string]string{"secret": name, "large": incompressible(3<<20, byte(len(name)))}),
	}}
}

// sealedKeys is a folder of keys, and how a store gets it.
func sealedKeys(t testing.TB, program string) (dir string, with func(*Config)) {
	dir = filepath.Join(t.TempDir(), "keys")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir, func(c *Config) { c.DecryptionKeys, c.TrustProgram = []string{dir}, program }
}

func sealed(t testing.TB, what string, err error, want ...string) {
	t.Helper()
	if !errors.Is(err, ErrSealed) {
		t.Errorf("%s = %v; want ErrSealed", what, err)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s = %v; want it to have %q", what, err, w)
		}
	}
}

func secretOf(t testing.TB, s *Store, img *Image) string {
	t.Helper()
	b, err := os.ReadFile(layerTree(t, s, img.Layers[1]) + "/secret")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEncrypted(t *testing.T) {
	needRoot(t)
	program := trustProgram(t, ".")
	for scheme, make := range map[string]func(testing.TB) recipient{"jwe": newJWE, "pkcs7": newPKCS7, "pgp": newPGP} {
		for _, c := range []registry.Compression{registry.Gzip, registry.Zstd, registry.Uncompressed} {
			t.Run(scheme+" "+string(c), func(t *testing.T) {
				if c != registry.Gzip && scheme != "jwe" {
					t.Skip("the compressions do not depend on the recipient")
				}
				r := newRegistry(t, registry.Options{})
				to, other := make(t), make(t)
				img := twoLayers(scheme)
				img.Layers[1].Compression = c
				p := newSealing(t, r).add("app", to, img)
				keys, with := sealedKeys(t, program)
				s := openStore(t, t.TempDir(), with)
				ref := r.Host() + "/app:v1"
				_, err := s.Pull(t.Context(), ref, nil, PullOptions{})
				sealed(t, "Pull without keys", err, "layer 1, "+p.Layers[1].Digest.String(), "encrypted for "+scheme, "none of the 0 private keys", keys)
				isClean(t, s)
				for name, text := range other.private {
					write(t, filepath.Join(keys, name), text)
				}
				_, err = s.Pull(t.Context(), ref, nil, PullOptions{})
				sealed(t, "Pull with another's key", err, "layer 1, ", "encrypted for "+scheme, "none of the 1 private keys", scheme+" recipient 1: ")
				isClean(t, s)
				for name, text := range to.private {
					write(t, filepath.Join(keys, name), text)
				}
				if got := secretOf(t, s, mustPull(t, s, ref)); got != scheme {
					t.Errorf("the secret is %q; want %q", got, scheme)
				}
			})
		}
	}
}

// TestEncryptedAccess: what was decrypted once is of no use to who has not the key.
func TestEncryptedAccess(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	to := newJWE(t)
	seal := newSealing(t, r)
	content := twoLayers("access")
	p := seal.add("app", to, content)
	keys, with := sealedKeys(t, trustProgram(t, "."))
	root := t.TempDir()
	s := openStore(t, root, with)
	key := write(t, filepath.Join(keys, "key.pem"), to.private["key.pem"])
	ref := r.Host() + "/app:v1"
	img := mustPull(t, s, ref)
	time.Sleep(2 * clockGrain)
	admit := func(what string) error {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, root, with)
		return s.Admit(t.Context(), img.ID)
	}
	for range 2 {
		if err := admit("with the key"); err != nil {
			t.Errorf("Admit = %v; want nil", err)
		}
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	sealed(t, "Admit without the key", admit("without"), "encrypted for jwe")
	_, err := s.Pull(t.Context(), ref, nil, PullOptions{})
	sealed(t, "Pull of what is here, without the key", err, "encrypted for jwe")

	// An image that names the diff ID, which the configuration tells everybody, but does not have the content.
	bogus, err := r.AddBlob([]byte("no idea"))
	if err != nil {
		t.Fatal(err)
	}
	bogus.MediaType = ocispec.MediaTypeImageLayerGzip
	seal.push("thief", p, []ocispec.Descriptor{p.Layers[0], bogus})
	if _, err = s.Pull(t.Context(), r.Host()+"/thief:v1", nil, PullOptions{}); !errors.Is(err, ErrDigest) {
		t.Errorf("Pull(thief) = %v; want ErrDigest", err)
	}
	if _, err := s.Get(r.Host() + "/thief:v1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get(thief) = %v; want ErrNotFound", err)
	}
	if err := s.Admit(t.Context(), img.ID); err == nil {
		t.Error("Admit of the image without its key = nil; want an error")
	}
	// Who has the content needs no key.
	if err := s.Admit(t.Context(), mustPull(t, s, r.Host()+"/app:plain").ID); err != nil {
		t.Errorf("Admit of the image that was pulled in plain = %v; want nil", err)
	}
}

// TestEncryptedDamage: a manifest that anybody may write, and blobs that are what it says.
func TestEncryptedDamage(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	to := newJWE(t)
	seal := newSealing(t, r)
	p := seal.add("app", to, twoLayers("damage"))
	keys, with := sealedKeys(t, trustProgram(t, "."))
	s := openStore(t, t.TempDir(), with)
	write(t, filepath.Join(keys, "key.pem"), to.private["key.pem"])
	write(t, filepath.Join(keys, "notes.txt"), "not a key")
	blob, err := os.ReadFile(filepath.Join(r.Root(), "blobs", "sha256", p.Layers[1].Digest.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	const pub, jwe = "org.opencontainers.image.enc.pubopts", "org.opencontainers.image.enc.keys.jwe"
	for name, tc := range map[string]struct {
		change func(d *ocispec.Descriptor)
		want   string
		sealed bool
	}{
		"a bit of the ciphertext": {func(d *ocispec.Descriptor) {
			b := bytes.Clone(blob)
			b[len(b)-1] ^= 1
			n, err := r.AddBlob(b)
			if err != nil {
				t.Fatal(err)
			}
			d.Digest = n.Digest
		}, "HMAC", false},
		"no recipient":      {func(d *ocispec.Descriptor) { delete(d.Annotations, jwe) }, "name no recipient", true},
		"no annotations":    {func(d *ocispec.Descriptor) { d.Annotations = nil }, "name no recipient", true},
		"recipient garbage": {func(d *ocispec.Descriptor) { d.Annotations[jwe] = "%%%" }, "not base64", true},
		"not a packet":      {func(d *ocispec.Descriptor) { d.Annotations[jwe] = "YWJj" }, "jwe recipient 1", true},
		"no options":        {func(d *ocispec.Descriptor) { delete(d.Annotations, pub) }, "pubopts", true},
		"other cipher":      {func(d *ocispec.Descriptor) { d.Annotations[pub] = "eyJjaXBoZXIiOiJST1QxMyJ9" }, `cipher "ROT13"`, true},
		"not encrypted at all": {func(d *ocispec.Descriptor) {
			d.MediaType = ocispec.MediaTypeImageLayerGzip
		}, "", false},
	} {
		d := p.Layers[1]
		d.Annotations = map[string]string{}
		for k, v := range p.Layers[1].Annotations {
			d.Annotations[k] = v
		}
		tc.change(&d)
		seal.push("app", p, []ocispec.Descriptor{p.Layers[0], d})
		_, err := s.Pull(t.Context(), r.Host()+"/app:v1", nil, PullOptions{})
		if err == nil || errors.Is(err, ErrSealed) != tc.sealed || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Pull = %v; want an error with %q", name, err, tc.want)
		}
		isClean(t, s)
	}
}

// TestEncryptedImport: an archive with encrypted layers.
func TestEncryptedImport(t *testing.T) {
	needRoot(t)
	needProgram(t, "skopeo", "skopeo")
	r := newRegistry(t, registry.Options{})
	to := newJWE(t)
	add(t, r, "app", "v1", twoLayers("import"))
	keys, with := sealedKeys(t, trustProgram(t, "."))
	s := openStore(t, t.TempDir(), with)
	policy := write(t, filepath.Join(t.TempDir(), "policy.json"), `{"default": [{"type": "insecureAcceptAnything"}]}`)
	out := filepath.Join(t.TempDir(), "app.tar")
	// skopeo encrypts all layers.
	command(t, nil, "", "skopeo", "--policy", policy, "copy", "--src-tls-verify=false", "--encryption-key", to.name,
		"docker://"+r.Host()+"/app:v1", "oci-archive:"+out+":example.org/app:v1")
	archive, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{})
	sealed(t, "Import", err, "encrypted for jwe")
	isClean(t, s)
	key := write(t, filepath.Join(keys, "key.pem"), to.private["key.pem"])
	imgs, err := s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{})
	if err != nil || len(imgs) != 1 {
		t.Fatalf("Import = %v, %v; want one image", imgs, err)
	}
	if got := secretOf(t, s, imgs[0]); got != "import" {
		t.Errorf("the secret is %q; want import", got)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	sealed(t, "Admit without the key", s.Admit(t.Context(), imgs[0].ID))
}

// TestKeyPassword: an encrypted private key, with the password beside it.
func TestKeyPassword(t *testing.T) {
	needRoot(t)
	needProgram(t, "openssl", "openssl")
	r := newRegistry(t, registry.Options{})
	to := newJWE(t)
	newSealing(t, r).add("app", to, twoLayers("password"))
	keys, with := sealedKeys(t, trustProgram(t, "."))
	s := openStore(t, t.TempDir(), with)
	key := write(t, filepath.Join(keys, "key.pem"), command(t, nil, to.private["key.pem"], "openssl", "rsa", "-aes256", "-traditional", "-passout", "pass:geheim"))
	ref := r.Host() + "/app:v1"
	_, err := s.Pull(t.Context(), ref, nil, PullOptions{})
	sealed(t, "Pull without the password", err, key, "password")
	write(t, key+".password", "geheim\n")
	mustPull(t, s, ref)
}

// FuzzLayerKey: what cri-shim-trust answers is used only if it is whole.
func FuzzLayerKey(f *testing.F) {
	good, _ := json.Marshal(layerKey{Key: make([]byte, 32), Nonce: make([]byte, 16), HMAC: make([]byte, 32)})
	f.Add(good, []byte("x"))
	f.Add([]byte(`{"error":"no"}`), []byte(nil))
	f.Fuzz(func(t *testing.T, raw, text []byte) {
		var k layerKey
		if json.Unmarshal(raw, &k) != nil || k.check() != nil {
			return
		}
		drain, plain, genuine := k.decipher(bytes.NewReader(text))
		var out bytes.Buffer
		if _, err := out.ReadFrom(plain); err != nil || out.Len() != len(text) {
			t.Fatalf("%d bytes of %d, %v", out.Len(), len(text), err)
		}
		if _, err := out.ReadFrom(drain); err != nil {
			t.Fatal(err)
		}
		_ = genuine()
	})
}
