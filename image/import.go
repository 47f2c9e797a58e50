package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/image/layer"
)

// ImportOptions direct Import.
type ImportOptions struct {
	Platform *ocispec.Platform // default: the store's
	// Repository names images that the archive gives a bare tag only, as OCI layouts may.
	Repository string
	// PlatformName is Platform as text, os/architecture[/variant], for those who have it so.
	PlatformName string
	// Digests gives each image the name repository@digest of its manifest, too.
	Digests bool
	// SkipNamed: Digests concerns images without a name only.
	SkipNamed bool
	// Unnamed is the repository that Digests gives to images without a name; they get no name if it is empty.
	Unnamed string
	// Pin pins the images.
	Pin bool
}

// Import makes the images of an archive present: an OCI layout, or what docker save writes (old and new), as a tar
// stream, plain or compressed with gzip or zstd. The stream is read once, to its end; its blobs need room on the
// store's disk while it is imported. Images keep their names; nothing is imported under a name that cannot be parsed.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) ([]*Image, error) {
	imgs, err := s.importArchive(ctx, r, o)
	if err != nil {
		return imgs, fmt.Errorf("import: %w", err)
	}
	return imgs, nil
}

func (s *Store) importArchive(ctx context.Context, r io.Reader, o ImportOptions) (_ []*Image, err error) {
	if err := context.Cause(s.ctx); err != nil {
		return nil, err
	}
	ctx = containerdLog(ctx, s.log)
	tmp, err := os.MkdirTemp(s.path("ingest"), "import-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	read, err := local.NewStore(tmp)
	if err != nil {
		return nil, err
	}
	blobs := blobDir{read, tmp}
	z, err := layer.Decompress(r)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	top, err := archive.ImportIndex(ctx, blobs, contextReader{ctx, z})
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	// Whoever writes into the other end of a pipe expects it to be read to the end.
	if _, err := io.Copy(io.Discard, contextReader{ctx, z}); err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	platform := s.cfg.Platform
	if o.PlatformName != "" {
		p, err := platforms.Parse(o.PlatformName)
		if err != nil {
			return nil, fmt.Errorf("platform: %w: %w", ErrPlatform, err)
		}
		o.Platform = &p
	}
	if o.Platform != nil {
		platform = o.Platform
	}
	src := fetcher{source: &blobSource{blobs, filepath.Base(tmp)}, stall: s.cfg.ProgressTimeout}
	todo, attached, err := importList(ctx, src, top, *platform, o.Repository)
	if err != nil {
		return nil, err
	}
	var imgs []*Image
	for _, t := range todo {
		if err := t.addDigest(o); err != nil {
			return imgs, err
		}
		img, err := s.installImported(ctx, src, attached, installation{top: t.desc, platform: *platform, names: t.names, pin: o.Pin})
		if err != nil {
			return imgs, fmt.Errorf("image %s %v: %w", t.desc.Digest, t.names, err)
		}
		imgs = append(imgs, img)
	}
	return imgs, nil
}

// installImported is install for an image whose signatures, if it needs any, are in the archive or in the registry that
// its name says.
func (s *Store) installImported(ctx context.Context, src fetcher, attached referrers, in installation) (*Image, error) {
	p, err := s.piecesOf(in.asked(), &src)
	if err != nil {
		return nil, err
	}
	defer p.close()
	p.attached = attached
	in.pieces = p
	return s.install(ctx, src, in)
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

type toImport struct {
	desc  ocispec.Descriptor
	names []string
}

// addDigest adds the name by digest that the options ask for.
func (t *toImport) addDigest(o ImportOptions) error {
	repo := o.Unnamed
	if len(t.names) > 0 {
		repo = repository(t.names[0])
	}
	if !o.Digests || repo == "" || o.SkipNamed && len(t.names) > 0 {
		return nil
	}
	n, err := parseReference(repo + "@" + t.desc.Digest.String())
	if err != nil {
		return err
	}
	t.names = append(t.names, n.String())
	return nil
}

// importList reads the archive's index: what to import, under which names. Entries of one name are the platforms of
// one image; those without a name are an image each, but for what refers to another: that is listed by itself.
func importList(ctx context.Context, src fetcher, top ocispec.Descriptor, p ocispec.Platform, repository string) ([]toImport, referrers, error) {
	raw, err := readBlob(ctx, src, top, maxManifestSize)
	if err != nil {
		return nil, nil, fmt.Errorf("index: %w", err)
	}
	var idx ocispec.Index
	if err := json.Unmarshal(raw, &idx); err != nil {
		return nil, nil, fmt.Errorf("index: %w: %w", ErrInvalid, err)
	}
	var order []string
	byName := map[string][]ocispec.Descriptor{}
	attached := referrers{}
	for _, d := range idx.Manifests {
		if attached.take(ctx, src, d) {
			continue
		}
		n, err := importName(d, repository)
		if err != nil {
			return nil, nil, err
		}
		if byName[n] == nil {
			order = append(order, n)
		}
		byName[n] = append(byName[n], d)
	}
	var todo []toImport
	for _, n := range order {
		if n != "" {
			d, err := choose(byName[n], p)
			if err != nil {
				return nil, nil, fmt.Errorf("image %s: %w", n, err)
			}
			todo = append(todo, toImport{d, []string{n}})
			continue
		}
		for _, d := range byName[n] {
			if d.Platform == nil || platforms.Only(p).Match(*d.Platform) {
				todo = append(todo, toImport{d, nil})
			}
		}
	}
	if len(todo) == 0 {
		return nil, nil, fmt.Errorf("no image for %s among %d: %w", platforms.FormatAll(p), len(idx.Manifests), ErrPlatform)
	}
	return todo, attached, checkAll(todo)
}

func checkAll(todo []toImport) error {
	for _, t := range todo {
		if err := checkDescriptor(t.desc); err != nil {
			return err
		}
	}
	return nil
}

// importName is the normalised name of an archive's entry, or "".
func importName(d ocispec.Descriptor, repository string) (string, error) {
	n := d.Annotations[images.AnnotationImageName]
	if n == "" {
		n = d.Annotations[ocispec.AnnotationRefName]
		if n != "" && !strings.ContainsAny(n, "/:") {
			if repository == "" {
				return "", nil // a tag of who knows what
			}
			n = repository + ":" + n
		}
	}
	if n == "" {
		return "", nil
	}
	ref, err := parseReference(n)
	if err != nil {
		return "", err
	}
	return ref.String(), nil
}

// blobSource is the content of an archive.
type blobSource struct {
	store content.Provider
	name  string
}

func (b *blobSource) places() []int    { return []int{0} }
func (b *blobSource) blame(int)        {}
func (b *blobSource) host(int) string  { return "archive" }
func (b *blobSource) registry() string { return "archive" }

func (b *blobSource) open(ctx context.Context, desc ocispec.Descriptor, offset int64, _ int) (io.ReadCloser, error) {
	ra, err := b.store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(ra, offset, max(ra.Size()-offset, 0)), ra}, nil
}

func (b *blobSource) wrap(_ int, err error) error { return fmt.Errorf("archive: %w", err) }
