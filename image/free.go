package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// FreeOptions direct Free.
type FreeOptions struct {
	DryRun bool // tell what would be freed
	// MinAge is how old leftovers of pulls must be, and with Unused images, since they were pulled.
	MinAge time.Duration
	// Unused frees images, too, that no container has and that are not pinned.
	Unused bool
}

// Freed is what was freed, or would be.
type Freed struct {
	Images []FreedImage
	Layers []FreedLayer // of those images, and of none
	Files  []FreedFile  // parts of downloads, kept blobs, replaced layers
	Bytes  int64
}

// FreedImage is an image that goes.
type FreedImage struct {
	ID    string
	Names []string
}

// FreedLayer is a layer that goes.
type FreedLayer struct {
	ID    digest.Digest
	Bytes int64
}

// FreedFile is anything else; its path is below the store's root.
type FreedFile struct {
	Path  string
	Bytes int64
}

// Free frees what nobody needs: what Collect does, and with Unused images that no container has.
func (s *Store) Free(ctx context.Context, o FreeOptions) (*Freed, error) {
	limit := time.Now().Add(-o.MinAge)
	s.change.Lock()
	f, going := s.planFree(o, limit)
	if o.DryRun {
		s.change.Unlock()
		return f, nil
	}
	var errs []error
	for _, r := range going {
		if err := context.Cause(ctx); err != nil {
			errs = append(errs, err)
			break
		}
		errs = append(errs, s.removeRecord(r.clone()))
	}
	s.change.Unlock()
	return f, errors.Join(append(errs, s.Collect(ctx, o.MinAge))...)
}

