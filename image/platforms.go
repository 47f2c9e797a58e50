package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A reference may have several platforms: each is an image of its own, with its ID and its record, that claims the
// reference's names. Claims of one name stand side by side if they come from the same index and are for different platforms;
// else the latest holds. A name means the image that suits this machine, and where there is none, the first of the others,
// which no container can be made of. What is done to a name is done to all that claim it.

// Images of several platforms that come together become visible together: their directories and changed records are
// collected in one of ingest/, whose new name is the commit. Who finds it at a start does what was left to do.
const (
	groupPrefix = "group-"
	wholePrefix = "whole-"
)

// maxPlatforms bounds the entries of indexes that are looked at for all platforms of an image.
const maxPlatforms = 256

// selection is a platform, and what suits it.
type selection struct {
	platform ocispec.Platform
	match    platforms.MatchComparer
}

// suiting is the platform of a machine that images are to run on: linux/amd64 runs linux/386 as well.
func suiting(p ocispec.Platform) selection { return selection{p, platforms.Only(p)} }

// wants are the platforms to take of an image.
type wants struct {
	each []selection
	all  bool
	// whole, if set, tells whether an image can be taken. With all, what it cannot find is left out.
	whole func(context.Context, *manifest) error
}

// parseWants reads names of platforms, which are meant exactly. Without any it is what the machine runs.
func (s *Store) parseWants(names []string, all bool) (wants, error) {
	if all && len(names) > 0 {
		return wants{}, fmt.Errorf("platform: %.100q, and all: %w", names, ErrPlatform)
	}
	w := wants{all: all}
	for _, n := range names {
		p, err := platforms.Parse(n)
		if err != nil {
			return w, fmt.Errorf("platform: %w: %w", ErrPlatform, err)
		}
		w.each = append(w.each, selection{p, platforms.OnlyStrict(p)})
	}
	if !all && len(names) == 0 {
		w.each = []selection{suiting(*s.cfg.Platform)}
	}
	return w, nil
}

// readManifests follows indexes from top to the manifests that are wanted and reads their configurations.
func readManifests(ctx context.Context, src fetcher, top ocispec.Descriptor, w wants) ([]*manifest, error) {
	r := &manifestReader{src: src, docs: map[digest.Digest]document{}, w: w, seen: map[string]bool{}}
	if w.all {
		if err := r.all(ctx, top, 0); err != nil {
			return nil, err
		}
		if len(r.found) == 0 {
			return nil, fmt.Errorf("manifest %s: it has no image that is whole: %w", top.Digest, ErrPlatform)
		}
		return r.found, nil
	}
	for _, sel := range w.each {
		m, err := r.one(ctx, top, sel)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(r.found, func(f *manifest) bool { return f.desc.Digest == m.desc.Digest }) {
			r.found = append(r.found, m)
		}
	}
	return r.found, nil
}

// manifestReader reads each document once.
type manifestReader struct {
	src     fetcher
	docs    map[digest.Digest]document
	w       wants
	found   []*manifest
	seen    map[string]bool // platforms of found
	visited int
}

