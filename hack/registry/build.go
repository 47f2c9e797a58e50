package registry

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression is how a layer is sent.
type Compression string

// The compressions of layers.
const (
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd"
	Uncompressed Compression = ""
)

// Layer is a layer to push.
type Layer struct {
	Tar         []byte
	Compression Compression
}

// Files makes a layer of files by path; a path that ends in "/" is a directory. Directories above are added. The
// times are fixed, so the same files make the same layer.
func Files(files map[string]string) Layer {
	names := map[string]string{}
	for n, body := range files {
		names[n] = body
		for d := filepath.Dir(strings.TrimSuffix(n, "/")); d != "." && d != "/"; d = filepath.Dir(d) {
			names[d+"/"] = ""
		}
	}
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	slices.Sort(sorted)
	headers := make([]tar.Header, 0, len(sorted))
	bodies := make([]string, 0, len(sorted))
	for _, n := range sorted {
		h := tar.Header{Name: n, Mode: 0o755, Typeflag: tar.TypeReg, Size: int64(len(names[n]))}
		if strings.HasSuffix(n, "/") {
			h.Typeflag, h.Size = tar.TypeDir, 0
		}
		headers, bodies = append(headers, h), append(bodies, names[n])
	}
	return Entries(headers, bodies)
}

// Entries makes a layer of tar entries and their contents (bodies may be shorter: the rest have none).
func Entries(headers []tar.Header, bodies []string) Layer {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, h := range headers {
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1700000000, 0)
		}
		body := ""
		if i < len(bodies) && h.Typeflag == tar.TypeReg {
			body = bodies[i]
			h.Size = int64(len(body))
		}
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = io.WriteString(w, body)
		}
		if err != nil {
			panic(fmt.Sprintf("entry %q: %v", h.Name, err)) // a mistake of the test that made it
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return Layer{Tar: b.Bytes(), Compression: Gzip}
}

// Dir makes a layer of a directory tree: files, directories and symbolic links, owned by root.
func Dir(root string) (Layer, error) {
	var headers []tar.Header
	var bodies []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		if err != nil || rel == "." {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		link, body := "", ""
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			if link, err = os.Readlink(p); err != nil {
				return err
			}
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			body = string(b)
		case !fi.IsDir():
			return nil
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil {
			return err
		}
		h.Name = rel
		if fi.IsDir() {
			h.Name += "/"
		}
		h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
		h.ModTime = h.ModTime.Truncate(time.Second)
		h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
		headers, bodies = append(headers, *h), append(bodies, body)
		return nil
	})
	if err != nil {
		return Layer{}, err
	}
	return Entries(headers, bodies), nil
}

// Blob is the layer as it is sent.
func (l Layer) Blob() []byte {
	var b bytes.Buffer
	var w io.WriteCloser
	switch l.Compression {
	case Gzip:
		w = gzip.NewWriter(&b)
	case Zstd:
		w, _ = zstd.NewWriter(&b) // fails for bad options only
	default:
		return l.Tar
	}
	_, err := w.Write(l.Tar)
	if err = errors.Join(err, w.Close()); err != nil {
		panic(err) // a buffer does not fail
	}
	return b.Bytes()
}

// Image describes an image to push.
type Image struct {
	Layers   []Layer
	Config   ocispec.ImageConfig
	Platform ocispec.Platform // default: this machine's
	Docker   bool             // Docker's schema 2 media types instead of OCI's
	// Annotations are the manifest's.
	Annotations map[string]string
}

// Pushed names what was pushed.
type Pushed struct {
	ID       digest.Digest // of the configuration
	Manifest ocispec.Descriptor
	DiffIDs  []digest.Digest
	Layers   []ocispec.Descriptor
}

func mediaTypes(docker bool) (manifest, config string, layers map[Compression]string) {
	if docker {
		const d = "application/vnd.docker."
		return d + "distribution.manifest.v2+json", d + "container.image.v1+json", map[Compression]string{
			Gzip: d + "image.rootfs.diff.tar.gzip", Zstd: d + "image.rootfs.diff.tar.zstd", Uncompressed: d + "image.rootfs.diff.tar",
		}
	}
	return ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, map[Compression]string{
		Gzip: ocispec.MediaTypeImageLayerGzip, Zstd: ocispec.MediaTypeImageLayerZstd, Uncompressed: ocispec.MediaTypeImageLayer,
	}
}

