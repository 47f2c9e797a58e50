package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is what the store has of an image. It is shared and must not be changed.
type Image struct {
	ID             string   // digest of the configuration, or of an artifact's manifest: "sha256:…"
	RepoTags       []string // normalised, sorted
	RepoDigests    []string // normalised, sorted; the digest is the one that the registry resolved, which may be an index's
	Size           int64    // bytes of its layers on disk, whether shared or not
	Config         ocispec.Image
	ManifestDigest digest.Digest
	Layers         []digest.Digest // diff IDs, bottom first; none of an artifact
	Artifact       *Artifact       // nil for an image
	Platform       string          // os/architecture[/variant]; "" is any
	Platforms      []string        // of all images that have its names, its own first; nil if there are no others
	Foreign        bool            // this machine cannot run it
	Pinned         bool
	PulledAt       time.Time
}

const recordVersion = 1

// record is an image on disk. ConfigRaw has the exact bytes, and ManifestRaw for an artifact, so the record proves itself
// by the ID it is filed under.
type record struct {
	Version     int                `json:"version"`
	ID          digest.Digest      `json:"id"`
	Manifest    ocispec.Descriptor `json:"manifest"`
	ManifestRaw []byte             `json:"manifestRaw"`
	ConfigRaw   []byte             `json:"configRaw"`
	Names       []name             `json:"names"`
	PulledAt    time.Time          `json:"pulledAt"`
	// Kind is kindArtifact, or empty for an image.
	Kind string `json:"kind,omitempty"`
	// Files: the directory files/ beside the record is what is mounted over its layers (see artifact.go).
	Files bool `json:"files,omitempty"`
	// Attrs: the directory attrs/ beside the record is the image's topmost layer (see attrs.go).
	Attrs bool `json:"attrs,omitempty"`
	// Removed: the image is gone for List and Get, but a container still holds it.
	Removed bool `json:"removed,omitempty"`
	// Approved is by the verifiers and the policies; see trust.go.
	Approved *approval `json:"approved,omitempty"`
	// Encrypted: layers of it were, so that a container needs their keys to be here.
	Encrypted bool `json:"encrypted,omitempty"`
	// Pinned: an administrator keeps it from being collected.
	Pinned bool `json:"pinned,omitempty"`
	// Boot is the kernel's boot ID as long as the image may not have reached the disk (see settle.go).
	Boot string `json:"boot,omitempty"`

	config ocispec.Image
	ids    []digest.Digest // of its layers, bottom first
	// platform is what tells it from others of the same name.
	platform string
	// parts and artifactType are an artifact's.
	parts        []part
	artifactType string
	// landing is the settling that Boot waits for.
	landing *int
}

// name is a tag or digest reference; see platforms.go for those that two images claim.
type name struct {
	Ref string    `json:"ref"`
	At  time.Time `json:"at"`
	// Top is the digest of what it led to, an index or a manifest. Records of older versions do not have it.
	Top digest.Digest `json:"top,omitempty"`
}

func (n name) isDigest() bool { return strings.Contains(n.Ref, "@") }

// layerIDs are what the store has the layers under: diff IDs, or for an artifact what stands for its blobs.
func (r *record) layerIDs() []digest.Digest { return r.ids }

// clone is for changing names and flags; the rest is shared.
func (r *record) clone() *record {
	c := *r
	c.Names = slices.Clone(r.Names)
	return &c
}

func (r *record) drop(ref string) {
	r.Names = slices.DeleteFunc(r.Names, func(n name) bool { return n.Ref == ref })
}

// add gives the image names that led to top; one by digest says by itself to what.
func (r *record) add(at time.Time, top digest.Digest, refs ...string) {
	for _, ref := range refs {
		r.drop(ref)
		n := name{Ref: ref, At: at}
		if !n.isDigest() {
			n.Top = top
		}
		r.Names = append(r.Names, n)
	}
	slices.SortFunc(r.Names, func(a, b name) int { return strings.Compare(a.Ref, b.Ref) })
}

// parseRecord reads a record and proves that it is that of id.
func parseRecord(b []byte, id digest.Digest) (*record, error) {
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("version %d of the record; want %d: %w", r.Version, recordVersion, ErrInvalid)
	}
	for _, n := range r.Names {
		if _, err := parseReference(n.Ref); err != nil {
			return nil, fmt.Errorf("name: %w", err)
		}
	}
	if r.Kind == kindArtifact {
		err := r.parseArtifact(id)
		r.platform = formatPlatform(platformOf(r.Manifest, r.config))
		return r, err
	}
	if r.ID != id || id.Algorithm().FromBytes(r.ConfigRaw) != id {
		return nil, fmt.Errorf("configuration is not that of %s: %w", id, ErrDigest)
	}
	if r.Kind != "" {
		return nil, fmt.Errorf("kind %.100q of the record: %w", r.Kind, ErrInvalid)
	}
	var err error
	if r.config, err = parseConfig(r.ConfigRaw); err != nil {
		return nil, err
	}
	r.ids = r.config.RootFS.DiffIDs
	r.platform = formatPlatform(platformOf(r.Manifest, r.config))
	return r, nil
}

// parseArtifact reads what the record of an artifact says, and proves that it is that of id.
func (r *record) parseArtifact(id digest.Digest) error {
	if r.ID != id || r.Manifest.Digest != id || id.Algorithm().FromBytes(r.ManifestRaw) != id {
		return fmt.Errorf("manifest is not that of %s: %w", id, ErrDigest)
	}
	config, m, err := parseManifest(r.ManifestRaw, r.Manifest.MediaType, ocispec.Platform{})
	if err != nil {
		return err
	}
	if m == nil || config.Digest.Algorithm().FromBytes(r.ConfigRaw) != config.Digest {
		return fmt.Errorf("configuration is not that of artifact %s: %w", id, ErrDigest)
	}
	m.desc = r.Manifest
	if err := readArtifact(m); err != nil {
		return err
	}
	r.ids, r.parts, r.artifactType = m.ids, m.parts, m.artifactType
	return nil
}

// writeNewRecord writes image.json of an image that is not in place yet, and leaves it to settle to wait for the disk.
func writeNewRecord(dir string, r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "image.json"), b, 0o600)
}

// writeRecord writes image.json into dir so that after a crash it is the old one or the new one.
func writeRecord(dir string, r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeDurable(filepath.Join(dir, "image.json"), b)
}

func writeDurable(path string, b []byte) (err error) {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
