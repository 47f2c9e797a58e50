package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// PullOptions direct one pull. Without any, the image that suits the store's platform is pulled.
type PullOptions struct {
	Platforms    []string // exactly these, as os/architecture[/variant]
	AllPlatforms bool     // of the index that the reference names
}

// Pull makes the image that ref names now (a tag, a digest, or both) present and returns it. Calls for the same
// reference with the same credentials are joined; the work ends when the last of them has given up. Layers that were
// complete by then stay, so that the next try goes on from there.
//
// Errors match ErrReference, ErrNotFound, ErrUnauthorized, ErrUnavailable, ErrStalled, ErrInvalid, ErrDigest,
// ErrPlatform, ErrTooLarge, or what the file system said.
func (s *Store) Pull(ctx context.Context, ref string, auth *Auth, o PullOptions) (*Image, error) {
	all, err := s.PullPlatforms(ctx, ref, auth, o)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// PullPlatforms is Pull that returns the images of all platforms that were asked for, this machine's first. They become
// visible when all of them are there.
func (s *Store) PullPlatforms(ctx context.Context, ref string, auth *Auth, o PullOptions) ([]*Image, error) {
	named, err := parseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	w, err := s.parseWants(o.Platforms, o.AllPlatforms)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", named, err)
	}
	all, err := s.pulls.do(ctx, s.ctx, pullKey(named, auth, o), func(ctx context.Context) ([]*Image, error) {
		return s.pull(ctx, named, auth, w)
	})
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", named, err)
	}
	return all, nil
}

// pullKey keeps a client without the right credentials from joining the pull of one that has them.
func pullKey(named reference.Named, auth *Auth, o PullOptions) string {
	b, _ := json.Marshal(auth) // strings only
	return fmt.Sprintf("%s %q %v %x", named, o.Platforms, o.AllPlatforms, sha256.Sum256(b))
}

func (s *Store) pull(ctx context.Context, named reference.Named, auth *Auth, w wants) (_ []*Image, err error) {
	seen := newProgress(named.String(), &s.fetched)
	defer s.watch(seen)()
	if s.cfg.Pulled != nil {
		defer func() { s.cfg.Pulled(seen.result(err)) }()
	}
	s.log.Info("pulling image", "image", named.String())
	reg, err := s.openRegistry(ctx, named, auth)
	if err != nil {
		return nil, err
	}
	defer reg.close()
	top, err := reg.top(ctx, s.cfg.ProgressTimeout)
	if err != nil {
		return nil, err
	}
	src := fetcher{source: reg, stall: s.cfg.ProgressTimeout}
	names := []string{reference.TrimNamed(named).Name() + "@" + top.Digest.String()}
	if _, ok := named.(reference.Tagged); ok {
		names = append(names, named.String())
	}
	all, err := s.install(ctx, src, installation{top: top, group: top.Digest, want: w, names: names, progress: seen,
		pieces: &pieces{s: s, named: named, reg: reg}})
	if err == nil {
		for _, img := range all[1:] {
			s.log.Info("pulled image for another platform", "image", named.String(), "platform", img.Platform, "id", img.ID)
		}
		s.log.Info("pulled image", append([]any{"image", named.String(), "id", all[0].ID, "bytes", all[0].Size,
			"took", time.Since(seen.start).Round(10 * time.Microsecond)}, seen.attrs()...)...)
	}
	return all, err
}

// installation is what is to become an image.
type installation struct {
	top      ocispec.Descriptor // a manifest or an index
	group    digest.Digest      // of what the names lead to, if that is more than top
	want     wants
	names    []string
	pin      bool
	progress *progress // nil: nobody wants to know
	pieces   *pieces   // of the repository that it is from, for its signatures
}

// asked is the name that the image is wanted by: a tag if there is one.
func (in installation) asked() string {
	for _, n := range in.names {
		if !strings.Contains(n, "@") {
			return n
		}
	}
	if len(in.names) > 0 {
		return in.names[0]
	}
	return ""
}