// AddImage stores an image under repo:tag ("" for no tag).
func (s *Server) AddImage(repo, tag string, img Image) (Pushed, error) {
	var p Pushed
	manifestType, configType, layerTypes := mediaTypes(img.Docker)
	if img.Platform.OS == "" {
		img.Platform = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	created := time.Unix(1700000000, 0).UTC()
	cfg := ocispec.Image{Created: &created, Platform: img.Platform, Config: img.Config, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range img.Layers {
		d, diffID, err := s.addLayer(l)
		if err != nil {
			return p, err
		}
		d.MediaType = layerTypes[l.Compression]
		p.Layers = append(p.Layers, d)
		p.DiffIDs = append(p.DiffIDs, diffID)
	}
	cfg.RootFS.DiffIDs = p.DiffIDs
	raw, err := json.Marshal(cfg)
	if err != nil {
		return p, err
	}
	config, err := s.AddBlob(raw)
	if err != nil {
		return p, err
	}
	config.MediaType, p.ID = configType, config.Digest
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifestType, Config: config, Layers: p.Layers, Annotations: img.Annotations}
	if m.Layers == nil {
		m.Layers = []ocispec.Descriptor{}
	}
	if raw, err = json.Marshal(m); err != nil {
		return p, err
	}
	d, err := s.AddManifest(repo, tag, raw)
	p.Manifest = ocispec.Descriptor{MediaType: manifestType, Digest: d, Size: int64(len(raw)), Platform: &img.Platform}
	return p, err
}

// addLayer stores a layer, which is compressed once however many images have it.
func (s *Server) addLayer(l Layer) (ocispec.Descriptor, digest.Digest, error) {
	diffID := digest.FromBytes(l.Tar)
	key := string(l.Compression) + " " + diffID.String()
	s.mu.Lock()
	d, ok := s.layers[key]
	s.mu.Unlock()
	if ok {
		return d, diffID, nil
	}
	d, err := s.AddBlob(l.Blob())
	if err == nil {
		s.mu.Lock()
		s.layers[key] = d
		s.mu.Unlock()
	}
	return d, diffID, err
}

// AddIndex stores an index (or Docker's manifest list) of manifests under repo:tag.
func (s *Server) AddIndex(repo, tag string, docker bool, manifests ...ocispec.Descriptor) (digest.Digest, error) {
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests}
	if docker {
		idx.MediaType = "application/vnd.docker.distribution.manifest.list.v2+json"
	}
	raw, err := json.Marshal(idx)
	if err != nil {
		return "", err
	}
	return s.AddManifest(repo, tag, raw)
}

// AddManifest stores any manifest under repo:tag ("" for its digest only).
func (s *Server) AddManifest(repo, tag string, raw []byte) (digest.Digest, error) {
	d, err := s.AddBlob(raw)
	if err == nil {
		err = s.noteSubject(repo, d, raw)
	}
	if err != nil || tag == "" {
		return d.Digest, err
	}
	if strings.ContainsAny(tag, `/\`) {
		return "", fmt.Errorf("tag %q", tag)
	}
	path := s.tagPath(repo, tag)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return d.Digest, writeFile(path, []byte(d.Digest))
}

// AddBlob stores a blob.
func (s *Server) AddBlob(b []byte) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(len(b))}
	path := s.blobPath(d.Digest)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return d, err
	}
	return d, writeFile(path, b)
}

// writeFile replaces path: a client that reads the old one goes on with it.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}

// Blob is a blob of an artifact.
type Blob struct {
	Body        string
	MediaType   string
	Title       string
	Annotations map[string]string
}

// AddArtifact stores an artifact under repo:tag, with the empty configuration, as `oras push --artifact-type` does. Its ID
// is the digest of its manifest.
func (s *Server) AddArtifact(repo, tag, artifactType string, blobs ...Blob) (Pushed, error) {
	var p Pushed
	config, err := s.AddBlob(ocispec.DescriptorEmptyJSON.Data)
	if err != nil {
		return p, err
	}
	config.MediaType = ocispec.MediaTypeEmptyJSON
	for _, b := range blobs {
		d, err := s.AddBlob([]byte(b.Body))
		if err != nil {
			return p, err
		}
		d.MediaType, d.Annotations = b.MediaType, maps.Clone(b.Annotations)
		if b.Title != "" {
			if d.Annotations == nil {
				d.Annotations = map[string]string{}
			}
			d.Annotations[ocispec.AnnotationTitle] = b.Title
		}
		p.Layers = append(p.Layers, d)
	}
	if len(p.Layers) == 0 {
		p.Layers = []ocispec.Descriptor{config}
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType,
		Config: config, Layers: p.Layers,
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return p, err
	}
	p.ID, err = s.AddManifest(repo, tag, raw)
	p.Manifest = ocispec.Descriptor{MediaType: m.MediaType, ArtifactType: artifactType, Digest: p.ID, Size: int64(len(raw))}
	return p, err
}
