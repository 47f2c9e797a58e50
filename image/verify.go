package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/image/erofs"
	"github.com/cri-shim/cri-shim/image/layer"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// VerifyOptions direct Verify.
type VerifyOptions struct {
	// Images are references or IDs of those to verify; none: everything in the store.
	Images []string
	// Repair fetches damaged layers again.
	Repair bool
}

// VerifyReport is what Verify found.
type VerifyReport struct {
	Layers  int           // looked at
	Bytes   int64         // of their tar streams
	Took    time.Duration // in all
	Damaged []Damage
	// Problems are what the store could not use when it was opened.
	Problems []string
}

// Damage is a layer whose content is not what its digest says.
type Damage struct {
	Layer   digest.Digest
	Images  []string // names or IDs of those that have it; none: nobody does, and it was removed with Repair
	Problem string
	// Repaired: it was fetched anew. What Running containers have mounted stays as it is until they are started anew.
	Repaired bool
	Running  []string // containers that hold such an image
	Error    string   // why it could not be repaired
}

// Verify reads layers from the disk and compares them with their digests; what is damaged is reported, and with Repair
// fetched again: from a kept blob, or from the registries that the images' names have, with the node's credentials.
// An error is one of the call; what is wrong with layers is in the report.
func (s *Store) Verify(ctx context.Context, o VerifyOptions) (*VerifyReport, error) {
	start := time.Now()
	users, err := s.layerUsers(o.Images)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	rep := &VerifyReport{}
	for _, p := range s.Problems() {
		rep.Problems = append(rep.Problems, p.String())
	}
	for id, images := range users {
		info := s.layers.use(id)
		if info == nil {
			continue // gone meanwhile
		}
		err := s.verifyLayer(ctx, id, info, images)
		if ctx.Err() != nil {
			s.layers.unuse([]digest.Digest{id})
			return nil, fmt.Errorf("verify: %w", context.Cause(ctx))
		}
		rep.Layers++
		rep.Bytes += info.TarSize
		dropped := false
		if err != nil {
			d := s.damage(ctx, id, images, err, o.Repair)
			rep.Damaged = append(rep.Damaged, d)
			dropped = d.Repaired && len(images) == 0
		}
		if !dropped {
			s.layers.unuse([]digest.Digest{id})
		}
	}
	slices.SortFunc(rep.Damaged, func(a, b Damage) int { return strings.Compare(a.Layer.String(), b.Layer.String()) })
	rep.Took = time.Since(start)
	return rep, nil
}

// layerUsers are the layers of the images named, or all layers, with the images that have them.
func (s *Store) layerUsers(refs []string) (map[digest.Digest][]*record, error) {
	users := map[digest.Digest][]*record{}
	if len(refs) == 0 {
		for _, id := range s.layers.all() {
			users[id] = nil
		}
	}
	for _, ref := range refs {
		all, err := s.group(ref)
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			for _, id := range r.layerIDs() {
				users[id] = nil
			}
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.images {
		for _, id := range r.layerIDs() {
			if have, ok := users[id]; ok && !slices.Contains(have, r) {
				users[id] = append(have, r)
			}
		}
	}
	return users, nil
}

func (s *Store) verifyLayer(ctx context.Context, id digest.Digest, info *layerInfo, images []*record) error {
	p := info.Part
	if p == nil {
		return s.verifyTree(ctx, id, info, id)
	}
	if p.Kept {
		if err := verifyFile(ctx, filepath.Join(s.layerDir(id), "blob"), p.Blob); err != nil {
			return err
		}
	}
	if !p.File {
		return s.verifyTree(ctx, id, info, info.DiffID)
	}
	if err := verifyFile(ctx, filepath.Join(s.layerDir(id), "file"), info.DiffID); err != nil {
		return err
	}
	return s.checkLinks(id, images)
}

func verifyFile(ctx context.Context, path string, want digest.Digest) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	d := want.Algorithm().Digester()
	if _, err := io.Copy(d.Hash(), contextReader{ctx, f}); err != nil {
		return err
	}
	if got := d.Digest(); got != want {
		return fmt.Errorf("%s has digest %s, not %s: %w", filepath.Base(path), got, want, ErrDigest)
	}
	return nil
}

