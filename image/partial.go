package image

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A download that takes long puts aside what has come of the blob, compressed, in partial/. If the daemon ends before
// the blob does, the next pull begins with that, through the same pipeline as what comes from the registry: it is
// decompressed, hashed and unpacked again, so that no state of a decompressor or a hash has to be stored or trusted,
// and asks the registry for the rest only.
//
// Most downloads are fast, and would only pay for it: a blob that is small, or that will be here soon at the rate at
// which it comes, is not put aside. The files are never synced; those that end within the time in which the kernel
// writes them back never reach the disk. What a crash of the machine made of one shows in the digest.
type partial struct {
	s      *Store
	desc   ocispec.Descriptor
	f      *os.File
	have   int64 // bytes in the file
	before int64 // of them, from an earlier download
	keep   bool  // keep_blobs: the whole blob will be kept
	whole  bool  // it is the kept blob
	read   bool  // something of before was used
	start  time.Time
}

const (
	partialMinSize = 4 << 20          // of a blob to be put aside, and bytes before its rate counts
	partialWorth   = 10 * time.Second // what a download must be expected to take
)

func (s *Store) partialPath(id digest.Digest) string { return s.path(digestDir("partial", id)) }
func (s *Store) blobPath(id digest.Digest) string    { return s.path(digestDir("blobs", id)) }

// openPartial returns nil if the blob is not worth it, or somebody else is at it. Whoever gets one ends it.
func (s *Store) openPartial(desc ocispec.Descriptor, local, keep bool) *partial {
	if local || !keep && desc.Size < s.partialMinSize {
		return nil
	}
	s.mu.Lock()
	taken := s.partials[desc.Digest]
	s.partials[desc.Digest] = true
	s.mu.Unlock()
	if taken {
		return nil
	}
	p := &partial{s: s, desc: desc, keep: keep, start: time.Now()}
	if err := p.open(); err != nil {
		s.log.Warn("partial download", "blob", desc.Digest, "err", err)
		p.drop()
	}
	return p
}

func (p *partial) open() error {
	if fi, err := os.Stat(p.s.blobPath(p.desc.Digest)); err == nil && fi.Size() == p.desc.Size {
		p.whole = true
		if p.f, err = os.Open(p.s.blobPath(p.desc.Digest)); err != nil {
			return err
		}
		return p.measure()
	}
	path := p.s.partialPath(p.desc.Digest)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	var err error
	if p.f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	return p.measure()
}

func (p *partial) measure() error {
	fi, err := p.f.Stat()
	if err != nil {
		return err
	}
	p.have = min(fi.Size(), p.desc.Size)
	p.before = p.have
	return nil
}

// existed tells whether a part of the blob, or all of it, came from an earlier download. A nil p has nothing.
func (p *partial) existed() bool { return p != nil && p.read }

func (p *partial) readAt(b []byte, off int64) int {
	if p == nil || p.f == nil || off >= p.before {
		return 0
	}
	n, err := p.f.ReadAt(b[:min(int64(len(b)), p.before-off)], off)
	if err != nil && !errors.Is(err, io.EOF) {
		n = 0
	}
	if n == 0 {
		// The rest comes from the registry, and is not what would follow in the file.
		p.s.log.Warn("partial download", "blob", p.desc.Digest, "err", err)
		p.drop()
	}
	p.read = p.read || n > 0
	return n
}

func (p *partial) add(b []byte) {
	if p == nil || p.f == nil || p.whole || len(b) == 0 {
		return
	}
	if _, err := p.f.WriteAt(b, p.have); err != nil {
		p.drop() // a full disk is told by the unpacking
		return
	}
	p.have += int64(len(b))
	if fetched := p.have - p.before; !p.keep && p.before == 0 && fetched >= p.s.partialMinSize {
		if time.Since(p.start).Seconds()*float64(p.desc.Size)/float64(fetched) < p.s.partialWorth.Seconds() {
			p.drop()
		}
	}
}

// drop forgets what there is and puts no more aside.
func (p *partial) drop() {
	if p.f != nil {
		p.f.Close()
		p.f = nil
	}
	path := p.s.partialPath(p.desc.Digest)
	if p.whole {
		path = p.s.blobPath(p.desc.Digest)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		p.s.log.Warn("partial download", "blob", p.desc.Digest, "err", err)
	}
	p.before, p.have = 0, 0
}

