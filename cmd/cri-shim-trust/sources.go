package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	"go.yaml.in/yaml/v3"
)

// Limits of what one image's signatures may be.
const (
	maxSignatures   = 128
	maxSignature    = 4 << 20
	maxReferrers    = 32  // that are signatures
	maxLooks        = 128 // at referrers, to see whether they are
	lookasideWithin = 30 * time.Second
	defaultLocation = "file:///var/lib/containers/sigstore"
)

// signatureSources is what containers-registries.d(5) says of a repository.
type signatureSources struct {
	lookaside   string
	attachments bool
	byDigest    bool // a bundle need not name the repository; a key of ours, which others pass over
}

type registryNamespace struct {
	Lookaside   string `yaml:"lookaside"`
	SigStore    string `yaml:"sigstore"` // its name before
	Attachments *bool  `yaml:"use-sigstore-attachments"`
	ByDigest    *bool  `yaml:"bundles-by-digest"`
}

type registriesFile struct {
	Default *registryNamespace           `yaml:"default-docker"`
	Docker  map[string]registryNamespace `yaml:"docker"`
}

// readSignatureSources merges the files of a folder, which may be missing, and finds what they say of ref. A namespace
// that two files speak of is an error, as it is for podman.
func readSignatureSources(dir string, ref reference.Named) (*signatureSources, []string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("registries.d: %w", err)
	}
	all := registriesFile{Docker: map[string]registryNamespace{}}
	from := map[string]string{}
	var read []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if filepath.Ext(path) != ".yaml" {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, fmt.Errorf("registries.d: %w", err)
		}
		read = append(read, path)
		if err := all.merge(b, path, from); err != nil {
			return nil, nil, err
		}
	}
	return all.of(ref), read, nil
}

func (all *registriesFile) merge(b []byte, path string, from map[string]string) error {
	var one registriesFile
	if err := yaml.Unmarshal(b, &one); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if one.Default != nil {
		if all.Default != nil {
			return fmt.Errorf("%s: default-docker is in %s too", path, from[""])
		}
		all.Default, from[""] = one.Default, path
	}
	for name, ns := range one.Docker {
		if _, ok := all.Docker[name]; ok {
			return fmt.Errorf("%s: docker: %q is in %s too", path, name, from[name])
		}
		all.Docker[name], from[name] = ns, path
	}
	return nil
}

// of finds, for each of the settings, the most specific namespace that has it.
func (all *registriesFile) of(ref reference.Named) *signatureSources {
	var levels []registryNamespace
	for _, name := range scopes(ref) {
		if ns, ok := all.Docker[name]; ok {
			levels = append(levels, ns)
		}
	}
	if all.Default != nil {
		levels = append(levels, *all.Default)
	}
	s := &signatureSources{}
	var attachments, byDigest *bool
	for _, ns := range levels {
		if s.lookaside == "" {
			s.lookaside = ns.Lookaside
		}
		if s.lookaside == "" {
			s.lookaside = ns.SigStore
		}
		if attachments == nil {
			attachments = ns.Attachments
		}
		if byDigest == nil {
			byDigest = ns.ByDigest
		}
	}
	if s.lookaside == "" {
		s.lookaside = defaultLocation
	}
	s.attachments = attachments != nil && *attachments
	s.byDigest = byDigest != nil && *byDigest
	return s
}

// signatures are what is there for a manifest.
type signatures struct {
	files   [][]byte // as the transport "dir:" stores them
	bundles []attachedBundle
	missing []error
}

func (s *signatureSources) signatures(ref reference.Named, id digest.Digest, d *daemon) (all signatures) {
	found, err := fromLookaside(s.lookaside, ref, id)
	all.add(found, "lookaside "+s.lookaside, err)
	if !s.attachments {
		return all
	}
	// Cosign's two ways: a tag made of the digest, and referrers (OCI 1.1).
	found, err = attached(d, wanted{Kind: "manifest", Reference: strings.Replace(id.String(), ":", "-", 1) + ".sig"})
	all.add(found, "sigstore attachment", err)
	found, all.bundles, err = fromReferrers(d, id)
	all.add(found, "referrers", err)
	if len(all.files) > maxSignatures {
		all.add(nil, "signatures", fmt.Errorf("%d; %d are looked at", len(all.files), maxSignatures))
		all.files = all.files[:maxSignatures]
	}
	return all
}

func (all *signatures) add(files [][]byte, where string, err error) {
	all.files = append(all.files, files...)
	if err != nil {
		all.missing = append(all.missing, fmt.Errorf("%s: %w", where, err))
	}
}

// fromLookaside reads signature-1, signature-2 and so on until there are none left.
func fromLookaside(base string, ref reference.Named, id digest.Digest) (all [][]byte, err error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: lookasideWithin}
	defer client.CloseIdleConnections()
	for i := 1; i <= maxSignatures; i++ {
		at := *u
		at.Path += fmt.Sprintf("/%s@%s=%s/signature-%d", reference.Path(ref), id.Algorithm(), id.Encoded(), i)
		b, err := readURL(client, &at)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return all, err
		}
		all = append(all, b)
	}
	return all, nil
}

func readURL(client *http.Client, u *url.URL) ([]byte, error) {
	var body io.ReadCloser
	switch u.Scheme {
	case "file":
		f, err := os.Open(u.Path)
		if err != nil {
			return nil, err
		}
		body = f
	case "http", "https":
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		body = resp.Body
		switch resp.StatusCode {
		case http.StatusOK:
		case http.StatusNotFound:
			body.Close()
			return nil, fs.ErrNotExist
		default:
			body.Close()
			return nil, fmt.Errorf("%s: %s", u.Redacted(), resp.Status)
		}
	default:
		return nil, fmt.Errorf("%q is none of file, http, https", u.Scheme)
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxSignature+1))
	if err == nil && len(b) > maxSignature {
		err = fmt.Errorf("%s: more than %d bytes", u.Redacted(), maxSignature)
	}
	return b, err
}

