package image

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/distribution/reference"
)

// Tag gives the image that refOrID names another name, and returns the name as it is normalised. Unless force is
// set, a name that another image has is ErrExists.
func (s *Store) Tag(ctx context.Context, refOrID, name string, force bool) (string, error) {
	n, err := parseReference(name)
	if err != nil {
		return "", fmt.Errorf("tag image: %w", err)
	}
	if _, ok := n.(reference.Digested); ok {
		return "", fmt.Errorf("tag image: %q is a digest, which is not chosen but computed: %w", name, ErrReference)
	}
	if err := s.admitAs(ctx, refOrID, n.String()); err != nil {
		return "", fmt.Errorf("tag image %s: %w", refOrID, err)
	}
	s.change.Lock()
	defer s.change.Unlock()
	id, err := s.find(refOrID)
	if err != nil {
		return "", fmt.Errorf("tag image: %w", err)
	}
	s.mu.RLock()
	owner, taken := s.names[n.String()]
	r := s.images[id].clone()
	s.mu.RUnlock()
	if taken && owner == id {
		return n.String(), nil
	}
	if taken && !force {
		return "", fmt.Errorf("tag image %s: %s is image %s: %w", refOrID, n, owner, ErrExists)
	}
	r.add(time.Now().UTC(), n.String())
	if err := writeRecord(s.imageDir(id), r); err != nil {
		return "", fmt.Errorf("tag image %s: %w", refOrID, err)
	}
	if err := s.publishOver(r); err != nil {
		return "", fmt.Errorf("tag image %s: %w", refOrID, err)
	}
	return n.String(), nil
}

// publishOver makes r visible, and takes its names from the images that had them, on disk too. The caller holds change.
func (s *Store) publishOver(r *record) error {
	losers := s.losers(r)
	s.publish(r)
	for _, l := range losers {
		if err := writeRecord(s.imageDir(l.ID), l); err != nil {
			return fmt.Errorf("take the tag from image %s: %w", l.ID, err)
		}
		s.publish(l)
	}
	return nil
}

// Pin keeps the image, whatever its names, from being collected by the kubelet and by Free; or no longer does. Images
// that Config.Pinned names are pinned in any case.
func (s *Store) Pin(ctx context.Context, refOrID string, pinned bool) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	id, err := s.find(refOrID)
	if err != nil && pinned {
		return fmt.Errorf("pin image: %w", err)
	}
	if err != nil {
		return fmt.Errorf("unpin image: %w", err)
	}
	r := s.record(id).clone()
	if names := s.pinnedNames(r); !pinned && len(names) > 0 {
		return fmt.Errorf("unpin image %s: the configuration pins %s: %w", refOrID, names[0], ErrExists)
	}
	if r.Pinned == pinned {
		return nil
	}
	r.Pinned = pinned
	if err := writeRecord(s.imageDir(id), r); err != nil {
		return fmt.Errorf("pin image %s: %w", refOrID, err)
	}
	s.publish(r)
	return nil
}

// pinnedNames are those of the image's names that the configuration pins.
func (s *Store) pinnedNames(r *record) []string {
	var names []string
	for _, n := range r.Names {
		if s.pinned(n.Ref) {
			names = append(names, n.Ref)
		}
	}
	slices.Sort(names)
	return names
}
