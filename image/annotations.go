package image

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Annotations are those of an image's manifest. They are read from it when they are asked for.
func (s *Store) Annotations(refOrID string) (map[string]string, error) {
	id, err := s.findHeld(refOrID)
	if err != nil {
		return nil, err
	}
	r := s.record(id)
	if r == nil {
		return nil, fmt.Errorf("%w: %.300q", ErrNotFound, refOrID)
	}
	if !bytes.Contains(r.ManifestRaw, []byte(`"annotations"`)) { // most have none, and a container's creation asks
		return nil, nil
	}
	var doc struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(r.ManifestRaw, &doc); err != nil {
		return nil, fmt.Errorf("manifest of image %s: %w: %w", id, ErrInvalid, err)
	}
	return doc.Annotations, nil
}
