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
	maxReferrers    = 32
	lookasideWithin = 30 * time.Second
	defaultLocation = "file:///var/lib/containers/sigstore"
)

// signatureSources is what containers-registries.d(5) says of a repository.
type signatureSources struct {
	lookaside   string
	attachments bool
}

type registryNamespace struct {
	Lookaside   string `yaml:"lookaside"`
	SigStore    string `yaml:"sigstore"` // its name before
	Attachments *bool  `yaml:"use-sigstore-attachments"`
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
	var attachments *bool
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
	}
	if s.lookaside == "" {
		s.lookaside = defaultLocation
	}
	s.attachments = attachments != nil && *attachments
	return s
}

// signatures are those of a manifest, each as the transport "dir:" stores it.
func (s *signatureSources) signatures(ref reference.Named, id digest.Digest, d *daemon) (all [][]byte, missing []error) {
	found, err := fromLookaside(s.lookaside, ref, id)
	if err != nil {
		missing = append(missing, fmt.Errorf("lookaside %s: %w", s.lookaside, err))
	}
	all = append(all, found...)
	if !s.attachments {
		return all, missing
	}
	// Cosign's two ways: a tag made of the digest, and referrers (OCI 1.1).
	found, err = attached(d, wanted{Kind: "manifest", Reference: strings.Replace(id.String(), ":", "-", 1) + ".sig"})
	if err != nil {
		missing = append(missing, fmt.Errorf("sigstore attachment: %w", err))
	}
	all = append(all, found...)
	found, err = fromReferrers(d, id)
	if err != nil {
		missing = append(missing, fmt.Errorf("referrers: %w", err))
	}
	all = append(all, found...)
	if len(all) > maxSignatures {
		missing = append(missing, fmt.Errorf("%d signatures; %d are looked at", len(all), maxSignatures))
		all = all[:maxSignatures]
	}
	return all, missing
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
	bundlePrefix   = "application/vnd.dev.sigstore.bundle"
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

func fromReferrers(d *daemon, id digest.Digest) (all [][]byte, err error) {
	p, err := d.fetch(wanted{Kind: "referrers", Reference: id.String()})
	if errors.Is(err, errNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var refs []ocispec.Descriptor
	if err := json.Unmarshal(p.Data, &refs); err != nil {
		return nil, err
	}
	var errs []error
	n := 0
	for _, r := range refs {
		switch {
		case r.ArtifactType == cosignArtifact || r.ArtifactType == simpleSigning:
		case strings.HasPrefix(r.ArtifactType, bundlePrefix):
			errs = append(errs, fmt.Errorf("%s is a signature as a sigstore bundle, which is not read: sign with --new-bundle-format=false", r.Digest))
			continue
		default:
			continue
		}
		if n++; n > maxReferrers {
			errs = append(errs, fmt.Errorf("more than %d", maxReferrers))
			break
		}
		found, err := attached(d, wanted{Kind: "manifest", Reference: r.Digest.String(), Size: r.Size, MediaType: r.MediaType})
		all = append(all, found...)
		errs = append(errs, err)
	}
	return all, errors.Join(errs...)
}

// sigstoreFile is a signature as the transport "dir:" and lookaside stores have it (containers-signature formats).
func sigstoreFile(mediaType string, payload []byte, annotations map[string]string) ([]byte, error) {
	b, err := json.Marshal(map[string]any{"mimeType": mediaType, "payload": payload, "annotations": annotations})
	return bytes.Join([][]byte{[]byte("\x00sigstore-json\n"), b}, nil), err
}
