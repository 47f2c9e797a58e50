package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/image/layer"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// ExportOptions direct Export. Without any, an image is exported for this machine alone, if it is there for it.
type ExportOptions struct {
	Platforms    []string // exactly these, as os/architecture[/variant]
	AllPlatforms bool     // that are there
}

// Export writes images as one tar stream that is an OCI layout and that docker load takes too. The same images give
// the same stream.
//
// Compressed blobs are not kept, so layers come out uncompressed: put together again from their files and the frame
// of their tar stream, byte by byte, under their diff IDs. The configuration, and with it the image ID, is the
// original; the manifest is a new one, so digest references are not exported. An artifact is exported as it came, with
// the same digests. After an error what was written is no archive; a layer that does not give its diff ID again matches
// ErrDigest.
//
// Of several platforms an index is made that has just those.
func (s *Store) Export(ctx context.Context, w io.Writer, refs []string, o ExportOptions) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("export: %w", err)
		}
	}()
	if len(refs) == 0 {
		return fmt.Errorf("no images named: %w", ErrReference)
	}
	want, err := s.parseWants(o.Platforms, o.AllPlatforms)
	if err != nil {
		return err
	}
	owner := fmt.Sprintf("export %p", &refs)
	defer func() { err = errors.Join(err, s.Release(owner)) }()
	e := &exporter{ctx: ctx, s: s, tw: tar.NewWriter(w), written: map[digest.Digest]bool{}}
	var order []*exported
	for _, ref := range refs {
		all, tags, err := s.exportNames(ref)
		if err == nil && (o.AllPlatforms || len(o.Platforms) > 0) {
			all, err = selectRecords(ref, all, want)
		} else if err == nil {
			all = all[:1]
		}
		if err != nil {
			return err
		}
		for _, r := range all {
			if err := s.Hold(r.ID.String(), owner); err != nil {
				return err
			}
		}
		i := slices.IndexFunc(order, func(x *exported) bool { return slices.EqualFunc(x.all, all, sameRecord) })
		if i < 0 {
			i, order = len(order), append(order, &exported{all: all})
		}
		order[i].tags = append(order[i].tags, tags...)
	}
	return e.write(order)
}

func sameRecord(a, b *record) bool { return a.ID == b.ID }

type exported struct {
	all  []*record // the platforms of one image, this machine's first
	tags []string
}

// exportNames finds the image, for all platforms, and the tags to export it under: the one asked for, or by ID all of them.
func (s *Store) exportNames(ref string) ([]*record, []string, error) {
	img, err := s.Get(ref)
	if err != nil {
		return nil, nil, err
	}
	all, err := s.group(ref)
	if err != nil {
		return nil, nil, err
	}
	tags := img.RepoTags
	if n, err := parseReference(ref); err == nil && slices.Contains(tags, n.String()) {
		tags = []string{n.String()}
	}
	return all, tags, nil
}

// selectRecords are those of an image that are wanted.
func selectRecords(ref string, all []*record, w wants) ([]*record, error) {
	if w.all {
		return all, nil
	}
	var some []*record
	for _, sel := range w.each {
		i := slices.IndexFunc(all, func(r *record) bool {
			p := platformOf(r.Manifest, r.config)
			return p != nil && sel.match.Match(*p)
		})
		if i < 0 {
			var have []string
			for _, r := range all {
				have = append(have, r.platform)
			}
			return nil, fmt.Errorf("image %s: %s is not among %.300q: %w", ref, platforms.FormatAll(sel.platform), have, ErrPlatform)
		}
		if !slices.Contains(some, all[i]) {
			some = append(some, all[i])
		}
	}
	return some, nil
}

type exporter struct {
	ctx     context.Context
	s       *Store
	tw      *tar.Writer
	written map[digest.Digest]bool
}

