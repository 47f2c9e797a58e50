package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// recover reads the store and puts right what was interrupted. The lock is held and nobody else is here yet.
func (s *Store) recover(ctx context.Context) error {
	ingest, err := os.ReadDir(s.path("ingest"))
	if err != nil {
		return err
	}
	for _, e := range ingest {
		if strings.HasPrefix(e.Name(), wholePrefix) {
			err := s.finishGroup(s.path("ingest", e.Name()))
			if err == nil {
				continue
			}
			s.problem(s.path("ingest", e.Name()), err)
		}
		if err := s.discard(s.path("ingest", e.Name())); err != nil {
			return err
		}
	}
	if err := s.eachDigestDir(ctx, "layers", s.loadLayer); err != nil {
		return err
	}
	var found []*record
	err = s.eachDigestDir(ctx, "images", func(dir string, id digest.Digest) error {
		r, err := s.loadImage(dir, id)
		if err == nil && r.Boot != "" && r.Boot != s.boot || errors.Is(err, errUnwritten) {
			s.log.Warn("image had not reached the disk when the machine went down: it has to be pulled again", "id", id)
			return s.discard(dir)
		}
		if err == nil {
			found = append(found, r)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := s.settleNames(found); err != nil {
		return err
	}
	for _, r := range found {
		if r.Boot == "" {
			s.layers.setSynced(r.layerIDs())
		}
	}
	for _, r := range found {
		if r.Boot != "" {
			r.landing = new(int)
		}
		s.publish(r)
		if err := s.recoverViews(ctx, r.ID); err != nil {
			return err
		}
		s.settleAgain(r)
	}
	return s.dropUnsynced()
}

// eachDigestDir calls f for each kind/ALGO/HEX. An error of f costs that entry only.
func (s *Store) eachDigestDir(ctx context.Context, kind string, f func(dir string, id digest.Digest) error) error {
	algos, err := os.ReadDir(s.path(kind))
	if err != nil {
		return err
	}
	for _, a := range algos {
		entries, err := os.ReadDir(s.path(kind, a.Name()))
		if err != nil {
			s.problem(s.path(kind, a.Name()), err)
			continue
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			dir := s.path(kind, a.Name(), e.Name())
			id := digest.Digest(a.Name() + ":" + e.Name())
			err := id.Validate()
			if err == nil {
				err = f(dir, id)
			}
			if err != nil {
				s.problem(dir, err)
			}
		}
	}
	return nil
}

func (s *Store) problem(path string, err error) {
	s.log.Error("image store: unusable entry", "path", path, "err", err)
	s.broken = append(s.broken, Problem{Path: path, Err: err})
}

// loadLayer takes a layer into the set. One that cannot be read is thrown away: it can be pulled again.
func (s *Store) loadLayer(dir string, id digest.Digest) error {
	b, err := os.ReadFile(filepath.Join(dir, "layer.json"))
	info := &layerInfo{}
	if err == nil {
		err = json.Unmarshal(b, info)
	}
	if err == nil && (info.Version != layerVersion || info.id() != id) {
		err = fmt.Errorf("layer.json is version %d of %s: %w", info.Version, info.id(), ErrInvalid)
	}
	for _, name := range info.content() {
		if err == nil {
			_, err = os.Lstat(filepath.Join(dir, name))
		}
	}
	if err == nil && info.Marks != nil && !s.copies {
		err = s.settleMarks(dir, info)
	}
	if err != nil {
		return errors.Join(err, s.discard(dir))
	}
	done := make(chan struct{})
	close(done)
	s.layers.m[id] = &layerEntry{info: info, done: done}
	return nil
}

func (s *Store) loadImage(dir string, id digest.Digest) (*record, error) {
	b, err := os.ReadFile(filepath.Join(dir, "image.json"))
	if err != nil {
		return nil, err
	}
	if len(b) == 0 {
		return nil, errUnwritten
	}
	r, err := parseRecord(b, id)
	if err != nil {
		return nil, err
	}
	for _, l := range r.layerIDs() {
		if s.layers.m[l] == nil {
			return nil, fmt.Errorf("layer %s is missing: %w", l, ErrInvalid)
		}
	}
	for name, want := range map[string]bool{"attrs": r.Attrs, "files": r.Files} {
		if !want {
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// settleNames leaves each name with the image that claimed it last, and its other platforms: a crash between the two writes
// of a moving tag leaves it with both.
func (s *Store) settleNames(all []*record) error {
	claims := map[string][]*record{}
	for _, r := range all {
		for _, n := range r.Names {
			if !n.isDigest() {
				claims[n.Ref] = append(claims[n.Ref], r)
			}
		}
	}
	var errs []error
	for ref, claimed := range claims {
		slices.SortStableFunc(claimed, func(a, b *record) int {
			an, _ := a.claim(ref)
			bn, _ := b.claim(ref)
			return bn.At.Compare(an.At)
		})
		last, _ := claimed[0].claim(ref)
		for _, r := range claimed[1:] {
			if n, _ := r.claim(ref); !beside(r, claimed[0], n, last) {
				r.drop(ref)
				errs = append(errs, writeRecord(s.imageDir(r.ID), r))
			}
		}
	}
	return errors.Join(errs...)
}

// dropUnsynced removes layers that no image needs and that were made before the machine last started: nobody can
// tell whether their data reached the disk.
func (s *Store) dropUnsynced() error {
	for id, e := range s.layers.m {
		if e.synced || e.info.Boot == s.boot {
			continue
		}
		delete(s.layers.m, id)
		if err := s.discard(s.layerDir(id)); err != nil {
			return err
		}
	}
	return nil
}