// verifyImage tells whether the file is what was written.
func verifyImage(ctx context.Context, path string, want *imageInfo) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := readAheadBufs.Get().(*[readAheadChunk]byte)
	defer readAheadBufs.Put(buf)
	var sum erofs.Sum
	size, err := io.CopyBuffer(&sum, contextReader{ctx, f}, buf[:])
	if err != nil {
		return err
	}
	if got := sum.Sum64(); size != want.Size || got != want.Sum {
		return fmt.Errorf("%s has %d bytes with sum %016x, and had %d with %016x: %w", filepath.Base(path), size, got, want.Size, want.Sum, ErrDigest)
	}
	return nil
}

func (s *Store) verifyTree(ctx context.Context, id digest.Digest, info *layerInfo, want digest.Digest) error {
	if info.Format == LayerErofs {
		if err := verifyImage(ctx, filepath.Join(s.layerDir(id), imageFile), info.Image); err != nil {
			return err
		}
	}
	l, err := s.openLayer(id, info)
	if err != nil {
		return err
	}
	defer l.close()
	d := want.Algorithm().Digester()
	if err := layer.Verify(ctx, d.Hash(), l.frame, l.root, l.replaced); err != nil {
		return err
	}
	if got := d.Digest(); got != want {
		return fmt.Errorf("put together again it has digest %s: %w", got, ErrDigest)
	}
	return nil
}

// damage reports a layer and, if it is to, repairs it. The caller uses the layer.
func (s *Store) damage(ctx context.Context, id digest.Digest, images []*record, why error, repair bool) Damage {
	d := Damage{Layer: id, Problem: why.Error()}
	s.mu.RLock()
	for _, r := range images {
		d.Images = append(d.Images, displayName(r))
		for owner, held := range s.holds {
			if _, ok := held[r.ID]; ok && !slices.Contains(d.Running, owner) {
				d.Running = append(d.Running, owner)
			}
		}
	}
	s.mu.RUnlock()
	slices.Sort(d.Images)
	slices.Sort(d.Running)
	s.log.Error("layer is damaged", "layer", id, "images", d.Images, "err", why)
	if !repair {
		return d
	}
	err := s.repairLayer(ctx, id, images)
	if err == nil {
		err = errors.Join(s.linkAgain(images, id), s.setViewsAside(images, id))
	}
	if d.Repaired = err == nil; !d.Repaired {
		d.Error = err.Error()
		s.log.Error("damaged layer is not repaired", "layer", id, "err", err)
		return d
	}
	s.log.Info("damaged layer is repaired", "layer", id)
	return d
}

// displayName is a tag, a digest or the ID.
func displayName(r *record) string {
	for _, n := range r.Names {
		if !n.isDigest() {
			return n.Ref
		}
	}
	if len(r.Names) > 0 {
		return r.Names[0].Ref
	}
	return r.ID.String()
}

func (s *Store) repairLayer(ctx context.Context, id digest.Digest, images []*record) error {
	if len(images) == 0 {
		return s.dropLayer(id)
	}
	var t tried
	for _, r := range images {
		j, ok := s.jobOf(r, id)
		if !ok {
			continue
		}
		for _, named := range repositories(r) {
			err := s.refetch(ctx, named, j)
			if err == nil || ctx.Err() != nil {
				return err
			}
			t.add(err)
		}
	}
	if len(t) == 0 {
		return fmt.Errorf("its images have no name that says from where: import or pull %s anew: %w", displayName(images[0]), ErrNotFound)
	}
	return t.err("the images' registries")
}

// dropLayer removes a layer that no image has. The caller uses it, and after success no longer does.
func (s *Store) dropLayer(id digest.Digest) error {
	defer s.trees.drop(id)
	s.change.Lock()
	defer s.change.Unlock()
	s.layers.mu.Lock()
	defer s.layers.mu.Unlock()
	e := s.layers.m[id]
	if e == nil || e.uses > 1 {
		return fmt.Errorf("a pull that goes on needs it: %w", ErrExists)
	}
	if err := s.discard(s.layerDir(id)); err != nil {
		return err
	}
	delete(s.layers.m, id)
	return nil
}