// planFree says what would go. The caller holds change.
func (s *Store) planFree(o FreeOptions, limit time.Time) (*Freed, []*record) {
	f := &Freed{}
	going, needed, orphans := s.planImages(o, limit)
	for _, r := range going {
		i := FreedImage{ID: r.ID.String()}
		for _, n := range r.Names {
			i.Names = append(i.Names, n.Ref)
		}
		f.Images = append(f.Images, i)
	}
	s.layers.mu.Lock()
	for id, e := range s.layers.m {
		if e.info == nil || e.uses > 0 || needed[id] || e.info.CreatedAt.After(limit) && !orphans[id] {
			continue
		}
		f.Layers = append(f.Layers, FreedLayer{id, e.info.Size})
		f.Bytes += e.info.Size
	}
	s.layers.mu.Unlock()
	f.Files = s.planFiles(limit)
	for _, x := range f.Files {
		f.Bytes += x.Bytes
	}
	slices.SortFunc(f.Images, func(a, b FreedImage) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(f.Layers, func(a, b FreedLayer) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	return f, going
}

// planImages finds the images that go, the layers that the others need, and the layers of those that go.
func (s *Store) planImages(o FreeOptions, limit time.Time) (going []*record, needed, orphans map[digest.Digest]bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	needed, orphans = map[digest.Digest]bool{}, map[digest.Digest]bool{}
	unused := func(r *record) bool {
		v := s.views[r.ID]
		return o.Unused && v != nil && !v.Pinned && !r.PulledAt.After(limit) && !s.held(r.ID)
	}
	// An image that stays keeps the other platforms of its names.
	kept := map[digest.Digest]bool{}
	for _, r := range s.images {
		if r.Removed || unused(r) {
			continue
		}
		for _, n := range r.Names {
			for _, id := range s.claims[n.Ref] {
				kept[id] = true
			}
		}
	}
	for id, r := range s.images {
		goes := r.Removed && !s.held(id) || unused(r) && !kept[id]
		for _, l := range r.layerIDs() {
			if goes {
				orphans[l] = true
			} else {
				needed[l] = true
			}
		}
		if goes {
			going = append(going, r)
		}
	}
	return going, needed, orphans
}

// planFiles are the partial downloads, kept blobs and replaced layers that Collect would remove.
func (s *Store) planFiles(limit time.Time) []FreedFile {
	var all []FreedFile
	add := func(path string, bytes int64) {
		rel, err := filepath.Rel(s.cfg.Root, path)
		if err != nil {
			rel = path
		}
		all = append(all, FreedFile{rel, bytes})
	}
	blobs := s.manifestBlobs()
	s.eachOldBlob("partial", limit, func(digest.Digest) bool { return true }, func(path string, fi fs.FileInfo) { add(path, fi.Size()) })
	s.eachOldBlob("blobs", limit, func(id digest.Digest) bool { return !blobs[id] }, func(path string, fi fs.FileInfo) { add(path, fi.Size()) })
	for _, path := range s.oldDamaged() {
		bytes, _, _ := DirUsage(s.ctx, path)
		add(path, int64(bytes))
	}
	return all
}

// DiskUse is what takes the store's disk.
type DiskUse struct {
	Images []ImageUse
	Layers int   // on disk, each once
	Bytes  int64 // of the layers
	// Loose layers are of no image: what a pull that failed leaves for the next try.
	LooseLayers int
	LooseBytes  int64
	// Bytes of parts of downloads, kept blobs, replaced layers, and of work in progress and trash.
	Partial, Blobs, Damaged, Transient int64
}

// ImageUse is what one image takes.
type ImageUse struct {
	ID       string
	Names    []string
	Platform string // "" is any
	Size     int64  // of its layers
	Unique   int64  // of its layers that no other image has: what removing it frees
	Pinned   bool
	Removed  bool // only a container still has it
	PulledAt time.Time
	Holders  []string // containers that have it
}

// DiskUse adds up what takes the disk. Layers are not read, the rest is looked at.
func (s *Store) DiskUse(ctx context.Context) (*DiskUse, error) {
	u := &DiskUse{}
	s.imageUse(u)
	for _, part := range []struct {
		dirs []string
		to   *int64
	}{
		{[]string{"partial"}, &u.Partial}, {[]string{"blobs"}, &u.Blobs}, {[]string{"damaged"}, &u.Damaged},
		{[]string{"ingest", "trash"}, &u.Transient},
	} {
		for _, d := range part.dirs {
			n, err := contentUsage(ctx, s.path(d))
			if err != nil {
				return nil, err
			}
			*part.to += n
		}
	}
	return u, nil
}

// contentUsage is DirUsage without the directory itself.
func contentUsage(ctx context.Context, dir string) (int64, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, _, err := DirUsage(ctx, dir)
	return int64(n), err
}

func (s *Store) imageUse(u *DiskUse) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	owners := map[digest.Digest]int{}
	for _, r := range s.images {
		for _, id := range distinct(r.layerIDs()) {
			owners[id]++
		}
	}
	s.layers.mu.Lock()
	defer s.layers.mu.Unlock()
	for id, e := range s.layers.m {
		if e.info == nil {
			continue
		}
		u.Layers++
		u.Bytes += e.info.Size
		if owners[id] == 0 {
			u.LooseLayers++
			u.LooseBytes += e.info.Size
		}
	}
	for id, r := range s.images {
		i := ImageUse{ID: id.String(), Platform: r.platform, Removed: r.Removed, PulledAt: r.PulledAt, Pinned: s.views[id] != nil && s.views[id].Pinned}
		for _, n := range r.Names {
			i.Names = append(i.Names, n.Ref)
		}
		for _, l := range distinct(r.layerIDs()) {
			if e := s.layers.m[l]; e != nil && e.info != nil {
				i.Size += e.info.Size
				if owners[l] == 1 {
					i.Unique += e.info.Size
				}
			}
		}
		for owner, held := range s.holds {
			if _, ok := held[id]; ok {
				i.Holders = append(i.Holders, owner)
			}
		}
		slices.Sort(i.Holders)
		u.Images = append(u.Images, i)
	}
	slices.SortFunc(u.Images, func(a, b ImageUse) int {
		if a.Unique != b.Unique {
			return int(min(1, max(-1, b.Unique-a.Unique)))
		}
		return strings.Compare(a.ID, b.ID)
	})
}

func distinct(ids []digest.Digest) []digest.Digest {
	c := slices.Clone(ids)
	slices.Sort(c)
	return slices.Compact(c)
}
