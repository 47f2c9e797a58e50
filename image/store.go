// Package image is the image store: it pulls images from registries, keeps their layers as EROFS images or directories,
// mounts them for containers, and collects what nobody needs.
//
// On disk, below the root:
//
//	layers/ALGO/HEX/     a verified layer, by diff ID: fs/ (the tree, with overlayfs's whiteouts), layer.json,
//	                     frame (what the tar stream had besides file contents, for export), and replaced/ (contents
//	                     that a later entry replaced) if there are any. Instead of the directories, image.erofs: a file
//	                     system that has them (see format.go, trees.go). Of an artifact: file instead of these, or
//	                     these and blob, the layer as it came (see artifact.go)
//	images/ALGO/HEX/     an image, by ID: image.json, attrs/ where it needs one (see attrs.go), files/ of an artifact,
//	                     and view-BOOT/, a copy to be mounted read-only, where overlay cannot be used (see snapshot.go)
//	ingest/              what is not verified; emptied at start
//	partial/ALGO/HEX     the beginning of a blob whose slow download was interrupted
//	blobs/ALGO/HEX       compressed blobs, if they are kept (Config.KeepBlobs)
//	trash/               what is being deleted
//	damaged/             layers that were replaced, as long as a container has them mounted
//	empty/               an empty directory, the second layer where overlayfs wants two
//	lock                 held by the process that uses the store
//
// A layer is renamed into place after its digests were checked, an image record after its layers. So what can be seen
// is complete. What may not have reached the disk yet bears the boot ID of the kernel, and counts for nothing after
// another boot (see settle.go).
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cri-shim/cri-shim/image/layer"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// Store is an open image store. Its methods may be called at the same time.
type Store struct {
	cfg  Config
	log  *slog.Logger
	boot string
	lock *os.File
	root *os.File

	layers layerSet
	pulls  pullGroup
	gzip   string // a program that is faster than ours; "" for none

	format   LayerFormat
	erofs    sync.Once
	erofsErr error // why EROFS images cannot be used, once that was tried out
	trees    treeCache
	// unpackImage is layer.UnpackImage.
	unpackImage func(context.Context, io.Reader, *os.File, layer.ImageOptions) (layer.Result, error)

	snapshotter Snapshotter
	copies      bool          // root file systems are copies
	viewing     chan struct{} // has room for one: views are made one after another

	// change serialises the changes of records on disk; no reader takes it.
	change sync.Mutex
	mu     sync.RWMutex // of what follows; held over memory only
	images map[digest.Digest]*record
	views  map[digest.Digest]*Image              // of those images that are not removed
	names  map[string]digest.Digest              // what they mean
	claims map[string][]digest.Digest            // who has them (platforms.go)
	holds  map[string]map[digest.Digest]struct{} // by owner
	broken []Problem
	// viewUse is what the read-only copies of images take (Snapshotter).
	viewUse map[digest.Digest]FSInfo
	// progress is of the pulls that go on.
	progress map[*progress]struct{}
	fetched  atomic.Int64
	// partials are the blobs whose download is being put aside.
	partials map[digest.Digest]bool

	partialMinSize int64
	partialWorth   time.Duration

	ctx    context.Context
	cancel context.CancelCauseFunc
	work   sync.WaitGroup
	sweep  chan struct{}
}

// Problem is something on disk that could not be used.
type Problem struct {
	Path string
	Err  error
}

func (p Problem) String() string { return fmt.Sprintf("%s: %v", p.Path, p.Err) }

// Open opens the store below cfg.Root, which it makes if need be, and puts right what a crash left: what was not
// verified is removed; a record that is damaged, or misses a layer, is logged and reported by Problems and costs that
// image only. ErrStoreInUse when another process has the store.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, log: cfg.Log,
		layers: layerSet{m: map[digest.Digest]*layerEntry{}, gate: gate{
			max: cfg.MaxConcurrentDownloads, enough: min(cfg.MaxConcurrentDownloads, max(2, runtime.GOMAXPROCS(0))), spare: sparer(),
		}},
		pulls:  pullGroup{m: map[string]*pullCall{}},
		images: map[digest.Digest]*record{}, views: map[digest.Digest]*Image{}, names: map[string]digest.Digest{}, claims: map[string][]digest.Digest{},
		holds: map[string]map[digest.Digest]struct{}{}, sweep: make(chan struct{}, 1),
		progress: map[*progress]struct{}{},
		partials: map[digest.Digest]bool{}, partialMinSize: partialMinSize, partialWorth: partialWorth,
		gzip: cfg.gzipProgram(), viewing: make(chan struct{}, 1), viewUse: map[digest.Digest]FSInfo{},
	}
	s.unpackImage = layer.UnpackImage
	s.trees = treeCache{m: map[digest.Digest]*imageMount{}, idle: treeIdle, held: s.heldLayers}
	s.ctx, s.cancel = context.WithCancelCause(containerdLog(context.WithoutCancel(ctx), cfg.Log))
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("image store %s: %w", cfg.Root, err), s.closeFiles())
	}
	s.work.Go(s.sweeper)
	s.emptyTrash()
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	for _, d := range []string{"layers", "images", "ingest", "partial", "trash", "damaged"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(s.path("empty"), 0o755); err != nil {
		return err
	}
	if err := makeMountpoints(s.path("mountpoints")); err != nil {
		return err
	}
	var err error
	if s.root, err = os.Open(s.cfg.Root); err != nil {
		return err
	}
	if s.lock, err = os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := sys.Flock(s.lock); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return ErrStoreInUse
		}
		return fmt.Errorf("lock: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	s.boot = strings.TrimSpace(string(boot))
	if err := s.chooseSnapshotter(); err != nil {
		return err
	}
	if err := s.chooseLayerFormat(); err != nil {
		return err
	}
	return s.recover(ctx)
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.cfg.Root}, elem...)...)
}

