package registry

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func (s *Server) referrersDir(repo string, subject digest.Digest) string {
	return filepath.Join(s.opts.Root, "referrers", filepath.FromSlash(repo), "@"+subject.Encoded())
}

// noteSubject files a manifest under the one that it is about, if it is about one (distribution-spec 1.1, "Listing
// Referrers").
func (s *Server) noteSubject(repo string, d ocispec.Descriptor, raw []byte) error {
	var m ocispec.Manifest
	if json.Unmarshal(raw, &m) != nil || m.Subject == nil {
		return nil
	}
	if err := m.Subject.Digest.Validate(); err != nil {
		return err
	}
	d.MediaType, d.ArtifactType, d.Annotations = m.MediaType, m.ArtifactType, m.Annotations
	if d.ArtifactType == "" {
		d.ArtifactType = m.Config.MediaType
	}
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	dir := s.referrersDir(repo, m.Subject.Digest)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, d.Digest.Encoded()), b)
}

func (s *Server) getReferrers(w http.ResponseWriter, _ *http.Request, repo string, subject digest.Digest) {
	if s.opts.NoReferrers {
		fail(w, http.StatusNotFound, "NOT_FOUND", "no such resource")
		return
	}
	if subject.Validate() != nil {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", "invalid digest")
		return
	}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	entries, _ := os.ReadDir(s.referrersDir(repo, subject)) // none: nobody refers to it
	for _, e := range entries {
		var d ocispec.Descriptor
		b, err := os.ReadFile(filepath.Join(s.referrersDir(repo, subject), e.Name()))
		if err == nil && json.Unmarshal(b, &d) == nil {
			idx.Manifests = append(idx.Manifests, d)
		}
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	_ = json.NewEncoder(w).Encode(idx)
}
