package image

import (
	"errors"
	"testing"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestCVE_2021_41190: a document that is an index to one program and a manifest to another is refused, whatever type the registry
// or the document itself says it has.
func TestCVE_2021_41190(t *testing.T) {
	const (
		id       = `"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`
		config   = `"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":` + id + `,"size":2}`
		layers   = `"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":` + id + `,"size":2}]`
		children = `"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":` + id + `,"size":2}]`
	)
	for _, doc := range []string{
		`{"schemaVersion":2,` + config + `,` + layers + `,` + children + `}`,
		`{"schemaVersion":2,` + config + `,` + children + `}`,
		`{"schemaVersion":2,` + layers + `,` + children + `}`,
		`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `",` + config + `,` + layers + `,` + children + `}`,
		`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `",` + config + `,` + layers + `,` + children + `}`,
		`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `",` + config + `,` + layers + `}`,
		`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `",` + children + `}`,
		`{"schemaVersion":1,"fsLayers":[],` + config + `,` + layers + `}`,
	} {
		for _, said := range []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, "", "text/html"} {
			d, m, err := parseManifest([]byte(doc), said, platforms.DefaultSpec())
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("parseManifest(%s) as %q = %v, %v, %v; want %v", doc, said, d, m, err, ErrInvalid)
			}
		}
	}
}