func (r *manifestReader) doc(ctx context.Context, desc ocispec.Descriptor) (document, error) {
	if d, ok := r.docs[desc.Digest]; ok {
		return d, nil
	}
	raw, err := readBlob(ctx, r.src, desc, maxManifestSize)
	var d document
	if err == nil {
		d, err = parseDocument(raw, desc.MediaType)
	}
	if err != nil {
		return d, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	d.raw = raw
	r.docs[desc.Digest] = d
	return d, nil
}

func (r *manifestReader) one(ctx context.Context, desc ocispec.Descriptor, sel selection) (*manifest, error) {
	for range maxIndexDepth {
		d, err := r.doc(ctx, desc)
		if err != nil {
			return nil, err
		}
		if d.config == nil {
			next, err := chooseFor(d.entries, sel)
			if err != nil {
				return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
			}
			desc = next
			continue
		}
		m := d.manifest(desc)
		return m, readConfig(ctx, r.src, m, *d.config, &sel)
	}
	return nil, tooDeep(desc)
}

func tooDeep(desc ocispec.Descriptor) error {
	return fmt.Errorf("manifest %s: indexes nested deeper than %d: %w", desc.Digest, maxIndexDepth, ErrInvalid)
}

// all finds the images of an index, the first for each platform.
func (r *manifestReader) all(ctx context.Context, desc ocispec.Descriptor, depth int) error {
	if depth == maxIndexDepth {
		return tooDeep(desc)
	}
	d, err := r.doc(ctx, desc)
	if err != nil {
		return err
	}
	if d.config == nil {
		for _, e := range candidates(d.entries) {
			if r.visited++; r.visited > maxPlatforms {
				return fmt.Errorf("manifest %s: more than %d entries: %w", desc.Digest, maxPlatforms, ErrTooLarge)
			}
			if err := checkDescriptor(e); err != nil {
				return fmt.Errorf("manifest %s: %w", desc.Digest, err)
			}
			if err := r.all(ctx, e, depth+1); err != nil && !r.leaveOut(err) {
				return err
			}
		}
		return nil
	}
	m := d.manifest(desc)
	if err := readConfig(ctx, r.src, m, *d.config, nil); err != nil {
		return err
	}
	if key := formatPlatform(m.platform()); !r.seen[key] {
		if r.w.whole != nil {
			if err := r.w.whole(ctx, m); err != nil {
				return err
			}
		}
		r.seen[key] = true
		r.found = append(r.found, m)
	}
	return nil
}

// leaveOut tells an error that means that an archive does not have the platform: many have an index of more than they hold.
func (r *manifestReader) leaveOut(err error) bool { return r.w.whole != nil && errdefs.IsNotFound(err) }

// candidates are the entries of an index that may be images, and not what is said of them: attestations, signatures.
func candidates(entries []ocispec.Descriptor) []ocispec.Descriptor {
	known := slices.ContainsFunc(entries, func(e ocispec.Descriptor) bool { return e.Platform != nil })
	return slices.DeleteFunc(slices.Clone(entries), func(e ocispec.Descriptor) bool {
		if e.MediaType != "" && !images.IsManifestType(e.MediaType) && !images.IsIndexType(e.MediaType) {
			return true
		}
		if e.Platform == nil {
			return known && e.ArtifactType != ""
		}
		return e.Platform.OS == "unknown" || e.Platform.Architecture == "unknown"
	})
}

// platform is what the index says, which knows more than the configuration of some images; nil is any.
func (m *manifest) platform() *ocispec.Platform { return platformOf(m.desc, m.config) }

func platformOf(desc ocispec.Descriptor, config ocispec.Image) *ocispec.Platform {
	switch {
	case desc.Platform != nil:
		p := platforms.Normalize(*desc.Platform)
		return &p
	case config.OS != "":
		p := platforms.Normalize(config.Platform)
		return &p
	}
	return nil
}

// formatPlatform is os/architecture[/variant], or "" for any.
func formatPlatform(p *ocispec.Platform) string {
	if p == nil {
		return ""
	}
	return platforms.FormatAll(*p)
}

// samePlatform compares what has to be the same in an index and in a configuration.
func samePlatform(a, b ocispec.Platform) bool {
	a, b = platforms.Normalize(a), platforms.Normalize(b)
	return a.OS == b.OS && a.Architecture == b.Architecture
}

// topOf is the digest of what a name led to.
func (r *record) topOf(n name) digest.Digest {
	switch {
	case n.isDigest():
		return digest.Digest(n.Ref[len(repository(n.Ref))+1:])
	case n.Top != "":
		return n.Top
	}
	return r.top(n.Ref).Digest // of an older store
}

func (r *record) claim(ref string) (name, bool) {
	i := slices.IndexFunc(r.Names, func(n name) bool { return n.Ref == ref })
	if i < 0 {
		return name{}, false
	}
	return r.Names[i], true
}

// beside tells whether two records may have a name that both claim.
func beside(a, b *record, an, bn name) bool {
	return a.topOf(an) == b.topOf(bn) && a.platform != b.platform
}

// rank orders records of one name: those for this machine come first.
func (s *Store) rank(a, b *record) int {
	match := platforms.Only(*s.cfg.Platform)
	af, bf := s.foreign(a), s.foreign(b)
	ap, bp := platformOf(a.Manifest, a.config), platformOf(b.Manifest, b.config)
	switch {
	case af != bf:
		return boolInt(af) - boolInt(bf)
	case !af && ap != nil && bp != nil && match.Less(*ap, *bp):
		return -1
	case !af && ap != nil && bp != nil && match.Less(*bp, *ap):
		return 1
	}
	return cmp.Or(strings.Compare(a.platform, b.platform), strings.Compare(a.ID.String(), b.ID.String()))
}

// foreign tells an image that this machine cannot run.
func (s *Store) foreign(r *record) bool {
	p := platformOf(r.Manifest, r.config)
	return p != nil && !platforms.Only(*s.cfg.Platform).Match(*p)
}

// elect decides which record a name means. The caller holds mu.
func (s *Store) elect(ref string) {
	var latest *record
	var at name
	for _, id := range s.claims[ref] {
		r := s.images[id]
		if n, ok := r.claim(ref); ok && (latest == nil || n.At.After(at.At)) {
			latest, at = r, n
		}
	}
	if latest == nil {
		delete(s.names, ref)
		delete(s.claims, ref)
		return
	}
	best := latest
	for _, id := range s.claims[ref] {
		r := s.images[id]
		if n, ok := r.claim(ref); ok && beside(r, latest, n, at) && s.rank(r, best) < 0 {
			best = r
		}
	}
	s.names[ref] = best.ID
}

// claimants are the images that have a name, the one that it means first. The caller holds mu.
func (s *Store) claimants(ref string) []*record {
	first := s.images[s.names[ref]]
	if first == nil {
		return nil
	}
	fn, _ := first.claim(ref)
	all := []*record{first}
	for _, id := range s.claims[ref] {
		if r := s.images[id]; id != first.ID {
			if n, ok := r.claim(ref); ok && beside(r, first, n, fn) {
				all = append(all, r)
			}
		}
	}
	slices.SortFunc(all[1:], s.rank)
	return all
}

// group are the images that refOrID names: of a name all platforms; by an ID those of the names that mean it, or if
// there is none, it alone. The first is the one that Get finds.
func (s *Store) group(refOrID string) ([]*record, error) {
	id, err := s.findHeld(refOrID)
	if err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.images[id]
	if r == nil {
		return nil, fmt.Errorf("%w: %.300q", ErrNotFound, refOrID)
	}
	if n, err := parseReference(refOrID); err == nil && s.names[n.String()] == id {
		if _, isID := asID(refOrID); !isID {
			return s.claimants(n.String()), nil
		}
	}
	return s.siblings(r), nil
}

// siblings are r and the other platforms of the names that mean it. The caller holds mu.
func (s *Store) siblings(r *record) []*record {
	all := []*record{r}
	for _, n := range r.Names {
		if s.names[n.Ref] != r.ID || len(s.claims[n.Ref]) < 2 {
			continue
		}
		for _, o := range s.claimants(n.Ref) {
			if !slices.Contains(all, o) {
				all = append(all, o)
			}
		}
	}
	return all
}

// meaning are the names that mean r.
func (s *Store) meaning(r *record) map[string]bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := map[string]bool{}
	for _, n := range r.Names {
		if s.names[n.Ref] == r.ID {
			names[n.Ref] = true
		}
	}
	return names
}

