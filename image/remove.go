package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Remove removes an image. Given an ID (or a prefix), it and all its names go. Given a tag, that name goes, and the
// image with it when it was the last tag; given a digest, the names of that repository go, and the image with them
// when no others are left. What is not there is no error. The layers stay while a container holds the image, or
// another image has them. What has the names for other platforms goes with the image; one of those by its ID goes alone.
func (s *Store) Remove(ctx context.Context, refOrID string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	_, err := s.find(refOrID)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	var all []*record
	if err == nil {
		all, err = s.group(refOrID)
	}
	if err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	going := s.meaning(all[0])
	// The image itself last, so that an interruption leaves the names with what they mean.
	var errs []error
	for _, r := range slices.Backward(all) {
		r = r.clone()
		stays := s.untag(r, refOrID)
		if !stays && r.ID != all[0].ID {
			stays = r.without(going)
		}
		errs = append(errs, s.removeOrKeep(r, stays))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove image %s: %w", refOrID, err)
	}
	return nil
}

// without takes names away, and tells whether the image stays: under a tag if it had one of those, else under a digest.
func (r *record) without(names map[string]bool) bool {
	isTag := func(n name) bool { return !n.isDigest() }
	tagged := slices.ContainsFunc(r.Names, isTag)
	r.Names = slices.DeleteFunc(r.Names, func(n name) bool { return names[n.Ref] })
	if tagged {
		return slices.ContainsFunc(r.Names, isTag)
	}
	return len(r.Names) > 0
}

// removeOrKeep writes what has lost names, or removes it. The caller holds change.
func (s *Store) removeOrKeep(r *record, stays bool) error {
	if !stays {
		return s.removeRecord(r)
	}
	if err := writeRecord(s.imageDir(r.ID), r); err != nil {
		return err
	}
	s.publish(r)
	return nil
}

// untag takes the name ref from r and tells whether the image stays under another.
func (s *Store) untag(r *record, ref string) bool {
	n, err := parseReference(ref)
	if err != nil || !slices.ContainsFunc(r.Names, func(x name) bool { return x.Ref == n.String() }) {
		return false // an ID
	}
	if !strings.Contains(n.String(), "@") {
		r.drop(n.String())
		return slices.ContainsFunc(r.Names, func(x name) bool { return !x.isDigest() })
	}
	repo := repository(n.String())
	r.Names = slices.DeleteFunc(r.Names, func(x name) bool { return repository(x.Ref) == repo })
	return len(r.Names) > 0
}

// removeRecord takes the image out of sight and, unless a container holds it, off the disk. The caller holds change.
func (s *Store) removeRecord(r *record) error {
	s.mu.Lock()
	old := s.images[r.ID]
	held := s.held(r.ID)
	if !held {
		delete(s.viewUse, r.ID)
		s.unpublish(r.ID) // nobody can hold it from here on
	}
	s.mu.Unlock()
	if held {
		r.Removed, r.Names = true, nil
		if err := writeRecord(s.imageDir(r.ID), r); err != nil {
			return err
		}
		s.publish(r)
		return nil
	}
	if err := s.discard(s.imageDir(r.ID)); err != nil {
		s.publish(old)
		return err
	}
	return errors.Join(s.collectBlobsOf(r),
		s.collectLayers(func(id digest.Digest, _ *layerInfo) bool { return slices.Contains(r.layerIDs(), id) }))
}

// held tells whether a container holds the image. The caller holds mu.
func (s *Store) held(id digest.Digest) bool {
	for _, ids := range s.holds {
		if _, ok := ids[id]; ok {
			return true
		}
	}
	return false
}