// install makes the images that top leads to present and gives them names. The first is the one for this machine.
func (s *Store) install(ctx context.Context, src fetcher, in installation) ([]*Image, error) {
	policy, err := s.judge(ctx, in.asked(), in.top)
	if err != nil {
		return nil, err
	}
	all, err := readManifests(ctx, src, in.top, in.want)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if err := s.admitNew(ctx, m, in, policy); err != nil {
			return nil, err
		}
	}
	in.progress.enter(stageLayers)
	src.progress = in.progress
	roots, landings := make([]*os.File, len(all)), make([]*int, len(all))
	defer func() {
		for i, root := range roots {
			if landings[i] != nil {
				s.settleLater(root, all[i].id, landings[i])
			} else if root != nil {
				root.Close()
			}
		}
	}()
	var used []digest.Digest
	defer func() { s.layers.unuse(used) }()
	for i, m := range all {
		// Before anything of it is fetched, so that a failure to sync is not missed (errors are reported since the open).
		if roots[i], err = os.Open(s.cfg.Root); err != nil {
			return nil, err
		}
		ids, err := s.ensureLayers(ctx, src, m)
		used = append(used, ids...)
		if err != nil {
			return nil, err
		}
	}
	in.progress.enter(stageCommit)
	imgs, err := s.commitAny(ctx, all, in, landings)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(imgs, func(a, b *Image) int { return boolInt(a.Foreign) - boolInt(b.Foreign) })
	return imgs, nil
}

// admitNew asks about the signatures and the keys of an image that is to come.
func (s *Store) admitNew(ctx context.Context, m *manifest, in installation, policy string) (err error) {
	m.approved = &approval{Policy: policy, At: time.Now().UTC()}
	if m.approved.Signatures, err = s.judgeSignatures(ctx, in.asked(), in.top, m.desc, m.raw, in.pieces); err != nil {
		return err
	}
	if m.keys, m.approved.Keys, err = s.unwrapKeys(ctx, m.layers); err != nil {
		return err
	}
	if m.approved.none() {
		m.approved = nil
	}
	return nil
}

// commitAny is commit again for as long as an image is removed meanwhile.
func (s *Store) commitAny(ctx context.Context, all []*manifest, in installation, landings []*int) ([]*Image, error) {
	for {
		imgs, err := s.commit(ctx, all, in, landings)
		if !errors.Is(err, errGone) {
			return imgs, err
		}
	}
}

// ensureLayers fetches what is missing of the layers, at the same time, and returns those that are in use by the
// caller from now on, also when it fails.
func (s *Store) ensureLayers(ctx context.Context, src fetcher, m *manifest) ([]digest.Digest, error) {
	if err := s.checkSpace(m); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var used []digest.Digest
	missing := s.expect(src.progress, m)
	g, gctx := errgroup.WithContext(ctx)
	for i, id := range m.ids {
		g.Go(func() error {
			made := false
			info, err := s.layers.ensure(gctx, id, m.layers[i].Size, func(ctx context.Context) (*layerInfo, error) {
				made = true
				defer src.progress.built(time.Now())
				return s.buildLayer(ctx, src, m.job(i))
			})
			if err != nil {
				return err
			}
			mu.Lock()
			used = append(used, id)
			mu.Unlock()
			if info.Sealed && !made && m.keys[i] == nil {
				if err := s.proveLayer(gctx, src, m.layers[i], id); err != nil {
					return err
				}
			}
			if missing[i] && !made {
				src.progress.had(m.layers[i].Size) // another pull fetched it
			}
			if missing[i] {
				src.progress.layerDone()
			}
			return nil
		})
	}
	err := g.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return used, err
}

// expect tells the progress what there is to do, and says which layers, by number, are missing. A layer that comes twice
// is fetched once.
func (s *Store) expect(p *progress, m *manifest) map[int]bool {
	missing := map[int]bool{}
	seen := map[digest.Digest]bool{}
	var bytes int64
	for i, id := range m.ids {
		if !seen[id] && s.layers.get(id) == nil {
			missing[i] = true
			bytes += m.layers[i].Size
		}
		seen[id] = true
	}
	p.expect(len(m.layers), len(m.layers)-len(missing), bytes)
	return missing
}