// dockerManifest is an entry of manifest.json, which docker load reads.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (e *exporter) write(all []*exported) error {
	if err := e.file(ocispec.ImageLayoutFile, mustMarshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})); err != nil {
		return err
	}
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := e.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var docker []dockerManifest
	for _, x := range all {
		slices.Sort(x.tags)
		x.tags = slices.Compact(x.tags)
		var descs []ocispec.Descriptor
		for i, r := range x.all {
			desc, dm, err := e.record(r, x.tags)
			if err != nil {
				return fmt.Errorf("image %s: %w", r.ID, err)
			}
			descs = append(descs, desc)
			if i == 0 && dm != nil { // it knows no platforms
				docker = append(docker, *dm)
			}
		}
		desc, err := e.together(descs)
		if err != nil {
			return err
		}
		if len(x.tags) == 0 {
			index.Manifests = append(index.Manifests, desc)
		}
		for _, t := range x.tags {
			d := desc
			d.Annotations = map[string]string{images.AnnotationImageName: t, ocispec.AnnotationRefName: t[strings.LastIndexByte(t, ':')+1:]}
			index.Manifests = append(index.Manifests, d)
		}
	}
	if err := e.file(ocispec.ImageIndexFile, mustMarshal(index)); err != nil {
		return err
	}
	if len(docker) > 0 { // it knows no artifacts
		if err := e.file("manifest.json", mustMarshal(docker)); err != nil {
			return err
		}
	}
	return e.tw.Close()
}

// mustMarshal is for our own structs, which marshal.
func mustMarshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func blobName(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// record writes the image or artifact.
func (e *exporter) record(r *record, tags []string) (ocispec.Descriptor, *dockerManifest, error) {
	if r.Kind == kindArtifact {
		desc, err := e.artifact(r)
		return desc, nil, err
	}
	desc, dm, err := e.image(r, tags)
	return desc, &dm, err
}

// together is the one of descs, or an index that is made of them.
func (e *exporter) together(descs []ocispec.Descriptor) (ocispec.Descriptor, error) {
	if len(descs) == 1 {
		return descs[0], nil
	}
	raw := mustMarshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: descs})
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return d, e.blob(d.Digest, raw)
}

func (e *exporter) image(r *record, tags []string) (ocispec.Descriptor, dockerManifest, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: r.ID, Size: int64(len(r.ConfigRaw))},
		Layers: []ocispec.Descriptor{},
	}
	dm := dockerManifest{Config: blobName(r.ID), RepoTags: tags, Layers: []string{}}
	for _, id := range r.layerIDs() {
		info := e.s.layers.get(id)
		if info == nil {
			return m.Config, dm, fmt.Errorf("layer %s: %w", id, ErrNotFound)
		}
		if err := e.layer(id, id, info); err != nil {
			return m.Config, dm, fmt.Errorf("layer %s: %w", id, err)
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: id, Size: info.TarSize})
		dm.Layers = append(dm.Layers, blobName(id))
	}
	if err := e.blob(r.ID, r.ConfigRaw); err != nil {
		return m.Config, dm, err
	}
	raw := mustMarshal(m)
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	switch {
	case r.Manifest.Platform != nil:
		desc.Platform = r.Manifest.Platform
	case r.config.OS != "":
		desc.Platform = &r.config.Platform
	}
	return desc, dm, e.blob(desc.Digest, raw)
}

func (e *exporter) blob(d digest.Digest, b []byte) error {
	if e.written[d] {
		return nil
	}
	e.written[d] = true
	return e.file(blobName(d), b)
}

func (e *exporter) file(name string, b []byte) error {
	if err := e.header(name, int64(len(b))); err != nil {
		return err
	}
	_, err := io.Copy(e.tw, bytes.NewReader(b))
	return err
}

func (e *exporter) header(name string, size int64) error {
	return e.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size})
}

