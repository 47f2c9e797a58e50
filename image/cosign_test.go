package image

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// cosign is the program itself, with a folder for its keys; nothing of it goes beyond the registry.
type cosign struct {
	t       *testing.T
	program string
	dir     string
}

func newCosign(t *testing.T) *cosign {
	t.Helper()
	const how = "COSIGN=PROGRAM, or make test-cosign, which builds it"
	name := os.Getenv("COSIGN")
	if name == "" {
		name = "cosign"
	}
	program, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("COSIGN") != "" {
			t.Fatalf("COSIGN: %v", err)
		}
		t.Skip("needs cosign 3 (" + how + ")")
	}
	c := &cosign{t, program, t.TempDir()}
	var v struct{ GitVersion string }
	fromJSON(t, c.run("version", "--json"), &v)
	if !strings.HasPrefix(v.GitVersion, "v3.") {
		t.Skipf("needs cosign 3 (%s); %s is %s", how, program, v.GitVersion)
	}
	return c
}

func (c *cosign) run(args ...string) string {
	c.t.Helper()
	return command(c.t, []string{"HOME=" + c.dir, "COSIGN_PASSWORD=password", "COSIGN_EXPERIMENTAL=1"}, "", c.program, args...)
}

// keys makes a pair of them, PREFIX.key and PREFIX.pub.
func (c *cosign) keys(prefix string) (private, public string) {
	c.t.Helper()
	prefix = filepath.Join(c.dir, prefix)
	c.run("generate-key-pair", "--output-key-prefix", prefix)
	return prefix + ".key", prefix + ".pub"
}

// offline has nothing logged and no time stamped.
var offline = []string{"--yes", "--use-signing-config=false", "--tlog-upload=false"}

func (c *cosign) sign(key, image string, more ...string) {
	c.t.Helper()
	c.run(append(append([]string{"sign", "--key", key}, offline...), append(more, image)...)...)
}

