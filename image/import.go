package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/image/layer"
)

// ImportOptions direct Import.
type ImportOptions struct {
	// AllPlatforms takes all that the archive has; its indexes may have more. Without, it is the store's platform.
	AllPlatforms bool
	// Repository names images that the archive gives a bare tag only, as OCI layouts may.
	Repository string
	// PlatformName is another platform to take, os/architecture[/variant].
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
	platform := *s.cfg.Platform
	if o.PlatformName != "" {
		if o.AllPlatforms {
			return nil, fmt.Errorf("platform: %.100q, and all: %w", o.PlatformName, ErrPlatform)
		}
		if platform, err = platforms.Parse(o.PlatformName); err != nil {
			return nil, fmt.Errorf("platform: %w: %w", ErrPlatform, err)
		}
	}
	from := &blobSource{blobs, filepath.Base(tmp)}
	src := fetcher{source: from, stall: s.cfg.ProgressTimeout}
	list := importOne
	want := wants{each: []selection{suiting(platform)}}
	if o.AllPlatforms {
		list, want = importAll, wants{all: true, whole: s.inArchive(from)}
	}
	todo, attached, err := importList(ctx, src, top, platform, o.Repository, list)
	if err != nil {
		return nil, err
	}
	var imgs []*Image
	for _, t := range todo {
		if err := t.addDigest(o); err != nil {
			return imgs, err
		}
		more, err := s.installImported(ctx, src, attached, installation{top: t.desc, group: t.group, want: want, names: t.names, pin: o.Pin})
		if t.optional && (errors.Is(err, ErrPlatform) || errdefs.IsNotFound(err)) {
			continue
		}
		if err != nil {
			return imgs, fmt.Errorf("image %s %v: %w", t.desc.Digest, t.names, err)
		}
		imgs = append(imgs, more...)
	}
	if len(imgs) == 0 {
		return nil, fmt.Errorf("the archive has none of its images whole: %w", ErrPlatform)
	}
	return imgs, nil
}

// installImported is install for an image whose signatures, if it needs any, are in the archive or in the registry that
// its name says.
func (s *Store) installImported(ctx context.Context, src fetcher, attached referrers, in installation) ([]*Image, error) {
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
	// group is what the names lead to: desc, or all that has them.
	group digest.Digest
	// optional: the archive need not have it.
	optional bool
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

// importOne takes of the entries of a name the one for a platform.
func importOne(entries []ocispec.Descriptor, p ocispec.Platform) ([]toImport, error) {
	d, err := choose(entries, p)
	return []toImport{{desc: d, group: groupOf(entries)}}, err
}

// importAll takes all of them.
func importAll(entries []ocispec.Descriptor, _ ocispec.Platform) ([]toImport, error) {
	var all []toImport
	entries = candidates(entries)
	for _, d := range entries {
		all = append(all, toImport{desc: d, group: groupOf(entries), optional: len(entries) > 1})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no image: %w", ErrPlatform)
	}
	return all, nil
}

// groupOf stands for the index that several entries of one name would be in.
func groupOf(entries []ocispec.Descriptor) digest.Digest {
	if len(entries) == 1 {
		return entries[0].Digest
	}
	var all []string
	for _, d := range entries {
		all = append(all, d.Digest.String())
	}
	slices.Sort(all)
	return digest.FromString(strings.Join(all, "\n"))
}

// importList reads the archive's index: what to import, under which names. Entries of one name are the platforms of
// one image; those without a name are an image each, but for what refers to another: that is listed by itself.
func importList(ctx context.Context, src fetcher, top ocispec.Descriptor, p ocispec.Platform, repository string,
	take func([]ocispec.Descriptor, ocispec.Platform) ([]toImport, error)) ([]toImport, referrers, error) {
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
	alone := len(idx.Manifests) == 1 // is what there is to import, whatever it is about
	for _, d := range idx.Manifests {
		if !alone && attached.take(ctx, src, d) {
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
			more, err := take(byName[n], p)
			if err != nil {
				return nil, nil, fmt.Errorf("image %s: %w", n, err)
			}
			for _, t := range more {
				t.names = []string{n}
				todo = append(todo, t)
			}
			continue
		}
		for _, d := range byName[n] {
			// An entry with this machine's platform, or none, is taken; others with all.
			if more, err := take([]ocispec.Descriptor{d}, p); err == nil {
				todo = append(todo, more...)
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