// jobOf finds the layer's blob in the image's manifest.
func (s *Store) jobOf(r *record, id digest.Digest) (layerJob, bool) {
	if p := r.partOf(id); p != nil {
		return layerJob{desc: p.desc, id: id, part: p}, true
	}
	_, m, err := parseManifest(r.ManifestRaw, r.Manifest.MediaType, *s.cfg.Platform)
	i := slices.Index(r.layerIDs(), id)
	if err != nil || m == nil || i < 0 || i >= len(m.layers) {
		return layerJob{}, false
	}
	return layerJob{desc: m.layers[i], id: id}, true
}

// repositories are those that the image's names are in.
func repositories(r *record) []reference.Named {
	var all []reference.Named
	seen := map[string]bool{}
	for _, n := range r.Names {
		named, err := parseReference(n.Ref)
		if err != nil || seen[named.Name()] {
			continue
		}
		seen[named.Name()] = true
		all = append(all, named)
	}
	return all
}

func (s *Store) refetch(ctx context.Context, named reference.Named, j layerJob) error {
	reg, err := s.openRegistry(ctx, named, nil)
	if err != nil {
		return err
	}
	defer reg.close()
	if err := s.layers.gate.enter(ctx, j.desc.Size); err != nil {
		return err
	}
	defer s.layers.gate.leave()
	keys, _, err := s.unwrapKeys(ctx, []ocispec.Descriptor{j.desc})
	if err != nil {
		return err
	}
	j.key = keys[0]
	info, err := s.buildLayer(ctx, fetcher{source: reg, stall: s.cfg.ProgressTimeout}, j)
	if err != nil {
		return err
	}
	s.layers.replaced(j.id, info)
	return nil
}

// replaceLayer puts what is complete at tmp in the place of a damaged layer. What is there now may be mounted, so it is
// not deleted yet. An image that has settled trusts its layers: the new one must have reached the disk before.
func (s *Store) replaceLayer(tmp, dst string, id digest.Digest) error {
	return s.exchange(tmp, dst, id)
}

// exchange puts tmp in the place of dst, which is put aside as something of a layer that was damaged.
func (s *Store) exchange(tmp, dst string, id digest.Digest) error {
	if err := sys.Syncfs(s.root); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	err := sys.RenameExchange(tmp, dst)
	if errors.Is(err, os.ErrNotExist) {
		return errors.Join(os.Rename(tmp, dst), syncDir(filepath.Dir(dst)))
	}
	if err != nil {
		return err
	}
	aside := s.path("damaged", fmt.Sprintf("%s-%s-%d", id.Algorithm(), id.Encoded(), time.Now().UnixNano()))
	return errors.Join(syncDir(filepath.Dir(dst)), os.Rename(tmp, aside))
}

// collectDamaged removes replaced layers that no container can have mounted.
func (s *Store) collectDamaged() error {
	var errs []error
	for _, path := range s.oldDamaged() {
		errs = append(errs, s.discard(path))
	}
	return errors.Join(errs...)
}

func (s *Store) oldDamaged() []string {
	found, _ := filepath.Glob(s.path("damaged", "*")) // fails for a bad pattern only
	held := s.heldLayers()
	return slices.DeleteFunc(found, func(path string) bool {
		algo, rest, _ := strings.Cut(filepath.Base(path), "-")
		hex, _, _ := strings.Cut(rest, "-")
		return held[digest.Digest(algo+":"+hex)]
	})
}

// use counts on a layer, nil if it is not there; unuse gives it back.
func (l *layerSet) use(id digest.Digest) *layerInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.m[id]
	if e == nil || e.info == nil {
		return nil
	}
	e.uses++
	return e.info
}

func (l *layerSet) replaced(id digest.Digest, info *layerInfo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.m[id]; e != nil {
		e.info = info
	}
}

// all are the layers on disk.
func (l *layerSet) all() []digest.Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []digest.Digest
	for id, e := range l.m {
		if e.info != nil {
			all = append(all, id)
		}
	}
	return all
}
