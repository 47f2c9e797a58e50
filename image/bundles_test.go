package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

const bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// toSign is an order for testtool.
type toSign struct {
	Digest      digest.Digest
	Annotations map[string]string `json:",omitempty"`
	Email       string            `json:",omitempty"`
	Issuer      string            `json:",omitempty"`
	Stranger    bool              `json:",omitempty"`
}

// signed is what it delivers.
type signed struct {
	Key         []byte
	TrustedRoot []byte
	Bundles     []json.RawMessage
}

func signBundles(t testing.TB, tool string, todo ...toSign) (s signed) {
	t.Helper()
	fromJSON(t, command(t, nil, string(mustJSON(t, todo)), tool, "sigstore"), &s)
	return s
}

// bundleManifest is how cosign 3 attaches a bundle (its BUNDLE_SPEC).
func bundleManifest(bundle []byte, of ocispec.Descriptor) ocispec.Manifest {
	return ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: bundleType,
		Config:  ocispec.DescriptorEmptyJSON,
		Layers:  []ocispec.Descriptor{{MediaType: bundleType, Digest: digest.FromBytes(bundle), Size: int64(len(bundle))}},
		Subject: &ocispec.Descriptor{MediaType: of.MediaType, Digest: of.Digest, Size: of.Size},
		Annotations: map[string]string{
			"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1",
		},
	}
}

// attachBundle pushes it, and without the Referrers API its list under a tag.
func attachBundle(t testing.TB, r *registry.Server, repo string, bundle []byte, of ocispec.Descriptor, tagged bool) {
	t.Helper()
	if _, err := r.AddBlob(bundle); err != nil {
		t.Fatal(err)
	}
	raw := mustJSON(t, bundleManifest(bundle, of))
	id, err := r.AddManifest(repo, "", raw)
	if err != nil {
		t.Fatal(err)
	}
	if tagged {
		// With the type as old clients give it: that of the configuration.
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: id, Size: int64(len(raw)), ArtifactType: ocispec.MediaTypeEmptyJSON}
		if _, err := r.AddIndex(repo, strings.Replace(of.Digest.String(), ":", "-", 1), false, d); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *signing) byDigest(yes bool) {
	s.sources(fmt.Sprintf("docker:\n  %s:\n    use-sigstore-attachments: true\n    bundles-by-digest: %v\n    lookaside: file://%s/lookaside\n", s.r.Host(), yes, s.dir))
}

// TestBundles: cosign 3's signatures, from registries with the Referrers API and without, by a key and by a certificate.
func TestBundles(t *testing.T) {
	needRoot(t)
	tool := trustProgram(t, "testtool")
	for _, tagged := range []bool{false, true} {
		t.Run(fmt.Sprintf("tagged=%v", tagged), func(t *testing.T) {
			s := newSigning(t, registry.Options{NoReferrers: tagged})
			s.byDigest(true)
			repos := []string{"key", "keyless", "stranger", "tampered", "digest", "mail", "unsigned"}
			at := map[string]registry.Pushed{}
			for _, repo := range repos {
				at[repo] = s.add(t, repo)
			}
			id := func(repo string) digest.Digest { return at[repo].Manifest.Digest }
			made := signBundles(t, tool,
				toSign{Digest: id("key")}, toSign{Digest: id("keyless"), Email: "release@example.org", Issuer: "https://accounts.example"},
				toSign{Digest: id("stranger"), Stranger: true}, toSign{Digest: id("tampered")}, toSign{Digest: id("key")},
				toSign{Digest: id("mail"), Email: "mallory@example.org", Issuer: "https://accounts.example"})
			made.Bundles[3] = bytes.Replace(made.Bundles[3], []byte(`"payloadType":"application/vnd.in-toto+json"`), []byte(`"payloadType":"application/x"`), 1)
			for i, repo := range repos[:6] {
				attachBundle(t, s.r, repo, made.Bundles[i], at[repo].Manifest, tagged)
			}
			pub := write(t, filepath.Join(s.dir, "cosign.pub"), string(made.Key))
			root := write(t, filepath.Join(s.dir, "trusted_root.json"), string(made.TrustedRoot))
			const identity = `"signedIdentity": {"type": "matchRepository"}`
			what := "sigstoreSigned key " + pub + " Rekor key " + root + ": "
			s.policy(fmt.Sprintf(`{"type": "sigstoreSigned", "keyPath": %q, "rekorPublicKeyPath": %q, %s}`, pub, root, identity))
			remove := func(img *Image) {
				t.Helper()
				if img == nil {
					t.FailNow()
				}
				if err := s.Remove(t.Context(), img.ID); err != nil {
					t.Fatal(err)
				}
			}
			img := s.pull(t, "key")
			if img == nil {
				t.FailNow()
			}
			s.check(t, "Admit(key)", s.Admit(t.Context(), img.ID))
			remove(img)
			s.pull(t, "stranger", what, "bundle sha256:", "transparency log certificate does not match")
			s.pull(t, "tampered", what, "could not verify envelope")
			s.pull(t, "digest", what, "artifact digest does not match any digest in statement")
			s.pull(t, "keyless", what, "signed with a certificate; the policy wants a key")
			s.pull(t, "unsigned", what, "no bundle exists")
			img = s.pull(t, "key")

			s.policy(fmt.Sprintf(`{"type": "sigstoreSigned", "fulcio": {"caPath": %q, "oidcIssuer": "https://accounts.example",
				"subjectEmail": "release@example.org"}, "rekorPublicKeyPath": %[1]q, %s}`, root, identity))
			s.check(t, "Admit(key)", s.Admit(t.Context(), img.ID), "the policy wants a certificate")
			remove(img)
			remove(s.pull(t, "keyless"))
			s.pull(t, "mail", "release@example.org of https://accounts.example", `got "mallory@example.org"`)

			// Images need a name in their signature unless this repository's do not.
			s.byDigest(false)
			s.pull(t, "keyless", "it names no repository", "bundles-by-digest")
		})
	}
}

