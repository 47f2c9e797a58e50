package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/cri-shim/cri-shim/image/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An artifact (image-spec, "Guidelines for Artifact Usage") is a manifest whose blobs need not be layers: models, charts,
// whatever `oras push` is given. No container can be made of it, but it can be a volume: a directory with its blobs as
// files, and with those unpacked that are layers.
//
// Its configuration is often the empty one, so its ID is the digest of its manifest. Its blobs are kept beside the layers
// of images, counted, collected and verified as those are, each under an ID that stands for the blob and for what was
// made of it. The names, which two artifacts may give one blob, are hard links in files/ beside the image's record; that
// directory is the topmost of what is mounted, and mostly all of it. What cannot be made of the blob's own bytes again
// when the artifact is exported, with the same digests, is kept as it came beside what was made of it.

// kindArtifact is record.Kind of an artifact; an image has none.
const kindArtifact = "artifact"

// annotationUnpack marks a directory that ORAS has put into an archive.
const annotationUnpack = "io.deis.oras.content.unpack"

// modelPath has the paths of a model's files (CNCF ModelPack), where they have no title.
var modelPath = []string{"org.cncf.model.filepath", "org.cnai.model.filepath"}

// What is made of a blob.
const (
	partTar  = "tar"  // unpacked
	partFile = "file" // kept as it is
	// partAuto is unpacked if it is a tar stream. ORAS gives any file the media type of an uncompressed layer unless it is told
	// another.
	partAuto = "auto"
)

// part is a blob of an artifact.
type part struct {
	desc ocispec.Descriptor
	id   digest.Digest // what the store has it under
	kind string
	name string // of the file; clean, relative, unique. Empty for partTar
}

// sealed: the blob is encrypted, and what is made of it is not.
func (p *part) sealed() bool { return isEncrypted(p.desc.MediaType) }

// partInfo is the part of layer.json that is an artifact's.
type partInfo struct {
	ID   digest.Digest `json:"id"`   // which the directory is named after
	Blob digest.Digest `json:"blob"` // DiffID is that of its content: deciphered, decompressed
	// File: it is the file "file", not a tree.
	File bool `json:"file,omitempty"`
	// Kept: the blob is the file "blob", as it came.
	Kept bool `json:"kept,omitempty"`
}

// partID never is the digest of any content, so no image can claim an artifact's blob as its layer, nor an artifact that
// means the ciphertext what somebody else has deciphered.
func partID(kind string, blob digest.Digest, sealed bool) digest.Digest {
	return digest.FromString(fmt.Sprintf("cri-shim part of an artifact 1\x00%s\x00%s\x00%s", kind, strconv.FormatBool(sealed), blob))
}

// readArtifact makes m an artifact.
func readArtifact(m *manifest) error {
	parts, err := planParts(m.layers)
	if err != nil {
		return err
	}
	m.artifact, m.id, m.parts, m.layers, m.ids = true, m.desc.Digest, parts, nil, nil
	for i := range parts {
		m.layers = append(m.layers, parts[i].desc)
		m.ids = append(m.ids, parts[i].id)
	}
	return nil
}