// Hold keeps the image's layers for owner (a container ID) whatever is removed, until Release. Holds are not
// persisted: the caller makes them anew after Open and before it calls Collect or lets anyone remove images. id may
// also be a reference; an image that was removed while it was held can be held again by its ID. Hold never waits for
// the disk.
func (s *Store) Hold(id, owner string) error {
	d, err := s.findHeld(id)
	if err != nil {
		return fmt.Errorf("hold image for %s: %w", owner, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[d] == nil {
		return fmt.Errorf("hold image for %s: %w: %s", owner, ErrNotFound, d)
	}
	if s.holds[owner] == nil {
		s.holds[owner] = map[digest.Digest]struct{}{}
	}
	s.holds[owner][d] = struct{}{}
	return nil
}

// Held is Get that also finds, by its whole ID, an image that was removed while a container holds it: what its
// configuration says is needed as long as the container is.
func (s *Store) Held(refOrID string) (*Image, error) {
	id, err := s.findHeld(refOrID)
	if err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if v := s.views[id]; v != nil {
		return v, nil
	}
	if r := s.images[id]; r != nil {
		return s.view(r), nil
	}
	return nil, fmt.Errorf("%w: %.300q", ErrNotFound, refOrID)
}

// findHeld finds an image, also one that was removed under a container.
func (s *Store) findHeld(refOrID string) (digest.Digest, error) {
	d, err := s.find(refOrID)
	if err == nil {
		return d, nil
	}
	if id, ok := asID(refOrID); ok {
		s.mu.RLock()
		defer s.mu.RUnlock()
		if s.images[id] != nil {
			return id, nil
		}
	}
	return "", err
}

// Release ends all holds of owner. Its overlay mounts must be gone. What was removed meanwhile is collected.
func (s *Store) Release(owner string) error {
	s.mu.Lock()
	ids := s.holds[owner]
	delete(s.holds, owner)
	var removed []digest.Digest
	for id := range ids {
		if r := s.images[id]; r != nil && r.Removed {
			removed = append(removed, id)
		}
	}
	s.mu.Unlock()
	if len(ids) > 0 {
		s.trees.released()
	}
	if len(removed) == 0 {
		return nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	var errs []error
	for _, id := range removed {
		errs = append(errs, s.collectRemoved(id))
	}
	return errors.Join(errs...)
}

// collectRemoved finishes the removal of an image that nobody holds any more. The caller holds change.
func (s *Store) collectRemoved(id digest.Digest) error {
	s.mu.RLock()
	r := s.images[id]
	skip := r == nil || !r.Removed || s.held(id)
	s.mu.RUnlock()
	if skip {
		return nil
	}
	return s.removeRecord(r)
}

// Collect frees what nobody needs: images that were removed and are not held; layers that belong to no image, parts of
// downloads, and kept blobs of no image, if they are older than minAge (they are what a pull that failed leaves for the
// next try).
func (s *Store) Collect(ctx context.Context, minAge time.Duration) error {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	var removed []digest.Digest
	for id, r := range s.images {
		if r.Removed {
			removed = append(removed, id)
		}
	}
	s.mu.RUnlock()
	var errs []error
	for _, id := range removed {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		errs = append(errs, s.collectRemoved(id))
	}
	limit := time.Now().Add(-minAge)
	errs = append(errs, s.collectDamaged(), s.collectPartials(limit), s.collectLayers(func(_ digest.Digest, info *layerInfo) bool { return !info.CreatedAt.After(limit) }))
	return errors.Join(errs...)
}

// collectLayers removes the layers that want asks for and that neither an image nor a pull needs.
func (s *Store) collectLayers(want func(digest.Digest, *layerInfo) bool) error {
	needed := map[digest.Digest]bool{}
	s.mu.RLock()
	for _, r := range s.images {
		for _, id := range r.layerIDs() {
			needed[id] = true
		}
	}
	s.mu.RUnlock()
	var errs []error
	var gone []digest.Digest
	s.layers.mu.Lock()
	for id, e := range s.layers.m {
		if e.info == nil || e.uses > 0 || needed[id] || !want(id, e.info) {
			continue
		}
		if err := s.discard(s.layerDir(id)); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(s.layers.m, id)
		gone = append(gone, id)
	}
	s.layers.mu.Unlock()
	for _, id := range gone {
		s.trees.drop(id)
	}
	return errors.Join(errs...)
}
