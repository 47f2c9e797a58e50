package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/image/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layerInfo is layer.json: what is known of a layer that was verified.
type layerInfo struct {
	Version int           `json:"version"`
	DiffID  digest.Digest `json:"diffID"`
	// Format is LayerErofs of an image, and empty of a directory.
	Format string `json:"format,omitempty"`
	// Image is what is known of the file that an image is.
	Image     *imageInfo `json:"image,omitempty"`
	Size      int64      `json:"size"` // bytes on disk
	Inodes    int64      `json:"inodes"`
	TarSize   int64      `json:"tarSize"`
	Whiteouts int64      `json:"whiteouts,omitempty"`
	Opaque    bool       `json:"opaque,omitempty"`
	Implied   []string   `json:"implied,omitempty"`
	// Marks are the layer's whiteouts where they are not in its tree.
	Marks *layer.Marks `json:"marks,omitempty"`
	// Sealed: what it was made of was encrypted. Whoever has it in plain has to prove that (see proveLayer).
	Sealed bool `json:"sealed,omitempty"`
	// Part is of a layer that is an artifact's.
	Part *partInfo `json:"part,omitempty"`
	// Boot is the kernel's boot ID when the layer was committed. The data of a layer that no image has come to need
	// yet may not have reached the disk: after a crash of the machine it counts for nothing.
	Boot      string    `json:"boot"`
	CreatedAt time.Time `json:"createdAt"`
}

// imageInfo are the size of a layer's image and its erofs.Sum, by which damage is found that nothing else would show: of
// times, attributes, and what nobody reads.
type imageInfo struct {
	Size int64  `json:"size"`
	Sum  uint64 `json:"sum"`
}

// Versions of layer.json: of a directory and of an image, which builds before it do not know and take for damaged.
const (
	layerVersion      = 1
	layerVersionImage = 2
)

// check tells whether it is of a version that this build knows.
func (i *layerInfo) check(id digest.Digest) error {
	switch {
	case i.Version == layerVersion && i.Format == "" && i.id() == id:
		return nil
	case i.Version == layerVersionImage && i.Format == LayerErofs && i.Image != nil && !i.file() && i.id() == id:
		return nil
	}
	return fmt.Errorf("layer.json is version %d of %s, %s: %w", i.Version, i.id(), cmp.Or(i.Format, LayerDirectory), ErrInvalid)
}

// id is what the directory is named after.
func (i *layerInfo) id() digest.Digest {
	if i.Part != nil {
		return i.Part.ID
	}
	return i.DiffID
}

// file tells a blob that is kept as a file, and has no tree.
func (i *layerInfo) file() bool { return i != nil && i.Part != nil && i.Part.File }

// content are the names without which the layer is none.
func (i *layerInfo) content() []string {
	names := []string{"fs"}
	switch {
	case i.file():
		names = []string{"file"}
	case i.Format == LayerErofs:
		names = []string{imageFile}
	}
	if i.Part != nil && i.Part.Kept {
		names = append(names, "blob")
	}
	return names
}

// layerJob is a layer to be made.
type layerJob struct {
	desc ocispec.Descriptor
	id   digest.Digest
	key  *layerKey // of one that is encrypted
	part *part     // of an artifact
}

func (m *manifest) job(i int) layerJob {
	j := layerJob{desc: m.layers[i], id: m.ids[i], key: m.keys[i]}
	if m.artifact {
		j.part = &m.parts[i]
	}
	return j
}

func layerJSON(info *layerInfo) ([]byte, error) { return json.Marshal(info) }

// layerSet is the layers on disk and those in the making, by diff ID. Each is made once, whoever asks for it.
type layerSet struct {
	mu   sync.Mutex
	m    map[digest.Digest]*layerEntry
	gate gate
}

type layerEntry struct {
	info   *layerInfo    // nil while it is made
	done   chan struct{} // closed when making it has ended, well or not
	uses   int           // pulls that count on it
	synced bool          // on disk for certain
}

