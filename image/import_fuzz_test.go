package image

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// oneBlob is an archive with one blob, whose digest is right.
type oneBlob struct {
	*blobSource
	data []byte
}

func (o oneBlob) open(_ context.Context, _ ocispec.Descriptor, offset int64, _ int) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(o.data[offset:])), nil
}

// FuzzImportIndex: the index of an archive is an error, or names and descriptors that have been checked.
func FuzzImportIndex(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":5,
"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
"annotations":{"io.containerd.image.name":"docker.io/library/a:1"},"platform":{"os":"linux","architecture":"amd64"}},{"annotations":{"org.opencontainers.image.ref.name":"v1"}}]}`), "example.org/a")
	f.Fuzz(func(t *testing.T, raw []byte, repository string) {
		top := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		todo, _, err := importList(t.Context(), fetcher{source: oneBlob{&blobSource{}, raw}, stall: time.Minute}, top, ocispec.Platform{OS: "linux", Architecture: "amd64"}, repository, importOne)
		if err != nil {
			return
		}
		if len(todo) == 0 {
			t.Error("nothing to import, and no error")
		}
		for _, i := range todo {
			if i.desc.Digest.Validate() != nil || i.desc.Size < 0 {
				t.Errorf("descriptor %+v", i.desc)
			}
			for _, n := range i.names {
				if _, err := parseReference(n); err != nil {
					t.Errorf("name %q: %v", n, err)
				}
			}
		}
	})
}

// FuzzReferrers: whether an entry of an archive is about another is told by its manifest, or its list, which are anybody's.
func FuzzReferrers(f *testing.F) {
	const subject = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	f.Add([]byte(`{"artifactType":"application/vnd.dev.sigstore.bundle.v0.3+json","subject":{"digest":"`+subject+`"}}`), "", false)
	f.Add([]byte(`{"manifests":[{"digest":"`+subject+`"}]}`), "r.example/a:sha256-"+digest.Digest(subject).Encoded(), true)
	f.Fuzz(func(t *testing.T, raw []byte, name string, list bool) {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw)),
			Annotations: map[string]string{ocispec.AnnotationRefName: name}}
		if list {
			d.MediaType = ocispec.MediaTypeImageIndex
		}
		all := referrers{}
		taken := all.take(t.Context(), fetcher{source: oneBlob{&blobSource{}, raw}, stall: time.Minute}, d)
		if !taken && len(all) > 0 || taken && !list && len(all) != 1 || len(all) > 1 {
			t.Errorf("take = %v, and %v", taken, all)
		}
	})
}