// rewind is for another try at a blob with nothing wrong: what came of it counts.
func (p *partial) rewind() {
	if p != nil && p.f != nil {
		p.before = p.have
	}
}

// restart begins anew with an empty file.
func (p *partial) restart() {
	if p == nil {
		return
	}
	p.drop()
	p.whole, p.read, p.start = false, false, time.Now()
	if err := p.open(); err != nil {
		p.drop()
	}
}

// end decides what becomes of the file. What is not known to be wrong is kept for the next try, unless every client
// has given up: a cancelled pull leaves only what was verified.
func (p *partial) end(err error) {
	if p == nil {
		return
	}
	defer func() {
		p.s.mu.Lock()
		delete(p.s.partials, p.desc.Digest)
		p.s.mu.Unlock()
	}()
	interrupted := errors.Is(err, ErrClosed) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrStalled)
	switch {
	case p.f == nil:
		return
	case err == nil && p.keep && !p.whole && p.have == p.desc.Size:
		if kerr := p.keepBlob(); kerr != nil {
			p.s.log.Warn("keep blob", "blob", p.desc.Digest, "err", kerr)
			p.drop()
		}
	case err == nil && p.whole, interrupted && p.have > 0:
		p.f.Close()
	default:
		p.drop()
	}
}

func (p *partial) keepBlob() error {
	dst := p.s.blobPath(p.desc.Digest)
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return err
	}
	return errors.Join(p.f.Truncate(p.desc.Size), p.f.Close(), os.Rename(p.s.partialPath(p.desc.Digest), dst))
}

// collectPartials removes downloads that nobody goes on with, and kept blobs of no image, that were last written
// before limit.
func (s *Store) collectPartials(limit time.Time) error {
	needed := s.manifestBlobs()
	return errors.Join(
		s.removeBlobs("partial", limit, func(digest.Digest) bool { return true }),
		s.removeBlobs("blobs", limit, func(id digest.Digest) bool { return !needed[id] }))
}

// collectBlobsOf removes the kept blobs that only r needed, which is gone.
func (s *Store) collectBlobsOf(r *record) error {
	if !s.cfg.KeepBlobs {
		return nil // what an earlier configuration kept goes with collectPartials
	}
	needed := s.manifestBlobs()
	var errs []error
	for id := range s.blobsOf(r) {
		if needed[id] {
			continue
		}
		if err := os.Remove(s.blobPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Store) removeBlobs(kind string, limit time.Time, want func(digest.Digest) bool) error {
	var errs []error
	s.eachOldBlob(kind, limit, want, func(path string, _ fs.FileInfo) { errs = append(errs, os.Remove(path)) })
	return errors.Join(errs...)
}

// eachOldBlob finds what was last written before limit and is nobody's work.
func (s *Store) eachOldBlob(kind string, limit time.Time, want func(digest.Digest) bool, do func(string, fs.FileInfo)) {
	paths, _ := filepath.Glob(s.path(kind, "*", "*")) // fails for a bad pattern only
	for _, path := range paths {
		id := digest.Digest(filepath.Base(filepath.Dir(path)) + ":" + filepath.Base(path))
		s.mu.RLock()
		busy := s.partials[id]
		s.mu.RUnlock()
		fi, err := os.Lstat(path)
		if busy || err != nil || fi.ModTime().After(limit) || !want(id) {
			continue
		}
		do(path, fi)
	}
}

// manifestBlobs are the blobs that the images' manifests name.
func (s *Store) manifestBlobs() map[digest.Digest]bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := map[digest.Digest]bool{}
	for _, r := range s.images {
		maps.Copy(all, s.blobsOf(r))
	}
	return all
}

func (s *Store) blobsOf(r *record) map[digest.Digest]bool {
	all := map[digest.Digest]bool{}
	if _, m, err := parseManifest(r.ManifestRaw, r.Manifest.MediaType, *s.cfg.Platform); err == nil && m != nil {
		for _, l := range m.layers {
			all[l.Digest] = true
		}
	}
	return all
}