// ensure returns the layer, which build makes if nobody has. The caller must give it back with unuse.
func (l *layerSet) ensure(ctx context.Context, id digest.Digest, size int64, build func(context.Context) (*layerInfo, error)) (*layerInfo, error) {
	for {
		l.mu.Lock()
		e := l.m[id]
		if e == nil {
			e = &layerEntry{done: make(chan struct{})}
			l.m[id] = e
			l.mu.Unlock()
			return l.make(ctx, id, size, e, build)
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

func (l *layerSet) make(ctx context.Context, id digest.Digest, size int64, e *layerEntry, build func(context.Context) (*layerInfo, error)) (*layerInfo, error) {
	var info *layerInfo
	err := l.gate.enter(ctx, size)
	if err == nil {
		info, err = build(ctx)
		l.gate.leave()
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

// errDecompressor: a layer could not be unpacked with the external decompressor, and ours may know better.
var errDecompressor = errors.New("decompressor")

// minForProgram is the compressed size from which on starting a process pays.
const minForProgram = 1 << 20

// buildLayer fetches, verifies and unpacks a layer, in one go, and commits it. After an error nothing of it is left
// but, perhaps, the beginning of the blob for the next try. An encrypted layer needs its key.
func (s *Store) buildLayer(ctx context.Context, src fetcher, j layerJob) (info *layerInfo, err error) {
	desc := j.desc
	if j.part != nil && desc.Size > s.cfg.MaxLayerSize {
		return nil, fmt.Errorf("layer %s: %d bytes; at most %d are taken: %w", desc.Digest, desc.Size, s.cfg.MaxLayerSize, ErrTooLarge)
	}
	_, local := src.source.(*blobSource)
	part := s.openPartial(desc, local, s.cfg.KeepBlobs && j.part == nil)
	defer func() {
		part.end(err)
		if err != nil {
			err = fmt.Errorf("layer %s: %w", desc.Digest, err)
		}
	}()
	w := way{program: s.gzip, format: s.format.Name}
	if desc.Size < minForProgram {
		w.program = ""
	}
	build := func(b *blobReader) (err error) {
		if s.cfg.LayerCompression == CompressAuto {
			w.hurry = b.busy
		}
		info, err = s.buildFrom(ctx, b, j, w)
		return err
	}
	for {
		err = src.whole(ctx, desc, part, build)
		switch {
		case errors.Is(err, errDecompressor):
			s.log.Warn("layer is unpacked again with the built-in decompressor", "layer", desc.Digest, "program", w.program, "err", err)
			w.program = ""
		case errors.Is(err, layer.ErrNoImage) && w.format == LayerErofs:
			s.log.Info("layer is unpacked again as a directory", "layer", desc.Digest, "reason", err)
			w.format = LayerDirectory
		default:
			return info, err
		}
		part.rewind()
	}
}

// way is how a layer is made.
type way struct {
	program string // that decompresses gzip; "" is ours
	format  string
	hurry   func() bool // of an image: see layer.ImageOptions
}

// buildFrom makes a layer of what b gives. After an error nothing of it is left.
func (s *Store) buildFrom(ctx context.Context, b *blobReader, j layerJob, w way) (_ *layerInfo, err error) {
	tmp, err := os.MkdirTemp(filepath.Join(s.cfg.Root, "ingest"), "layer-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	info := &layerInfo{Version: layerVersion, DiffID: j.id, Sealed: j.key != nil, Boot: s.boot, CreatedAt: time.Now().UTC()}
	if j.part != nil {
		err = s.partInto(ctx, tmp, b, j, w, info)
	} else {
		err = s.layerInto(ctx, tmp, b, j, w, info)
	}
	var mount *os.File
	if err == nil && info.Format == LayerErofs {
		mount, err = tryImage(filepath.Join(tmp, imageFile))
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if mount != nil {
			mount.Close()
		}
	}()
	record, err := layerJSON(info)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(tmp, "layer.json"), record, 0o600); err != nil {
		return nil, err
	}
	if err := s.placeLayer(tmp, j.id); err != nil {
		return nil, err
	}
	s.trees.drop(j.id) // of a damaged one that it replaces
	if mount != nil {
		s.trees.add(j.id, mount)
		mount = nil
	}
	return info, nil
}

// tryImage mounts what was written: one that the kernel does not take is none.
func tryImage(path string) (*os.File, error) {
	m, err := mountImage(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", layer.ErrNoImage, err)
	}
	fs, err := openDirAt(m, "fs")
	if err != nil {
		return nil, errors.Join(layer.ErrNoImage, err, m.Close())
	}
	return m, fs.Close()
}

// unpacked notes what came of a tar stream.
func (i *layerInfo) unpacked(res layer.Result) {
	i.Size, i.Inodes, i.TarSize = res.DiskSize, res.Inodes, res.TarSize
	i.Whiteouts, i.Opaque, i.Implied, i.Marks = res.Whiteouts, res.Opaque, res.Implied, res.Marks
}

// layerInto makes an image's layer below tmp.
func (s *Store) layerInto(ctx context.Context, tmp string, b *blobReader, j layerJob, w way, info *layerInfo) (err error) {
	diff := j.id.Algorithm().Digester()
	used := false
	err = verified(ctx, b, b, nil, j.key, func(ctx context.Context, in io.Reader) (err error) {
		used, err = s.unpackInto(ctx, tmp, in, diff.Hash(), w, info)
		return err
	})
	if got := diff.Digest(); err == nil && got != j.id {
		err = &contentError{fmt.Errorf("uncompressed content has digest %s, the image's configuration says %s: %w", got, j.id, ErrDigest)}
	}
	return blameProgram(err, used, w.program)
}

// placeLayer makes what is complete at tmp the layer, instead of a damaged one if there is one.
func (s *Store) placeLayer(tmp string, id digest.Digest) error {
	dst := s.layerDir(id)
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return err
	}
	err := os.Rename(tmp, dst)
	if errors.Is(err, syscall.EEXIST) || errors.Is(err, syscall.ENOTEMPTY) {
		return s.replaceLayer(tmp, dst, id)
	}
	return err
}

// unpackInto makes of a tar stream, below tmp, what a layer is made of, and notes in info what came of it. used: of the
// program.
func (s *Store) unpackInto(ctx context.Context, tmp string, in io.Reader, diff io.Writer, w way, info *layerInfo) (used bool, err error) {
	frame, err := os.OpenFile(filepath.Join(tmp, "frame"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return false, err
	}
	defer frame.Close()
	return s.unpackStream(ctx, in, diff, w.program, func(ctx context.Context, in io.Reader) error {
		if w.format == LayerErofs {
			return s.imageInto(ctx, tmp, in, frame, w.hurry, info)
		}
		return s.directoryInto(ctx, tmp, in, frame, info)
	})
}

// directoryInto makes fs/ and replaced/.
func (s *Store) directoryInto(ctx context.Context, tmp string, in io.Reader, frame io.Writer, info *layerInfo) error {
	fs := filepath.Join(tmp, "fs")
	if err := errors.Join(os.Mkdir(fs, 0o755), os.Chmod(fs, 0o755)); err != nil {
		return err
	}
	dir, err := os.Open(fs)
	if err != nil {
		return err
	}
	defer dir.Close()
	aside := filepath.Join(tmp, "replaced")
	if err := os.Mkdir(aside, 0o700); err != nil {
		return err
	}
	defer os.Remove(aside) // empty, for almost any archive
	replaced, err := os.Open(aside)
	if err != nil {
		return err
	}
	defer replaced.Close()
	res, err := layer.Unpack(ctx, in, dir, layer.Options{
		MaxSize: s.cfg.MaxLayerSize, MaxEntries: s.cfg.MaxLayerEntries, Frame: frame, Replaced: replaced, KeepMarks: s.copies,
	})
	info.unpacked(res)
	return err
}

// imageInto makes the image.
func (s *Store) imageInto(ctx context.Context, tmp string, in io.Reader, frame io.Writer, hurry func() bool, info *layerInfo) error {
	f, err := os.OpenFile(filepath.Join(tmp, imageFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	res, err := s.unpackImage(ctx, in, f, layer.ImageOptions{
		MaxSize: s.cfg.MaxLayerSize, MaxEntries: s.cfg.MaxLayerEntries, Frame: frame, Plain: s.cfg.LayerCompression == CompressNone,
		Hurry: hurry,
	})
	if err != nil {
		return err
	}
	info.unpacked(res)
	info.Version, info.Format, info.Image = layerVersionImage, LayerErofs, &imageInfo{Size: res.DiskSize, Sum: res.ImageSum}
	info.Size, info.Inodes = onDisk(res.DiskSize), 1 // of the store's file system
	return nil
}

// contentError is an error of what is in a blob, which has the digest that it should have.
type contentError struct{ error }

func (e *contentError) Unwrap() error { return e.error }

// blameProgram marks an error that a decompressor may have made.
func blameProgram(err error, used bool, program string) error {
	var content *contentError
	if used && errors.As(err, &content) {
		return fmt.Errorf("%w %s: %w", errDecompressor, program, err)
	}
	return err
}

// verified runs the pipeline: fetch → digest of the blob (→ decipher) → use. in is what blob gives; what is read of it goes
// to keep as well, if that is not nil. What use made counts only if the error is nil. One of use itself is a
// contentError, and only there if the blob is the right one, all of it.
func verified(ctx context.Context, blob *blobReader, in io.Reader, keep io.Writer, key *layerKey, use func(context.Context, io.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	desc := blob.desc
	blobHash := desc.Digest.Algorithm().Digester()
	var sink io.Writer = blobHash.Hash()
	if keep != nil {
		sink = io.MultiWriter(sink, keep)
	}
	raw, plain, genuine := key.decipher(io.TeeReader(in, sink))
	err := use(ctx, plain)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if blob.err != nil {
		return blob.err // and not what a decompressor made of it
	}
	if err != nil && (errors.Is(err, ErrTooLarge) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, layer.ErrNoImage)) {
		return err
	}
	// A blob that is not the one promised explains whatever went wrong in it.
	if _, derr := io.Copy(io.Discard, raw); derr != nil {
		return errors.Join(derr, err)
	}
	if got := blobHash.Digest(); got != desc.Digest {
		return blob.f.wrap(blob.sender(), wrongBlob("blob %s: got one with digest %s", desc.Digest, got))
	}
	if bad := genuine(); bad != nil {
		return bad // and not what a decompressor made of it
	}
	if err != nil {
		return &contentError{err}
	}
	return nil
}

// spareProcessor tells whether fewer layers are made than there are processors.
func (s *Store) spareProcessor() bool {
	return s.layers.gate.inside() < runtime.GOMAXPROCS(0)
}

func (s *Store) unpackStream(ctx context.Context, raw io.Reader, diff io.Writer, program string, unpack func(context.Context, io.Reader) error) (bool, error) {
	z, err := layer.DecompressWith(ctx, raw, program)
	if err != nil {
		return false, err
	}
	_, used := z.(*layer.Program)
	var in io.Reader = z
	if !used {
		in = decoded{z}
	}
	ahead := newReadAhead(in, diff, s.spareProcessor)
	err = unpack(ctx, ahead)
	// A program that is stuck would not be done with its input.
	if p, ok := z.(*layer.Program); ok && err != nil {
		p.Kill()
	}
	ahead.close()
	return used, errors.Join(err, z.Close())
}

// decoded gives the errors of a decompressor their kind. Those of the source count before them.
type decoded struct{ r io.Reader }

func (d decoded) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	return n, undecoded(err)
}

// WriteTo implements io.WriterTo: what the decompressor has in memory need not be copied.
func (d decoded) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(w, d.r)
	return n, undecoded(err)
}

func undecoded(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}