// TestCosign: what cosign 3 itself writes, in both of its formats, is accepted by its key, and nothing else is.
func TestCosign(t *testing.T) {
	needRoot(t)
	c := newCosign(t)
	key, pub := c.keys("cosign")
	stranger, _ := c.keys("stranger")
	old := []string{"--new-bundle-format=false"}
	for name, o := range map[string]registry.Options{"referrers": {}, "tags": {NoReferrers: true}} {
		t.Run(name, func(t *testing.T) {
			c.t = t
			s := newSigning(t, o)
			image := map[string]ocispec.Descriptor{}
			signed := func(repo, key string, more ...string) {
				t.Helper()
				image[repo] = s.add(t, repo).Manifest
				c.sign(key, s.r.Host()+"/"+repo+"@"+image[repo].Digest.String(), more...)
			}
			signed("old", key, old...)
			signed("old-stranger", stranger, old...)
			signed("new", key)
			signed("new-stranger", stranger)
			signed("named", key, "-a", "docker-reference="+s.r.Host()+"/named")
			signed("misnamed", key, "-a", "docker-reference="+s.r.Host()+"/new")
			if !o.NoReferrers {
				signed("old-referrer", key, append(old, "--registry-referrers-mode=oci-1-1")...)
			}
			s.add(t, "unsigned")
			p := s.add(t, "attested")
			predicate := write(t, filepath.Join(c.dir, "predicate.json"), `{"builder": "nobody"}`)
			c.run(append([]string{"attest", "--key", key, "--predicate", predicate, "--type", "custom"},
				append(offline, s.r.Host()+"/attested@"+p.Manifest.Digest.String())...)...)

			// The signatures of other images; and a bundle that was changed.
			image["old-moved"], image["new-moved"], image["tampered"] = s.add(t, "old-moved").Manifest, s.add(t, "new-moved").Manifest, s.add(t, "tampered").Manifest
			moveTag(t, s.r, "old", "old-moved", image["old"].Digest, image["old-moved"].Digest)
			bundle := bundleOf(t, s.r, "new", image["new"].Digest, o.NoReferrers)
			attachBundle(t, s.r, "new-moved", bundle, image["new-moved"], o.NoReferrers)
			attachBundle(t, s.r, "tampered", retarget(t, bundle, image["new"].Digest, image["tampered"].Digest), image["tampered"], o.NoReferrers)

			s.policy(fmt.Sprintf(`{"type": "sigstoreSigned", "keyPath": %q, "signedIdentity": {"type": "matchRepository"}}`, pub))
			for _, byDigest := range []bool{false, true} {
				s.byDigest(byDigest)
				for repo, want := range map[string]string{
					"old": "", "old-referrer": "", "named": "",
					"old-stranger": "cryptographic signature verification failed", "new-stranger": "could not verify envelope",
					"old-moved": "does not match", "new-moved": "artifact digest does not match any digest in statement",
					"tampered": "could not verify envelope", "unsigned": "no signature exists", "attested": "no signature exists",
					"misnamed": s.r.Host() + `/new" is not accepted`,
					"new":      map[bool]string{false: "it names no repository"}[byDigest],
				} {
					if image[repo].Digest == "" && repo == "old-referrer" {
						continue // cosign wants the API for that
					}
					if want != "" {
						s.pull(t, repo, want)
						continue
					}
					if img := s.pull(t, repo); img != nil {
						c.verifies(pub, s.r.Host()+"/"+repo+"@"+image[repo].Digest.String(), strings.HasPrefix(repo, "old"))
						if err := s.Remove(t.Context(), img.ID); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
		})
	}
}

// TestCosignCertificate: cosign with a certificate of an authority of one's own.
func TestCosignCertificate(t *testing.T) {
	needRoot(t)
	c := newCosign(t)
	s := newSigning(t, registry.Options{})
	ca := newAuthority(t)
	sign := func(repo string, by authority, email string, more ...string) {
		t.Helper()
		key, cert := by.issue(t, email, "https://accounts.example", time.Now().Add(-time.Minute))
		der, err := x509.MarshalPKCS8PrivateKey(key.key)
		if err != nil {
			t.Fatal(err)
		}
		prefix := filepath.Join(c.dir, repo)
		private := write(t, prefix+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
		c.run("import-key-pair", "--key", private, "--output-key-prefix", prefix)
		c.sign(prefix+".key", s.r.Host()+"/"+repo+"@"+s.add(t, repo).Manifest.Digest.String(),
			append([]string{"--certificate", write(t, prefix+".crt", cert), "--certificate-chain", write(t, prefix+".ca", by.pem)}, more...)...)
	}
	sign("new", ca, "release@example.org")
	sign("old", ca, "release@example.org", "--new-bundle-format=false")
	sign("mail", ca, "mallory@example.org")
	sign("stranger", newAuthority(t), "release@example.org")
	s.byDigest(true)
	s.policy(fmt.Sprintf(`{"type": "sigstoreSigned", "pki": {"caRootsPath": %q, "subjectEmail": "release@example.org"}, "signedIdentity": {"type": "matchRepository"}}`,
		write(t, filepath.Join(s.dir, "ca.pem"), ca.pem)))
	for _, repo := range []string{"new", "old"} {
		if img := s.pull(t, repo); img != nil {
			if err := s.Remove(t.Context(), img.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.pull(t, "mail", `email "release@example.org" not found`)
	s.pull(t, "stranger", "leaf certificate verification failed")
}

// verifies asks cosign itself: what is accepted here is good there.
func (c *cosign) verifies(pub, image string, old bool) {
	c.t.Helper()
	args := []string{"verify", "--key", pub, "--insecure-ignore-tlog"}
	if old {
		args = append(args, "--new-bundle-format=false", "--experimental-oci11="+strconv.FormatBool(strings.Contains(image, "old-referrer")))
	}
	c.run(append(args, image)...)
}

// moveTag gives an image the tag with the signatures of another, which is in another repository.
func moveTag(t *testing.T, r *registry.Server, from, to string, of, is digest.Digest) {
	t.Helper()
	tag := func(id digest.Digest) string { return strings.Replace(id.String(), ":", "-", 1) + ".sig" }
	id, err := r.Resolve(from, tag(of))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.AddManifest(to, tag(is), blobOf(t, r, id)); err != nil {
		t.Fatal(err)
	}
}

func blobOf(t *testing.T, r *registry.Server, id digest.Digest) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.Root(), "blobs", "sha256", id.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// bundleOf is the one that is attached to an image.
func bundleOf(t *testing.T, r *registry.Server, repo string, of digest.Digest, tagged bool) []byte {
	t.Helper()
	var id digest.Digest
	if tagged {
		list, err := r.Resolve(repo, strings.Replace(of.String(), ":", "-", 1))
		if err != nil {
			t.Fatal(err)
		}
		var idx ocispec.Index
		fromJSON(t, string(blobOf(t, r, list)), &idx)
		if len(idx.Manifests) != 1 {
			t.Fatalf("%d referrers; want one", len(idx.Manifests))
		}
		id = idx.Manifests[0].Digest
	} else {
		entries, err := filepath.Glob(filepath.Join(r.Root(), "referrers", repo, "@"+of.Encoded(), "*"))
		if err != nil || len(entries) != 1 {
			t.Fatalf("referrers = %q, %v; want one", entries, err)
		}
		id = digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(entries[0]))
	}
	var m ocispec.Manifest
	fromJSON(t, string(blobOf(t, r, id)), &m)
	if m.ArtifactType != bundleType || len(m.Layers) != 1 {
		t.Fatalf("the referrer is %s with %d layers; want a bundle in one", m.ArtifactType, len(m.Layers))
	}
	return blobOf(t, r, m.Layers[0].Digest)
}

// retarget has a bundle speak of another image.
func retarget(t *testing.T, bundle []byte, of, is digest.Digest) []byte {
	t.Helper()
	var b map[string]json.RawMessage
	fromJSON(t, string(bundle), &b)
	var envelope map[string]json.RawMessage
	fromJSON(t, string(b["dsseEnvelope"]), &envelope)
	var payload []byte
	fromJSON(t, string(envelope["payload"]), &payload)
	if !bytes.Contains(payload, []byte(of.Encoded())) {
		t.Fatalf("statement = %s; want it to be about %s", payload, of)
	}
	envelope["payload"] = mustJSON(t, bytes.ReplaceAll(payload, []byte(of.Encoded()), []byte(is.Encoded())))
	b["dsseEnvelope"] = mustJSON(t, envelope)
	return mustJSON(t, b)
}
