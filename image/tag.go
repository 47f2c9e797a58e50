package image

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
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
	if _, err := s.find(refOrID); err != nil {
		return "", fmt.Errorf("tag image: %w", err)
	}
	all, err := s.group(refOrID)
	if err != nil {
		return "", fmt.Errorf("tag image: %w", err)
	}
	s.mu.RLock()
	owner, taken := s.names[n.String()]
	s.mu.RUnlock()
	if taken && owner != all[0].ID && !force {
		return "", fmt.Errorf("tag image %s: %s is image %s: %w", refOrID, n, owner, ErrExists)
	}
	if taken && owner == all[0].ID && !slices.ContainsFunc(all, func(r *record) bool { _, ok := r.claim(n.String()); return !ok }) {
		return n.String(), nil
	}
	now, top := time.Now().UTC(), all[0].leadsTo(refOrID)
	for _, r := range all {
		r = r.clone()
		r.add(now, top, n.String())
		if err := writeRecord(s.imageDir(r.ID), r); err != nil {
			return "", fmt.Errorf("tag image %s: %w", refOrID, err)
		}
		if err := s.publishOver(r); err != nil {
			return "", fmt.Errorf("tag image %s: %w", refOrID, err)
		}
	}
	return n.String(), nil
}

// leadsTo is the digest that a name of the image leads to; of an ID, that of a name that it has.
func (r *record) leadsTo(refOrID string) digest.Digest {
	if n, err := parseReference(refOrID); err == nil {
		if c, ok := r.claim(n.String()); ok {
			return r.topOf(c)
		}
	}
	if len(r.Names) > 0 {
		return r.topOf(r.Names[0])
	}
	return r.Manifest.Digest
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

// Pin keeps the image, all platforms of it, whatever its names, from being collected by the kubelet and by Free; or no longer does. Images
// that Config.Pinned names are pinned in any case.
func (s *Store) Pin(ctx context.Context, refOrID string, pinned bool) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	verb := "unpin"
	if pinned {
		verb = "pin"
	}
	_, err := s.find(refOrID)
	var all []*record
	if err == nil {
		all, err = s.group(refOrID)
	}
	if err != nil {
		return fmt.Errorf("%s image: %w", verb, err)
	}
	for _, r := range all {
		if names := s.pinnedNames(r); !pinned && len(names) > 0 {
			return fmt.Errorf("unpin image %s: the configuration pins %s: %w", refOrID, names[0], ErrExists)
		}
	}
	for _, r := range all {
		if r.Pinned == pinned {
			continue
		}
		r = r.clone()
		r.Pinned = pinned
		if err := writeRecord(s.imageDir(r.ID), r); err != nil {
			return fmt.Errorf("%s image %s: %w", verb, refOrID, err)
		}
		s.publish(r)
	}
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