// shown is an image as its clients see it: with the names that mean it, and with all platforms of them; nil for one that is
// only there as another platform of an image. The caller holds mu.
func (s *Store) shown(r *record, v *Image) *Image {
	if !slices.ContainsFunc(r.Names, func(n name) bool { return len(s.claims[n.Ref]) > 1 }) {
		return v
	}
	c := *v
	c.RepoTags, c.RepoDigests = nil, nil
	for _, n := range r.Names {
		if s.names[n.Ref] != r.ID {
			continue
		}
		if n.isDigest() {
			c.RepoDigests = append(c.RepoDigests, n.Ref)
		} else {
			c.RepoTags = append(c.RepoTags, n.Ref)
		}
	}
	if len(c.RepoTags)+len(c.RepoDigests) == 0 {
		return nil
	}
	c.Platforms, c.Size = nil, 0
	seen := map[digest.Digest]bool{}
	for _, o := range s.siblings(r) {
		c.Platforms = append(c.Platforms, o.platform)
		c.Size += int64(len(o.ConfigRaw))
		for _, id := range o.layerIDs() {
			if info := s.layers.get(id); info != nil && !seen[id] {
				c.Size += info.Size
				seen[id] = true
			}
		}
	}
	return &c
}

// ListAll returns the images of all platforms, by name and platform.
func (s *Store) ListAll(ctx context.Context) ([]*Image, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*Image, 0, len(s.views))
	for _, v := range s.views {
		all = append(all, v)
	}
	first := func(v *Image) string { return strings.Join(append(slices.Clone(v.RepoTags), v.RepoDigests...), " ") }
	slices.SortFunc(all, func(a, b *Image) int {
		return cmp.Or(strings.Compare(first(a), first(b)), strings.Compare(a.Platform, b.Platform), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// Inspect returns the images that a name has, of all platforms, this machine's first; or the image with an ID and the other
// platforms of its names.
func (s *Store) Inspect(ctx context.Context, refOrID string) ([]*Image, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	all, err := s.group(refOrID)
	if err != nil {
		return nil, fmt.Errorf("inspect image: %w", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*Image
	for _, r := range all {
		if v := s.views[r.ID]; v != nil {
			out = append(out, v)
		}
	}
	return out, nil
}

// Runnable is nil if containers can be made of an image that the store has, or a container holds. ErrArtifact; ErrPlatform.
func (s *Store) Runnable(refOrID string) error {
	id, err := s.findHeld(refOrID)
	if err != nil {
		return err
	}
	if r := s.record(id); r != nil && r.Kind == kindArtifact {
		return r.noRootfs()
	}
	return s.OfThisMachine(refOrID)
}

// OfThisMachine is nil if an image is for the platform that the store's images are for, or for none in particular.
// ErrPlatform.
func (s *Store) OfThisMachine(refOrID string) error {
	all, err := s.group(refOrID)
	if err != nil {
		return err
	}
	if !s.foreign(all[0]) {
		return nil
	}
	var have []string
	for _, r := range all {
		have = append(have, r.platform)
	}
	return fmt.Errorf("image %s is here for %s, and this machine is %s: %w", displayName(all[0]), strings.Join(have, ", "),
		platforms.FormatAll(platforms.Normalize(*s.cfg.Platform)), ErrPlatform)
}

// inArchive tells whether an archive has the layers of an image that the store has not.
func (s *Store) inArchive(b *blobSource) func(context.Context, *manifest) error {
	return func(ctx context.Context, m *manifest) error {
		for i, l := range m.layers {
			if s.layers.get(m.ids[i]) != nil {
				continue
			}
			ra, err := b.store.ReaderAt(ctx, l)
			if err != nil {
				return fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			if err := ra.Close(); err != nil {
				return err
			}
		}
		return nil
	}
}

// commitGroup commits images at once.
func (s *Store) commitGroup(changes []*change) error {
	dir, err := os.MkdirTemp(s.path("ingest"), groupPrefix)
	if err != nil {
		return fmt.Errorf("commit images: %w", err)
	}
	defer os.RemoveAll(dir) // of ingest/, which is emptied at start in any case
	for _, c := range changes {
		if err := c.collect(dir); err != nil {
			return fmt.Errorf("commit image %s: %w", c.r.ID, err)
		}
	}
	whole := s.path("ingest", wholePrefix+strings.TrimPrefix(filepath.Base(dir), groupPrefix))
	if err := os.Rename(dir, whole); err != nil {
		return fmt.Errorf("commit images: %w", err)
	}
	if err := s.finishGroup(whole); err != nil {
		return fmt.Errorf("commit images: %w", errors.Join(err, s.discard(whole))) // or the next start would do it, over what has changed since
	}
	return nil
}

// collect puts a new image into dir, or the new record of one that is there.
func (c *change) collect(dir string) error {
	at := filepath.Join(dir, strings.Replace(c.r.ID.String(), ":", "-", 1))
	if c.old != nil {
		b, err := json.Marshal(c.r)
		if err != nil {
			return err
		}
		return writeDurable(at+".json", b)
	}
	if err := writeNewRecord(c.staged.dir, c.r); err != nil {
		return err
	}
	if err := os.Rename(c.staged.dir, at); err != nil {
		return err
	}
	c.staged.dir = ""
	return nil
}

// finishGroup puts what commitGroup has collected into place, or what is left of it.
func (s *Store) finishGroup(whole string) error {
	entries, err := os.ReadDir(whole)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, isRecord := strings.CutSuffix(e.Name(), ".json")
		id := digest.Digest(strings.Replace(name, "-", ":", 1))
		if err := id.Validate(); err != nil {
			return fmt.Errorf("%s: %w", e.Name(), err)
		}
		from := filepath.Join(whole, e.Name())
		if !isRecord {
			err = s.place(from, id)
		} else if err = os.Rename(from, filepath.Join(s.imageDir(id), "image.json")); err == nil {
			err = syncDir(s.imageDir(id))
		}
		if err != nil {
			return fmt.Errorf("image %s: %w", id, err)
		}
	}
	return os.Remove(whole)
}

// Summary is what an administrator is told of an image: of one platform.
type Summary struct {
	ID             string        `json:"id"`
	RepoTags       []string      `json:"repoTags,omitempty"`
	RepoDigests    []string      `json:"repoDigests,omitempty"`
	Platform       string        `json:"platform,omitempty"` // "" is any
	Foreign        bool          `json:"foreign,omitempty"`  // this machine cannot run it
	Size           int64         `json:"size"`
	Pinned         bool          `json:"pinned,omitempty"`
	ManifestDigest digest.Digest `json:"manifestDigest"`
	Artifact       *Artifact     `json:"artifact,omitempty"`
	PulledAt       time.Time     `json:"pulledAt"`
}

// Summary is the image without its configuration.
func (i *Image) Summary() Summary {
	return Summary{
		ID: i.ID, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Platform: i.Platform, Foreign: i.Foreign, Size: i.Size,
		Pinned: i.Pinned, ManifestDigest: i.ManifestDigest, Artifact: i.Artifact, PulledAt: i.PulledAt,
	}
}
