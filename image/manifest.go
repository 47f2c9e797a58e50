package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits of what a registry can make us read into memory or mount. overlayfs takes 500 layers; one is ours (attrs.go).
const (
	maxManifestSize = 8 << 20
	maxConfigSize   = 8 << 20
	maxLayers       = 499
	maxIndexDepth   = 4
)

// source is where the blobs of an image come from.
type source interface {
	// places are the hosts, by number, that blobs can be had from, best first.
	places() []int
	// blame notes that a place did not deliver: others are asked before it from then on.
	blame(place int)
	// open returns the content of a blob from offset to its end.
	open(ctx context.Context, desc ocispec.Descriptor, offset int64, place int) (io.ReadCloser, error)
	// wrap names the place in an error and gives the error its kind. A negative place stands for the whole source.
	wrap(place int, err error) error
	// host names a place.
	host(place int) string
	// registry names the source.
	registry() string
}

// manifest is one platform's image, or an artifact, verified down to its configuration.
type manifest struct {
	desc         ocispec.Descriptor
	raw          []byte
	id           digest.Digest // of the image: that of its configuration; of an artifact: that of its manifest
	configRaw    []byte
	config       ocispec.Image
	artifact     bool
	artifactType string
	layers       []ocispec.Descriptor
	ids          []digest.Digest // what the store has the layers under: the diff IDs; see partID for an artifact's
	parts        []part          // of an artifact: its layers
	keys         []*layerKey     // of the layers; nil for those that are not encrypted
	approved     *approval
}