// Close ends pulls in progress and waits for them. The layers that they have verified stay.
func (s *Store) Close() error {
	s.cancel(ErrClosed)
	s.pulls.wait()
	s.work.Wait()
	return s.closeFiles()
}

func (s *Store) closeFiles() error {
	s.trees.close()
	var errs []error
	for _, f := range []*os.File{s.root, s.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Problems lists what was found damaged when the store was opened.
func (s *Store) Problems() []Problem {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.broken)
}

// List returns the images, by ID; those that are another platform's of one of them are not listed by themselves.
func (s *Store) List() []*Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*Image, 0, len(s.views))
	for id, v := range s.views {
		if v := s.shown(s.images[id], v); v != nil {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b *Image) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// Get finds an image by reference (busybox, host/name:tag, name@sha256:…), by ID with or without "sha256:", or by a
// prefix of the ID (four hex digits or more) that no other image shares. ErrNotFound, ErrAmbiguous, ErrReference.
func (s *Store) Get(refOrID string) (*Image, error) {
	id, err := s.find(refOrID)
	if err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if v := s.views[id]; v != nil {
		if shown := s.shown(s.images[id], v); shown != nil {
			return shown, nil
		}
		return v, nil
	}
	return nil, fmt.Errorf("%w: %.300q", ErrNotFound, refOrID)
}

func (s *Store) find(refOrID string) (digest.Digest, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	notFound := fmt.Errorf("%w: %.300q", ErrNotFound, refOrID)
	if id, ok := asID(refOrID); ok {
		if s.views[id] == nil {
			return "", notFound
		}
		return id, nil
	}
	n, refErr := parseReference(refOrID)
	if refErr == nil {
		if id, ok := s.names[n.String()]; ok {
			return id, nil
		}
	}
	prefix, ok := asIDPrefix(refOrID)
	if !ok {
		if refErr != nil {
			return "", refErr
		}
		return "", notFound
	}
	var found digest.Digest
	for id := range s.views {
		if strings.HasPrefix(id.Encoded(), prefix) {
			if found != "" {
				return "", fmt.Errorf("%w: %q begins the ID of more than one image", ErrAmbiguous, refOrID)
			}
			found = id
		}
	}
	if found == "" {
		return "", notFound
	}
	return found, nil
}

// publish makes r visible, with its names taken from whoever had them. The caller holds change.
func (s *Store) publish(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unpublish(r.ID)
	s.images[r.ID] = r
	if r.Removed {
		return
	}
	v := s.view(r)
	s.views[r.ID] = v
	for _, n := range r.Names {
		s.claims[n.Ref] = append(s.claims[n.Ref], r.ID)
		s.elect(n.Ref)
	}
}

// record is that of an image, removed ones that are still held included; nil is none. Records are replaced, never changed.
func (s *Store) record(id digest.Digest) *record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.images[id]
}

// unpublish forgets an image. The caller holds mu.
func (s *Store) unpublish(id digest.Digest) {
	r := s.images[id]
	delete(s.images, id)
	delete(s.views, id)
	if r == nil {
		return
	}
	for _, n := range r.Names {
		s.claims[n.Ref] = slices.DeleteFunc(s.claims[n.Ref], func(c digest.Digest) bool { return c == id })
		s.elect(n.Ref)
	}
}

func (s *Store) view(r *record) *Image {
	v := &Image{
		ID: r.ID.String(), Config: r.config, ManifestDigest: r.Manifest.Digest, Layers: r.config.RootFS.DiffIDs, Artifact: s.artifactOf(r),
		PulledAt: r.PulledAt, Size: int64(len(r.ConfigRaw)), Pinned: r.Pinned, Platform: r.platform, Foreign: s.foreign(r),
	}
	seen := map[digest.Digest]bool{}
	for _, id := range r.layerIDs() {
		if info := s.layers.get(id); info != nil && !seen[id] {
			v.Size += info.Size
			seen[id] = true
		}
	}
	for _, n := range r.Names {
		if n.isDigest() {
			v.RepoDigests = append(v.RepoDigests, n.Ref)
		} else {
			v.RepoTags = append(v.RepoTags, n.Ref)
		}
		v.Pinned = v.Pinned || s.pinned(n.Ref)
	}
	return v
}

func (s *Store) pinned(ref string) bool {
	return slices.ContainsFunc(s.cfg.Pinned, func(p string) bool {
		prefix, glob := strings.CutSuffix(p, "*")
		return p == ref || glob && strings.HasPrefix(ref, prefix)
	})
}

// sweeper deletes what is in trash/, off everybody's way.
func (s *Store) sweeper() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.sweep:
		}
		names, err := os.ReadDir(s.path("trash"))
		if err != nil {
			s.log.Error("read trash", "err", err)
			continue
		}
		for _, e := range names {
			if s.ctx.Err() != nil {
				return
			}
			if err := os.RemoveAll(s.path("trash", e.Name())); err != nil {
				s.log.Error("empty trash", "err", err)
			}
		}
	}
}

func (s *Store) emptyTrash() {
	select {
	case s.sweep <- struct{}{}:
	default:
	}
}

// discard moves a path into the trash; nil if there is none.
func (s *Store) discard(path string) error {
	dst := s.path("trash", fmt.Sprintf("%s-%d", filepath.Base(path), time.Now().UnixNano()))
	err := os.Rename(path, dst)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	s.emptyTrash()
	return nil
}