// checkSpace refuses what cannot fit even if nothing was compressed, before it fills the disk.
func (s *Store) checkSpace(m *manifest) error {
	var need uint64
	for i, id := range m.ids {
		if s.layers.get(id) == nil {
			need += uint64(m.layers[i].Size)
		}
	}
	free, _, err := sys.FreeSpace(s.cfg.Root)
	if err == nil && need > free {
		err = fmt.Errorf("layers of %d bytes, compressed, and %d bytes free below %s: %w", need, free, s.cfg.Root, syscall.ENOSPC)
	}
	return err
}

// change is what a commit makes of one image.
type change struct {
	r, old *record // old is nil for an image that the store does not have
	staged *staged
}

// commit makes what was installed visible: all of it or nothing. All layers are in use by the caller, who has the images
// settled that get a landing.
func (s *Store) commit(ctx context.Context, all []*manifest, in installation, landings []*int) ([]*Image, error) {
	dirs := make([]*staged, len(all))
	for i, m := range all {
		var err error
		if dirs[i], err = s.stage(ctx, m); err != nil {
			return nil, fmt.Errorf("commit image %s: %w", m.id, err)
		}
		defer dirs[i].drop()
	}
	s.change.Lock()
	defer s.change.Unlock()
	now := time.Now().UTC()
	var changes []*change
	for i, m := range all {
		// Two manifests may have one configuration, and are one image.
		n := slices.IndexFunc(changes, func(c *change) bool { return c.r.ID == m.id })
		if n < 0 {
			c, err := s.begin(m, dirs[i])
			if err != nil {
				return nil, fmt.Errorf("commit image %s: %w", m.id, err)
			}
			n = len(changes)
			changes = append(changes, c)
			if c.old == nil {
				landings[i] = c.r.landing
			}
		}
		changes[n].amend(m, in, now)
	}
	if err := s.write(changes); err != nil {
		clear(landings)
		return nil, err
	}
	var errs []error
	for _, c := range changes {
		errs = append(errs, s.publishOver(c.r))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var imgs []*Image
	for _, m := range all {
		v := s.views[m.id]
		if shown := s.shown(s.images[m.id], v); shown != nil {
			v = shown
		}
		imgs = append(imgs, v)
	}
	return imgs, nil
}

// begin starts from what the store has of an image.
func (s *Store) begin(m *manifest, st *staged) (*change, error) {
	c := &change{old: s.record(m.id), staged: st}
	switch {
	case c.old == nil && st.dir == "":
		return nil, errGone
	case c.old == nil:
		c.r = &record{Version: recordVersion, ID: m.id, ConfigRaw: m.configRaw, config: m.config, Attrs: st.attrs, Files: st.files,
			Boot: s.boot, landing: new(int), ids: m.ids, parts: m.parts}
		if m.artifact {
			c.r.Kind, c.r.artifactType = kindArtifact, m.artifactType
		}
	case (c.old.Kind == kindArtifact) != m.artifact:
		// What is an image's configuration can be made to be an artifact's manifest as well.
		return nil, fmt.Errorf("it is both an image and an artifact: %w", ErrInvalid)
	default:
		c.r = c.old.clone()
		c.r.Removed = false
	}
	return c, nil
}

func (c *change) amend(m *manifest, in installation, now time.Time) {
	r, desc := c.r, m.desc
	if desc.Platform == nil && desc.Digest == r.Manifest.Digest {
		desc.Platform = r.Manifest.Platform // which an index said
	}
	r.Manifest, r.ManifestRaw, r.PulledAt = desc, m.raw, now
	r.platform = formatPlatform(platformOf(r.Manifest, r.config))
	r.Pinned = r.Pinned || in.pin
	r.Approved, r.Encrypted = m.approved, m.encrypted()
	r.add(now, in.group, in.names...)
}

func (s *Store) write(changes []*change) (err error) {
	c := changes[0]
	switch {
	case len(changes) > 1:
		return s.commitGroup(changes)
	case c.old != nil:
		err = writeRecord(s.imageDir(c.r.ID), c.r)
	default:
		err = s.commitNew(c.staged, c.r)
	}
	if err != nil {
		return fmt.Errorf("commit image %s: %w", c.r.ID, err)
	}
	return nil
}

// staged is an image directory that is not in place yet.
type staged struct {
	dir          string
	attrs, files bool
}

func (s *staged) drop() {
	if s.dir != "" {
		_ = os.RemoveAll(s.dir) // of ingest/, which is emptied at start in any case
	}
}

// stage prepares the directory of an image. No lock is held: this can take as long as the disk is slow.
func (s *Store) stage(ctx context.Context, m *manifest) (st *staged, err error) {
	if s.record(m.id) != nil {
		return &staged{}, nil
	}
	st = &staged{}
	if st.dir, err = os.MkdirTemp(s.path("ingest"), "image-"); err != nil {
		return nil, err
	}
	if st.attrs, err = s.writeAttrs(ctx, st.dir, s.unpackedOf(m.ids)); err == nil {
		st.files, err = s.linkFiles(st.dir, m.parts)
	}
	if err != nil {
		st.drop()
		return nil, err
	}
	return st, nil
}

// losers returns changed copies of the images that lose a name to r: all but its other platforms.
func (s *Store) losers(r *record) []*record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	byID := map[digest.Digest]*record{}
	for _, n := range r.Names {
		for _, id := range s.claims[n.Ref] {
			o := s.images[id]
			on, ok := o.claim(n.Ref)
			if !ok || id == r.ID || beside(o, r, on, n) {
				continue
			}
			if byID[id] == nil {
				byID[id] = o.clone()
			}
			byID[id].drop(n.Ref)
		}
	}
	var all []*record
	for _, l := range byID {
		all = append(all, l)
	}
	return all
}