// TestBundlesImported: an archive may bring its signatures, listed by themselves or under a tag; and a name that is signed
// is compared with the image's.
func TestBundlesImported(t *testing.T) {
	s := newSigning(t, registry.Options{})
	tool := trustProgram(t, "testtool")
	s.add(t, "app")
	s.reopen()
	name := s.r.Host() + "/app:v1"
	s.pull(t, "app")
	archive := export(t, s.Store, name)
	if err := s.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	var idx ocispec.Index
	files, _ := tarFiles(t, archive, nil)
	fromJSON(t, files["index.json"], &idx)
	id := idx.Manifests[0].Digest
	made := signBundles(t, tool,
		toSign{Digest: id, Annotations: map[string]string{"docker-reference": s.r.Host() + "/app"}},
		toSign{Digest: id, Annotations: map[string]string{"docker-reference": s.r.Host() + "/other"}},
		toSign{Digest: id, Stranger: true})
	pub := write(t, filepath.Join(s.dir, "cosign.pub"), string(made.Key))
	s.policy(fmt.Sprintf(`{"type": "sigstoreSigned", "keyPath": %q, "signedIdentity": {"type": "matchRepository"}}`, pub))
	for _, tagged := range []bool{false, true} {
		for i, want := range []string{"", "/other\" is not accepted", "could not verify envelope"} {
			before := len(s.List())
			imgs, err := s.Import(t.Context(), bytes.NewReader(withBundle(t, archive, made.Bundles[i], tagged)), ImportOptions{})
			what := fmt.Sprintf("Import of bundle %d, tagged %v", i, tagged)
			if want != "" {
				s.check(t, what, err, want, "bundle sha256:")
				if n := len(s.List()); n != before {
					t.Errorf("%s: %d images; want %d", what, n, before)
				}
				continue
			}
			s.check(t, what, err)
			if len(imgs) != 1 {
				t.Fatalf("%s: %d images; want one", what, len(imgs))
			}
			s.check(t, what+", and Admit", s.Admit(t.Context(), imgs[0].ID)) // the registry has no signature
			if err := s.Remove(t.Context(), imgs[0].ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err := s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{})
	s.check(t, "Import without a signature", err, "no signature exists")
}

// withBundle adds a bundle to an OCI layout.
func withBundle(t *testing.T, archive, bundle []byte, tagged bool) []byte {
	t.Helper()
	files, rest := tarFiles(t, archive, func(name string) bool { return name != "index.json" })
	var idx ocispec.Index
	fromJSON(t, files["index.json"], &idx)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	put := func(name string, b []byte) {
		t.Helper()
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	add := func(mediaType string, b []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		put("blobs/sha256/"+d.Digest.Encoded(), b)
		return d
	}
	of := idx.Manifests[0]
	add("", bundle)
	if id := ocispec.DescriptorEmptyJSON; files["blobs/sha256/"+id.Digest.Encoded()] == "" {
		add("", id.Data)
	}
	d := add(ocispec.MediaTypeImageManifest, mustJSON(t, bundleManifest(bundle, of)))
	if tagged {
		d.ArtifactType = bundleType
		d = add(ocispec.MediaTypeImageIndex, mustJSON(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}}))
		d.Annotations = map[string]string{ocispec.AnnotationRefName: strings.Replace(of.Digest.String(), ":", "-", 1)}
	}
	idx.Manifests = append(idx.Manifests, d)
	put("index.json", mustJSON(t, idx))
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	// What comes first has no end.
	return append(out.Bytes(), rest...)
}