// planParts says what is made of the blobs of an artifact's manifest, and checks the names. A blob that stands for there
// being none is left out.
func planParts(layers []ocispec.Descriptor) ([]part, error) {
	var parts []part
	names := map[string]int{} // files, and -1 for the directories above them
	for i, l := range layers {
		if isNothing(l) {
			continue
		}
		p := part{desc: l, kind: partKind(l)}
		p.id = partID(p.kind, l.Digest, p.sealed())
		if p.kind != partTar {
			field, name := partName(l)
			clean, err := cleanPartName(name)
			if err != nil {
				return nil, fmt.Errorf("layers[%d].annotations[%s]: %w", i, field, err)
			}
			p.name = clean
			if at, taken := names[clean]; taken {
				if at >= 0 && field == "" && layers[at].Digest == l.Digest {
					continue // the same, twice, without a name
				}
				return nil, fmt.Errorf("layers[%d].annotations[%s]: %.200q is what another layer is, or is below: %w", i, field, name, ErrInvalid)
			}
			for dir := path.Dir(clean); dir != "."; dir = path.Dir(dir) {
				if at, taken := names[dir]; taken && at >= 0 {
					return nil, fmt.Errorf("layers[%d].annotations[%s]: %.200q is below layers[%d], a file: %w", i, field, name, at, ErrInvalid)
				}
				names[dir] = -1
			}
			names[clean] = i
			if len(names) > maxPartNames {
				return nil, fmt.Errorf("layers[%d].annotations[%s]: more than %d files and directories: %w", i, field, maxPartNames, ErrTooLarge)
			}
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// isNothing tells the empty descriptor, which a manifest without layers has as its only one.
func isNothing(d ocispec.Descriptor) bool {
	return d.MediaType == ocispec.MediaTypeEmptyJSON && d.Digest == ocispec.DescriptorEmptyJSON.Digest && d.Annotations[ocispec.AnnotationTitle] == ""
}

// tarTypes are the media types of OCI's and Docker's layers, and of a model's archives. Others, such as a chart's, may end in
// ".tar+gzip" as well; who uses those wants the archive.
var tarTypes = regexp.MustCompile(`^application/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1|docker\.image\.rootfs\.(foreign\.)?diff` +
	`|(cncf|cnai)\.model\.[a-z0-9.]+)\.tar([.+](gzip|zstd))?$`)

func partKind(l ocispec.Descriptor) string {
	mediaType, _, _ := strings.Cut(l.MediaType, ";")
	mediaType = strings.TrimSuffix(mediaType, "+encrypted")
	switch mediaType {
	case ocispec.MediaTypeImageLayer, images.MediaTypeDockerSchema2Layer:
		if l.Annotations[ocispec.AnnotationTitle] != "" && l.Annotations[annotationUnpack] != "true" {
			return partAuto
		}
		return partTar
	}
	if l.Annotations[annotationUnpack] == "true" || tarTypes.MatchString(mediaType) {
		return partTar
	}
	return partFile
}

// partName is what a file is called, and the annotation that says so, "" for none.
func partName(l ocispec.Descriptor) (field, name string) {
	for _, field := range append([]string{ocispec.AnnotationTitle}, modelPath...) {
		if name := l.Annotations[field]; name != "" {
			return field, name
		}
	}
	return "", l.Digest.Encoded()
}

const (
	maxPartName = 1024 // bytes of a path
	maxNamePart = 255  // NAME_MAX
	// maxPartNames bounds what is made for the names of all files, which a manifest of 8 MiB could make many of.
	maxPartNames = 16 << 10
)

// cleanPartName checks a path and takes the "./" away that it may begin with.
func cleanPartName(name string) (string, error) {
	switch {
	case len(name) > maxPartName:
		return "", fmt.Errorf("a path of %d bytes; at most %d are taken: %w", len(name), maxPartName, ErrInvalid)
	case strings.IndexByte(name, 0) >= 0:
		return "", fmt.Errorf("%.200q has a NUL byte: %w", name, ErrInvalid)
	case path.IsAbs(name):
		return "", fmt.Errorf("%.200q is an absolute path: %w", name, ErrInvalid)
	case strings.HasSuffix(name, "/"):
		return "", fmt.Errorf("%.200q is a directory's name: %w", name, ErrInvalid)
	}
	for _, e := range strings.Split(name, "/") {
		switch {
		case e == "..":
			return "", fmt.Errorf("%.200q has \"..\" in it: %w", name, ErrInvalid)
		case len(e) > maxNamePart:
			return "", fmt.Errorf("%.200q has a name of %d bytes in it; at most %d are taken: %w", name, len(e), maxNamePart, ErrInvalid)
		}
	}
	clean := path.Clean(name)
	if clean == "." {
		return "", fmt.Errorf("%.200q names no file: %w", name, ErrInvalid)
	}
	return clean, nil
}

// isArtifact tells whether a manifest is no image, by its configuration: that has another type, or is the empty one, and
// does not say what the layers are. Image builders of the past gave a configuration other types too.
func isArtifact(desc ocispec.Descriptor, c ocispec.Image, cerr error) bool {
	if desc.Digest == ocispec.DescriptorEmptyJSON.Digest {
		return true
	}
	if images.IsConfigType(desc.MediaType) {
		return false
	}
	return cerr != nil || len(c.RootFS.DiffIDs) == 0
}

// isTar tells whether a tar stream may begin so: with a header whose checksum is right (POSIX.1, pax, "ustar Interchange
// Format").
func isTar(b []byte) bool {
	if len(b) < layer.TarBlock {
		return false
	}
	text := strings.Trim(string(b[148:156]), " \x00")
	want, err := strconv.ParseInt(text, 8, 64)
	return err == nil && want == layer.TarChecksum((*[layer.TarBlock]byte)(b))
}

// linkFiles makes dir/files with the names of those parts that are files, and tells whether there are any. The parts are
// in use by the caller.
func (s *Store) linkFiles(dir string, parts []part) (bool, error) {
	root := filepath.Join(dir, "files")
	made := map[string]bool{}
	for i := range parts {
		p := &parts[i]
		info := s.layers.get(p.id)
		if info == nil {
			return false, fmt.Errorf("blob %s: %w", p.desc.Digest, ErrNotFound)
		}
		if !info.file() {
			continue
		}
		// The names were checked, and nothing but these directories and links is made here.
		if err := makeDirs(root, path.Dir(p.name), made); err != nil {
			return false, err
		}
		if err := os.Link(filepath.Join(s.layerDir(p.id), "file"), filepath.Join(root, p.name)); err != nil {
			return false, err
		}
	}
	return len(made) > 0, nil
}

// makeDirs makes root and the directories down to rel, whatever the umask.
func makeDirs(root, rel string, made map[string]bool) error {
	if made[rel] {
		return nil
	}
	if rel != "." {
		if err := makeDirs(root, path.Dir(rel), made); err != nil {
			return err
		}
	}
	dir := filepath.Join(root, rel)
	made[rel] = true
	return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755))
}

// unpackedOf are those of the layers that are trees.
func (s *Store) unpackedOf(ids []digest.Digest) []digest.Digest {
	return slices.DeleteFunc(slices.Clone(ids), func(id digest.Digest) bool { return s.layers.get(id).file() })
}

// partOf is the artifact's part with that ID; nil for an image's layer.
func (r *record) partOf(id digest.Digest) *part {
	i := slices.IndexFunc(r.parts, func(p part) bool { return p.id == id })
	if i < 0 {
		return nil
	}
	return &r.parts[i]
}

// checkLinks tells whether the artifacts' names lead to the blob that the store has, and not to one that it had.
func (s *Store) checkLinks(id digest.Digest, artifacts []*record) error {
	have, err := os.Lstat(filepath.Join(s.layerDir(id), "file"))
	if err != nil {
		return err
	}
	for _, r := range artifacts {
		for _, p := range r.parts {
			if p.id != id {
				continue
			}
			got, err := os.Lstat(filepath.Join(s.imageDir(r.ID), "files", p.name))
			if err != nil {
				return err
			}
			if !os.SameFile(have, got) {
				return fmt.Errorf("%s has another file as %q: %w", displayName(r), p.name, ErrDigest)
			}
		}
	}
	return nil
}

// linkAgain puts a blob that was replaced in its places in artifacts. What is there may be mounted, and is put aside.
func (s *Store) linkAgain(artifacts []*record, id digest.Digest) error {
	if info := s.layers.get(id); !info.file() {
		return nil
	}
	var errs []error
	for _, r := range artifacts {
		errs = append(errs, s.linkOneAgain(r, id))
	}
	return errors.Join(errs...)
}

func (s *Store) linkOneAgain(r *record, id digest.Digest) (err error) {
	s.change.Lock()
	defer s.change.Unlock()
	if s.record(r.ID) == nil {
		return nil // removed meanwhile
	}
	tmp, err := os.MkdirTemp(s.path("ingest"), "files-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if _, err := s.linkFiles(tmp, r.parts); err != nil {
		return err
	}
	return s.exchange(filepath.Join(tmp, "files"), filepath.Join(s.imageDir(r.ID), "files"), id)
}

// Artifact is what is particular to one.
type Artifact struct {
	Type  string         `json:"type"`
	Files []ArtifactFile `json:"files,omitempty"`
	// Unpacked are the blobs that are layers.
	Unpacked []digest.Digest `json:"unpacked,omitempty"`
}

// ArtifactFile is a blob that is a file.
type ArtifactFile struct {
	Name   string        `json:"name"`
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

func (s *Store) artifactOf(r *record) *Artifact {
	if r.Kind != kindArtifact {
		return nil
	}
	a := &Artifact{Type: r.artifactType}
	for _, p := range r.parts {
		info := s.layers.get(p.id)
		if info.file() {
			a.Files = append(a.Files, ArtifactFile{p.name, p.desc.Digest, info.TarSize})
		} else {
			a.Unpacked = append(a.Unpacked, p.desc.Digest)
		}
	}
	return a
}

// fileTime is when a blob that is a file was last changed, as far as anyone can tell.
var fileTime = time.Unix(0, 0)

func (r *record) noRootfs() error {
	return fmt.Errorf("%w: %s (%.100q) can be a volume only", ErrArtifact, displayName(r), r.artifactType)
}

// partInto makes of a blob what is to be made of it, below tmp, and fills info.
func (s *Store) partInto(ctx context.Context, tmp string, b *blobReader, j layerJob, w way, info *layerInfo) (err error) {
	info.Part = &partInfo{ID: j.id, Blob: j.desc.Digest}
	head := bufio.NewReaderSize(b, 64<<10)
	begin, _ := head.Peek(layer.TarBlock) // its error comes again
	unpack := j.part.kind == partTar || j.part.kind == partAuto && j.key == nil && isTar(begin)
	var keep *os.File
	if j.key != nil || unpack && !isTar(begin) {
		info.Part.Kept = true
		if keep, err = os.OpenFile(filepath.Join(tmp, "blob"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, keep.Close()) }()
	}
	diff := j.desc.Digest.Algorithm().Digester()
	used := false
	use := func(ctx context.Context, in io.Reader) (err error) {
		if j.key != nil && j.part.kind == partAuto {
			plain := bufio.NewReaderSize(in, 64<<10)
			begin, _ := plain.Peek(layer.TarBlock)
			in, unpack = plain, isTar(begin)
		}
		if !unpack {
			info.Part.File = true
			return s.fileInto(ctx, filepath.Join(tmp, "file"), io.TeeReader(in, diff.Hash()), info)
		}
		used, err = s.unpackInto(ctx, tmp, in, diff.Hash(), w, info)
		return err
	}
	err = verified(ctx, b, head, writerOrNil(keep), j.key, use)
	if info.DiffID = diff.Digest(); err == nil && !info.Part.Kept && info.DiffID != j.desc.Digest {
		err = fmt.Errorf("content has digest %s: %w", info.DiffID, ErrDigest)
	}
	if info.Part.Kept {
		info.Size += onDisk(j.desc.Size)
		info.Inodes++
	}
	return blameProgram(err, used, w.program)
}

func writerOrNil(f *os.File) io.Writer {
	if f == nil {
		return nil
	}
	return f
}

// onDisk is what a file takes, in whole blocks.
func onDisk(size int64) int64 { return (size + 4095) &^ 4095 }

// fileInto writes a blob that is kept as a file.
func (s *Store) fileInto(ctx context.Context, path string, in io.Reader, info *layerInfo) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// The context ends what comes from a source that does not.
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(contextReader{ctx, in}, s.cfg.MaxLayerSize+1), make([]byte, 128<<10))
	if err != nil {
		return err
	}
	if n > s.cfg.MaxLayerSize {
		return fmt.Errorf("more than %d bytes: %w", s.cfg.MaxLayerSize, ErrTooLarge)
	}
	info.Size, info.Inodes, info.TarSize = onDisk(n), 1, n
	return errors.Join(f.Chmod(0o644), os.Chtimes(path, fileTime, fileTime))
}
