package image

import (
	"context"
	"encoding/json"
	"regexp"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// referrers are the manifests of an archive that are about another one, such as signatures and attestations, by its
// digest. An OCI layout has them as entries without a name, or listed under a tag made of the digest, as registries
// without the Referrers API do (distribution-spec 1.1, "Referrers Tag Schema").
type referrers map[digest.Digest][]ocispec.Descriptor

// maxReferrer bounds what is read of an entry to see whether it is one: an image's manifest is smaller, too, and the
// archive's index may list thousands.
const (
	maxReferrer  = 64 << 10
	maxReferrers = 1024 // in an archive
)

var referrersTag = regexp.MustCompile(`(^|:)(sha256|sha512)-([0-9a-f]{64,128})$`)

// take notes d if it is no image, but about one.
func (r referrers) take(ctx context.Context, src fetcher, d ocispec.Descriptor) bool {
	name := d.Annotations[images.AnnotationImageName]
	if name == "" {
		name = d.Annotations[ocispec.AnnotationRefName]
	}
	tag := referrersTag.FindStringSubmatch(name)
	if name != "" && tag == nil || checkDescriptor(d) != nil {
		return false
	}
	if tag != nil {
		id := digest.NewDigestFromEncoded(digest.Algorithm(tag[2]), tag[3])
		if !images.IsIndexType(d.MediaType) || id.Validate() != nil {
			return false
		}
		var idx ocispec.Index
		raw, err := readBlob(ctx, src, d, maxManifestSize)
		if err != nil || json.Unmarshal(raw, &idx) != nil {
			return false
		}
		for _, m := range idx.Manifests {
			r.add(id, m)
		}
		return true
	}
	if !images.IsManifestType(d.MediaType) || d.Size > maxReferrer {
		return false
	}
	raw, err := readBlob(ctx, src, d, maxReferrer)
	if err != nil {
		return false
	}
	var m ocispec.Manifest
	if json.Unmarshal(raw, &m) != nil || m.Subject == nil || m.ArtifactType == "" && images.IsConfigType(m.Config.MediaType) {
		return false
	}
	d.ArtifactType, d.Annotations = m.ArtifactType, m.Annotations
	r.add(m.Subject.Digest, d)
	return true
}

func (r referrers) add(id digest.Digest, d ocispec.Descriptor) {
	if len(r[id]) < maxReferrers {
		r[id] = append(r[id], d)
	}
}