// artifact writes the manifest as it came, and the blobs that it names.
func (e *exporter) artifact(r *record) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: r.Manifest.MediaType, Digest: r.ID, Size: int64(len(r.ManifestRaw)), ArtifactType: r.artifactType, Platform: r.Manifest.Platform}
	config, m, err := parseManifest(r.ManifestRaw, r.Manifest.MediaType, ocispec.Platform{})
	if err != nil {
		return desc, err
	}
	for _, l := range m.layers {
		if isNothing(l) {
			if err := e.blob(l.Digest, ocispec.DescriptorEmptyJSON.Data); err != nil {
				return desc, err
			}
		}
	}
	for i := range r.parts {
		if err := e.part(&r.parts[i]); err != nil {
			return desc, fmt.Errorf("layer %s: %w", r.parts[i].desc.Digest, err)
		}
	}
	return desc, errors.Join(e.blob(config.Digest, r.ConfigRaw), e.blob(r.ID, r.ManifestRaw))
}

// part writes a blob of an artifact.
func (e *exporter) part(p *part) error {
	info := e.s.layers.get(p.id)
	if info == nil {
		return ErrNotFound
	}
	name := "file"
	switch {
	case info.Part.Kept:
		name = "blob"
	case !info.file():
		return e.layer(p.id, p.desc.Digest, info)
	}
	if e.written[p.desc.Digest] {
		return nil
	}
	e.written[p.desc.Digest] = true
	f, err := os.Open(filepath.Join(e.s.layerDir(p.id), name))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := e.header(blobName(p.desc.Digest), p.desc.Size); err != nil {
		return err
	}
	d := p.desc.Digest.Algorithm().Digester()
	n, err := io.Copy(io.MultiWriter(e.tw, d.Hash()), contextReader{e.ctx, f})
	if errors.Is(err, tar.ErrWriteTooLong) {
		return errors.Join(ErrDigest, err)
	}
	if got := d.Digest(); err == nil && (n != p.desc.Size || got != p.desc.Digest) {
		err = fmt.Errorf("%d bytes with digest %s: %w", n, got, ErrDigest)
	}
	return err
}

// layer puts a layer's tar stream together, as the blob want, and checks that it is what it was.
func (e *exporter) layer(id, want digest.Digest, info *layerInfo) error {
	if e.written[want] {
		return nil
	}
	e.written[want] = true
	l, err := e.s.openLayer(id, info)
	if err != nil {
		return err
	}
	defer l.close()
	if err := e.header(blobName(want), info.TarSize); err != nil {
		return err
	}
	d := want.Algorithm().Digester()
	if err := layer.Reassemble(e.ctx, io.MultiWriter(e.tw, d.Hash()), l.frame, l.root, l.replaced); err != nil {
		if errors.Is(err, tar.ErrWriteTooLong) || errors.Is(err, layer.ErrInvalid) {
			return errors.Join(ErrDigest, err)
		}
		return err
	}
	if got := d.Digest(); got != want {
		return fmt.Errorf("put together again it has digest %s: %w", got, ErrDigest)
	}
	return nil
}

// layerFiles are what a layer can be put together from.
type layerFiles struct{ frame, base, root, replaced *os.File }

// openLayer opens them. An image is mounted anew: what others have read of it, the kernel would not read again, and whoever
// verifies it has to see what the disk has.
func (s *Store) openLayer(id digest.Digest, info *layerInfo) (l layerFiles, err error) {
	dir := s.layerDir(id)
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.frame, err = os.Open(filepath.Join(dir, "frame")); err != nil {
		return l, err
	}
	if info.Format == LayerErofs {
		l.base, err = mountImage(filepath.Join(dir, imageFile))
	} else {
		l.base, err = os.OpenFile(dir, sys.OpenPath|sys.OpenDirectory, 0)
	}
	if err != nil {
		return l, err
	}
	if l.root, err = openDirAt(l.base, "fs"); err != nil {
		return l, err
	}
	l.replaced, err = openDirAt(l.base, "replaced")
	if errors.Is(err, os.ErrNotExist) {
		l.replaced, err = nil, nil
	}
	return l, err
}

func (l layerFiles) close() {
	for _, f := range []*os.File{l.frame, l.root, l.replaced, l.base} {
		if f != nil {
			f.Close()
		}
	}
}
