package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/cri-shim/cri-shim/image/layer"
)

// layerInfo is layer.json: what is known of a layer that was verified.
type layerInfo struct {
	Version   int           `json:"version"`
	DiffID    digest.Digest `json:"diffID"`
	Size      int64         `json:"size"` // bytes on disk
	Inodes    int64         `json:"inodes"`
	TarSize   int64         `json:"tarSize"`
	Whiteouts int64         `json:"whiteouts,omitempty"`
	Opaque    bool          `json:"opaque,omitempty"`
	Implied   []string      `json:"implied,omitempty"`
	// Boot is the kernel's boot ID when the layer was committed. The data of a layer that no image has come to need
	// yet may not have reached the disk: after a crash of the machine it counts for nothing.
	Boot      string    `json:"boot"`
	CreatedAt time.Time `json:"createdAt"`
}

const layerVersion = 1

// layerSet is the layers on disk and those in the making, by diff ID. Each is made once, whoever asks for it.
type layerSet struct {
	mu  sync.Mutex
	m   map[digest.Digest]*layerEntry
	sem *semaphore.Weighted
}

type layerEntry struct {
	info   *layerInfo    // nil while it is made
	done   chan struct{} // closed when making it has ended, well or not
	uses   int           // pulls that count on it
	synced bool          // on disk for certain
}

// ensure returns the layer, which build makes if nobody has. The caller must give it back with unuse.
func (l *layerSet) ensure(ctx context.Context, id digest.Digest, build func(context.Context) (*layerInfo, error)) (*layerInfo, error) {
	for {
		l.mu.Lock()
		e := l.m[id]
		if e == nil {
			e = &layerEntry{done: make(chan struct{})}
			l.m[id] = e
			l.mu.Unlock()
			return l.make(ctx, id, e, build)
		}
		if e.info != nil {
			e.uses++
			l.mu.Unlock()
			return e.info, nil
		}
		l.mu.Unlock()
		select {
		case <-e.done: // if it went wrong there, it is our turn: our registry and our patience are others
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (l *layerSet) make(ctx context.Context, id digest.Digest, e *layerEntry, build func(context.Context) (*layerInfo, error)) (*layerInfo, error) {
	var info *layerInfo
	err := l.sem.Acquire(ctx, 1)
	if err != nil {
		err = context.Cause(ctx)
	} else {
		info, err = build(ctx)
		l.sem.Release(1)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	defer close(e.done)
	if err != nil {
		delete(l.m, id)
		return nil, err
	}
	e.info, e.uses = info, 1
	return info, nil
}

func (l *layerSet) unuse(ids []digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		l.m[id].uses--
	}
}

func (l *layerSet) get(id digest.Digest) *layerInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.m[id]; e != nil {
		return e.info
	}
	return nil
}

func (l *layerSet) allSynced(ids []digest.Digest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if !l.m[id].synced {
			return false
		}
	}
	return true
}

func (l *layerSet) setSynced(ids []digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if e := l.m[id]; e != nil {
			e.synced = true
		}
	}
}

func digestDir(kind string, id digest.Digest) string {
	return filepath.Join(kind, id.Algorithm().String(), id.Encoded())
}

func (s *Store) layerDir(id digest.Digest) string {
	return filepath.Join(s.cfg.Root, digestDir("layers", id))
}

// buildLayer fetches, verifies and unpacks a layer, in one go, and commits it. After an error nothing of it is left.
func (s *Store) buildLayer(ctx context.Context, src fetcher, desc ocispec.Descriptor, id digest.Digest) (info *layerInfo, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("layer %s: %w", desc.Digest, err)
		}
	}()
	tmp, err := os.MkdirTemp(filepath.Join(s.cfg.Root, "ingest"), "layer-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	res, err := s.unpackInto(ctx, tmp, src, desc, id)
	if err != nil {
		return nil, err
	}
	info = &layerInfo{
		Version: layerVersion, DiffID: id, Size: res.DiskSize, Inodes: res.Inodes, TarSize: res.TarSize,
		Whiteouts: res.Whiteouts, Opaque: res.Opaque, Implied: res.Implied, Boot: s.boot, CreatedAt: time.Now().UTC(),
	}
	b, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(tmp, "layer.json"), b, 0o600); err != nil {
		return nil, err
	}
	dst := s.layerDir(id)
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return nil, err
	}
	return info, os.Rename(tmp, dst)
}

// unpackInto makes fs/, frame and replaced/ below tmp.
func (s *Store) unpackInto(ctx context.Context, tmp string, src fetcher, desc ocispec.Descriptor, id digest.Digest) (layer.Result, error) {
	none := layer.Result{}
	fs := filepath.Join(tmp, "fs")
	if err := errors.Join(os.Mkdir(fs, 0o755), os.Chmod(fs, 0o755)); err != nil {
		return none, err
	}
	dir, err := os.Open(fs)
	if err != nil {
		return none, err
	}
	defer dir.Close()
	frame, err := os.OpenFile(filepath.Join(tmp, "frame"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return none, err
	}
	defer frame.Close()

	aside := filepath.Join(tmp, "replaced")
	if err := os.Mkdir(aside, 0o700); err != nil {
		return none, err
	}
	defer os.Remove(aside) // empty, for almost any archive
	replaced, err := os.Open(aside)
	if err != nil {
		return none, err
	}
	defer replaced.Close()

	return s.fetchInto(ctx, src, desc, id, dir, layer.Options{
		MaxSize: s.cfg.MaxLayerSize, MaxEntries: s.cfg.MaxLayerEntries, Frame: frame, Replaced: replaced,
	})
}

// fetchInto runs the pipeline: fetch → digest of the blob → decompress | digest of the tar stream → unpack.
func (s *Store) fetchInto(ctx context.Context, src fetcher, desc ocispec.Descriptor, id digest.Digest, dir *os.File, o layer.Options) (layer.Result, error) {
	none := layer.Result{}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blob := src.reader(ctx, desc)
	defer blob.Close()
	blobHash, diffHash := desc.Digest.Algorithm().Digester(), id.Algorithm().Digester()
	raw := io.TeeReader(blob, blobHash.Hash())
	res, err := unpackStream(ctx, raw, diffHash.Hash(), dir, o)
	if blob.err != nil && ctx.Err() == nil {
		return none, blob.err // and not what a decompressor made of it
	}
	if err != nil && (ctx.Err() != nil || errors.Is(err, ErrTooLarge) || errors.Is(err, syscall.ENOSPC)) {
		return none, err
	}
	// A blob that is not the one promised explains whatever went wrong in it.
	if _, derr := io.Copy(io.Discard, raw); derr != nil {
		return none, errors.Join(derr, err)
	}
	if got := blobHash.Digest(); got != desc.Digest {
		return none, src.wrap(fmt.Errorf("blob has digest %s: %w", got, ErrDigest))
	}
	if err != nil {
		return none, err
	}
	if got := diffHash.Digest(); got != id {
		return none, fmt.Errorf("uncompressed content has digest %s, the image's configuration says %s: %w", got, id, ErrDigest)
	}
	return res, nil
}

func unpackStream(ctx context.Context, raw io.Reader, diff io.Writer, dir *os.File, o layer.Options) (layer.Result, error) {
	z, err := layer.Decompress(raw)
	if err != nil {
		return layer.Result{}, err
	}
	defer z.Close()
	ahead := newReadAhead(z)
	res, err := layer.Unpack(ctx, io.TeeReader(ahead, diff), dir, o)
	ahead.close()
	return res, err
}