const (
	simpleSigning  = "application/vnd.dev.cosign.simplesigning.v1+json"
	cosignArtifact = "application/vnd.dev.cosign.artifact.sig.v1+json"
)

// attached reads the layers of cosign's signature manifest; none if there is no manifest.
func attached(d *daemon, w wanted) (all [][]byte, err error) {
	p, err := d.fetch(w)
	if errors.Is(err, errNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(p.Data, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", w.Reference, err)
	}
	return signatureLayers(d, m)
}

func signatureLayers(d *daemon, m ocispec.Manifest) (all [][]byte, err error) {
	for _, l := range m.Layers[:min(len(m.Layers), maxSignatures)] {
		if l.MediaType != simpleSigning {
			continue // an attestation
		}
		if l.Size > maxSignature {
			return all, fmt.Errorf("signature %s of %d bytes; at most %d are taken", l.Digest, l.Size, maxSignature)
		}
		p, err := d.fetch(wanted{Kind: "blob", Reference: l.Digest.String(), Size: l.Size, MediaType: l.MediaType})
		if err != nil {
			return all, fmt.Errorf("signature %s: %w", l.Digest, err)
		}
		b, err := sigstoreFile(l.MediaType, p.Data, l.Annotations)
		if err != nil {
			return all, err
		}
		all = append(all, b)
	}
	return all, nil
}

// fromReferrers reads the signatures among the manifests that say they are about id. Others are passed over, so that
// attestations do not count for the limits.
func fromReferrers(d *daemon, id digest.Digest) (all [][]byte, bundles []attachedBundle, err error) {
	p, err := d.fetch(wanted{Kind: "referrers", Reference: id.String()})
	if errors.Is(err, errNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var refs []ocispec.Descriptor
	if err := json.Unmarshal(p.Data, &refs); err != nil {
		return nil, nil, err
	}
	var errs []error
	looks, n := 0, 0
	for _, r := range refs {
		if !mayBeSignature(r.ArtifactType, r.Annotations) {
			continue
		}
		if looks == maxLooks {
			errs = append(errs, fmt.Errorf("more than %d that may be signatures; the others are not looked at", maxLooks))
			break
		}
		if n == maxReferrers {
			errs = append(errs, fmt.Errorf("more than %d signatures; the others are not looked at", maxReferrers))
			break
		}
		looks++
		files, b, err := referrer(d, r, id)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.Digest, err))
		}
		if err != nil || b != nil || len(files) > 0 {
			n++
		}
		all = append(all, files...)
		if b != nil {
			bundles = append(bundles, *b)
		}
	}
	return all, bundles, errors.Join(errs...)
}

// mayBeSignature tells by a list of referrers, or by a manifest, whether to look further.
func mayBeSignature(artifactType string, annotations map[string]string) bool {
	switch artifactType {
	case cosignArtifact, simpleSigning, "", ocispec.MediaTypeEmptyJSON, ocispec.MediaTypeImageConfig:
		// The last ones are what older clients write into the list under a tag: the manifest says what it is.
		return true
	}
	if !strings.HasPrefix(artifactType, bundlePrefix) {
		return false
	}
	predicate, ok := annotations[predicateNote]
	return !ok || predicate == signPredicate
}

func referrer(d *daemon, r ocispec.Descriptor, id digest.Digest) ([][]byte, *attachedBundle, error) {
	p, err := d.fetch(wanted{Kind: "manifest", Reference: r.Digest.String(), Size: r.Size, MediaType: r.MediaType})
	if err != nil {
		return nil, nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(p.Data, &m); err != nil {
		return nil, nil, err
	}
	if m.Subject == nil || m.Subject.Digest != id {
		about := "nothing"
		if m.Subject != nil {
			about = m.Subject.Digest.String()
		}
		return nil, nil, fmt.Errorf("listed as one of %s, and it is about %.100s", id, about)
	}
	kind := m.ArtifactType
	if kind == "" {
		kind = m.Config.MediaType // image-spec, "Guidelines for Artifact Usage"
	}
	switch {
	case kind == cosignArtifact || kind == simpleSigning:
		files, err := signatureLayers(d, m)
		return files, nil, err
	case !strings.HasPrefix(kind, bundlePrefix) || !mayBeSignature(kind, m.Annotations):
		return nil, nil, nil
	case len(m.Layers) != 1:
		return nil, nil, fmt.Errorf("a bundle of %d layers; it has one", len(m.Layers))
	}
	l := m.Layers[0]
	switch {
	case !strings.HasPrefix(l.MediaType, bundlePrefix):
		return nil, nil, fmt.Errorf("layer %s is %.100q, and no bundle", l.Digest, l.MediaType)
	case l.Size > maxBundle:
		return nil, nil, fmt.Errorf("a bundle of %d bytes; at most %d are taken", l.Size, maxBundle)
	}
	if p, err = d.fetch(wanted{Kind: "blob", Reference: l.Digest.String(), Size: l.Size, MediaType: l.MediaType}); err != nil {
		return nil, nil, fmt.Errorf("bundle %s: %w", l.Digest, err)
	}
	return nil, &attachedBundle{r.Digest, p.Data}, nil
}

// sigstoreFile is a signature as the transport "dir:" and lookaside stores have it (containers-signature formats).
func sigstoreFile(mediaType string, payload []byte, annotations map[string]string) ([]byte, error) {
	b, err := json.Marshal(map[string]any{"mimeType": mediaType, "payload": payload, "annotations": annotations})
	return bytes.Join([][]byte{[]byte("\x00sigstore-json\n"), b}, nil), err
}