// readConfig reads the configuration, or of an artifact what stands for it. The image must be for the platform that its index
// says, and for the one that was selected, if any was.
func readConfig(ctx context.Context, src fetcher, m *manifest, desc ocispec.Descriptor, sel *selection) error {
	raw, err := readBlob(ctx, src, desc, maxConfigSize)
	if err != nil {
		return fmt.Errorf("config %s: %w", desc.Digest, err)
	}
	m.configRaw = raw
	m.config, err = parseConfig(raw)
	if isArtifact(desc, m.config, err) {
		m.config = ocispec.Image{}
		if err := readArtifact(m); err != nil {
			return fmt.Errorf("artifact %s: %w", m.desc.Digest, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("config %s: %w", desc.Digest, err)
	}
	m.id, m.ids = desc.Digest, m.config.RootFS.DiffIDs
	if n := len(m.ids); n != len(m.layers) {
		return fmt.Errorf("config %s: %d diff IDs for %d layers: %w", desc.Digest, n, len(m.layers), ErrInvalid)
	}
	if m.config.OS == "" {
		return nil
	}
	asSaid := m.desc.Platform != nil && samePlatform(*m.desc.Platform, m.config.Platform)
	wanted := m.desc.Platform
	if sel != nil {
		asSaid = asSaid || sel.match.Match(platforms.Normalize(m.config.Platform))
		wanted = &sel.platform
	}
	if wanted != nil && !asSaid {
		return fmt.Errorf("config %s: image is for %s, wanted %s: %w", desc.Digest, platforms.Format(m.config.Platform), platforms.Format(*wanted), ErrPlatform)
	}
	return nil
}

// parseManifest returns either the descriptor to go on with (of an index), or a manifest and the descriptor of its
// configuration.
func parseManifest(raw []byte, mediaType string, platform ocispec.Platform) (ocispec.Descriptor, *manifest, error) {
	d, err := parseDocument(raw, mediaType)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	if d.config == nil {
		next, err := choose(d.entries, platform)
		return next, nil, err
	}
	return *d.config, d.manifest(ocispec.Descriptor{}), nil
}

// document is an index, or a manifest.
type document struct {
	raw          []byte
	entries      []ocispec.Descriptor // of an index
	config       *ocispec.Descriptor  // of a manifest
	layers       []ocispec.Descriptor
	artifactType string
}

func (d document) manifest(desc ocispec.Descriptor) *manifest {
	m := &manifest{desc: desc, raw: d.raw, layers: d.layers, artifactType: d.artifactType}
	if m.artifactType == "" { // image-spec, "Guidelines for Artifact Usage"
		m.artifactType = d.config.MediaType
	}
	return m
}

// parseDocument reads an index or a manifest. The media type inside counts if there is one: type confusion is how
// CVE-2021-41190 worked, so a document that could be both is refused.
func parseDocument(raw []byte, mediaType string) (document, error) {
	var doc struct {
		SchemaVersion int                  `json:"schemaVersion"`
		MediaType     string               `json:"mediaType"`
		ArtifactType  string               `json:"artifactType"`
		Config        *ocispec.Descriptor  `json:"config"`
		Layers        []ocispec.Descriptor `json:"layers"`
		Manifests     []ocispec.Descriptor `json:"manifests"`
		FSLayers      json.RawMessage      `json:"fsLayers"`
	}
	none := document{}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return none, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if doc.MediaType != "" {
		mediaType = doc.MediaType
	}
	isIndex := doc.Manifests != nil
	isImage := doc.Config != nil || doc.Layers != nil
	switch {
	case doc.SchemaVersion == 1 || doc.FSLayers != nil:
		return none, fmt.Errorf("docker schema 1 is not supported: push the image again with a client of 2017 or later: %w", ErrInvalid)
	case isIndex && isImage:
		return none, fmt.Errorf("both an index and a manifest: %w", ErrInvalid)
	case isIndex && !images.IsManifestType(mediaType):
		return document{entries: doc.Manifests}, nil
	case isImage && doc.Config != nil && !images.IsIndexType(mediaType):
		if err := checkLayers(doc.Layers); err != nil {
			return none, err
		}
		return document{config: doc.Config, layers: doc.Layers, artifactType: doc.ArtifactType}, checkDescriptor(*doc.Config)
	}
	return none, fmt.Errorf("media type %.100q is neither an image index nor an image manifest: %w", mediaType, ErrInvalid)
}

func checkLayers(layers []ocispec.Descriptor) error {
	if len(layers) > maxLayers {
		return fmt.Errorf("%d layers; overlayfs takes %d: %w", len(layers), maxLayers, ErrTooLarge)
	}
	for i, l := range layers {
		if err := checkDescriptor(l); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %.100q: %w: %w", d.Digest, ErrInvalid, err)
	}
	if d.Size < 0 || d.Size == math.MaxInt64 {
		return fmt.Errorf("size %d of %s: %w", d.Size, d.Digest, ErrInvalid)
	}
	return nil
}

// choose picks the entry of an index that suits the platform best. Entries without a platform come last; those that
// are attestations (platform unknown/unknown) are no images.
func choose(manifests []ocispec.Descriptor, platform ocispec.Platform) (ocispec.Descriptor, error) {
	return chooseFor(manifests, suiting(platform))
}

func chooseFor(manifests []ocispec.Descriptor, sel selection) (ocispec.Descriptor, error) {
	match := sel.match
	var fit []ocispec.Descriptor
	var have []string
	for _, m := range candidates(manifests) {
		if m.Platform == nil {
			fit = append(fit, m)
			continue
		}
		have = append(have, platforms.FormatAll(*m.Platform))
		if match.Match(*m.Platform) {
			fit = append(fit, m)
		}
	}
	if len(fit) == 0 {
		return ocispec.Descriptor{}, fmt.Errorf("%s is not among %.300q: %w", platforms.FormatAll(sel.platform), have, ErrPlatform)
	}
	slices.SortStableFunc(fit, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform == nil || b.Platform == nil:
			return boolInt(a.Platform == nil) - boolInt(b.Platform == nil)
		case match.Less(*a.Platform, *b.Platform):
			return -1
		case match.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return fit[0], checkDescriptor(fit[0])
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// parseConfig reads an image configuration and checks what the rest relies on.
func parseConfig(raw []byte) (ocispec.Image, error) {
	var c ocispec.Image
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("image configuration: %w: %w", ErrInvalid, err)
	}
	if len(c.RootFS.DiffIDs) > maxLayers {
		return c, fmt.Errorf("image configuration: %d layers; overlayfs takes %d: %w", len(c.RootFS.DiffIDs), maxLayers, ErrTooLarge)
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return c, fmt.Errorf("image configuration: rootfs.diff_ids[%d] %.100q: %w: %w", i, d, ErrInvalid, err)
		}
	}
	return c, nil
}

// readBlob reads and verifies a small blob.
func readBlob(ctx context.Context, src fetcher, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("%d bytes; at most %d are taken: %w", desc.Size, limit, ErrTooLarge)
	}
	var b []byte
	err := src.whole(ctx, desc, nil, func(rc *blobReader) (err error) {
		if b, err = io.ReadAll(io.LimitReader(rc, limit+1)); err != nil {
			return err
		}
		if int64(len(b)) > limit {
			return fmt.Errorf("more than %d bytes: %w", limit, ErrTooLarge)
		}
		if got := desc.Digest.Algorithm().FromBytes(b); got != desc.Digest {
			return src.wrap(rc.sender(), wrongBlob("got %d bytes with digest %s", len(b), got))
		}
		return nil
	})
	return b, err
}