var errGone = errors.New("the image was removed meanwhile")

// commitNew writes the record of an image that the store did not have, and moves it, complete, to its place.
func (s *Store) commitNew(st *staged, r *record) error {
	if err := writeNewRecord(st.dir, r); err != nil {
		return err
	}
	if err := s.place(st.dir, r.ID); err != nil {
		return err
	}
	st.dir = ""
	return nil
}

// place moves the directory of an image, complete, to its place.
func (s *Store) place(dir string, id digest.Digest) error {
	dst := s.imageDir(id)
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return err
	}
	// A damaged record that was not loaded may be in the way.
	if err := s.discard(dst); err != nil {
		return err
	}
	return os.Rename(dir, dst)
}

func (s *Store) imageDir(id digest.Digest) string { return s.path(digestDir("images", id)) }

// pullGroup joins calls with the same key.
type pullGroup struct {
	mu   sync.Mutex
	m    map[string]*pullCall
	work sync.WaitGroup
}

type pullCall struct {
	waiters int
	cancel  context.CancelCauseFunc
	done    chan struct{}
	imgs    []*Image
	err     error
}

// ErrAbandoned: nobody waits for the pull any more.
var ErrAbandoned = errors.New("every client has given up")

// do runs f, or waits for the call with that key that already runs it. f's context is that of base, cancelled when
// nobody waits any more.
func (g *pullGroup) do(ctx, base context.Context, key string, f func(context.Context) ([]*Image, error)) ([]*Image, error) {
	if err := context.Cause(base); err != nil {
		return nil, err
	}
	g.mu.Lock()
	c := g.m[key]
	if c == nil {
		c = &pullCall{done: make(chan struct{})}
		var fctx context.Context
		fctx, c.cancel = context.WithCancelCause(base)
		g.m[key] = c
		g.work.Go(func() {
			c.imgs, c.err = f(fctx)
			g.mu.Lock()
			if g.m[key] == c {
				delete(g.m, key)
			}
			g.mu.Unlock()
			c.cancel(nil)
			close(c.done)
		})
	}
	c.waiters++
	g.mu.Unlock()
	select {
	case <-c.done:
		return c.imgs, c.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.waiters--; c.waiters == 0 {
		c.cancel(ErrAbandoned)
		if g.m[key] == c {
			delete(g.m, key) // who comes now starts anew
		}
	}
	return nil, context.Cause(ctx)
}

func (g *pullGroup) wait() { g.work.Wait() }

// repository is the part of a normalised name before tag or digest.
func repository(ref string) string {
	if i := strings.IndexByte(ref, '@'); i >= 0 {
		return ref[:i]
	}
	return ref[:strings.LastIndexByte(ref, ':')]
}
