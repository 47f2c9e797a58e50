package image

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// blobDir is containerd's content store in a folder, but for the writer: that one waits for the disk at each blob, and
// what is in here is thrown away when the import has ended.
type blobDir struct {
	content.Store
	dir string
}

// Writer implements content.Ingester.
func (d blobDir) Writer(_ context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	if want := o.Desc.Digest; want != "" {
		if err := want.Validate(); err != nil {
			return nil, fmt.Errorf("digest %.100q: %w: %w", want, ErrInvalid, err)
		}
		if _, err := os.Lstat(d.path(want)); err == nil {
			return nil, fmt.Errorf("blob %s: %w", want, errdefs.ErrAlreadyExists)
		}
	}
	f, err := os.CreateTemp(d.dir, "blob-")
	if err != nil {
		return nil, err
	}
	return &blobWriter{d: d, f: f, ref: o.Ref, hash: digest.Canonical.Hash(), start: time.Now()}, nil
}

func (d blobDir) path(id digest.Digest) string { return filepath.Join(d.dir, digestDir("blobs", id)) }

type blobWriter struct {
	d     blobDir
	f     *os.File
	ref   string
	hash  hash.Hash
	n     int64
	start time.Time
	done  bool
}

func (w *blobWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.n += int64(n)
	return n, err
}

// Digest implements content.Writer.
func (w *blobWriter) Digest() digest.Digest { return digest.NewDigest(digest.Canonical, w.hash) }

// Status implements content.Writer.
func (w *blobWriter) Status() (content.Status, error) {
	return content.Status{Ref: w.ref, Offset: w.n, StartedAt: w.start, UpdatedAt: w.start}, nil
}

// Truncate implements content.Writer: a reader that is not at its beginning starts over.
func (w *blobWriter) Truncate(size int64) error {
	if size != 0 {
		return fmt.Errorf("truncate to %d bytes: %w", size, errors.ErrUnsupported)
	}
	w.hash.Reset()
	w.n = 0
	_, err := w.f.Seek(0, 0)
	return errors.Join(err, w.f.Truncate(0))
}

// Commit implements content.Writer.
func (w *blobWriter) Commit(_ context.Context, size int64, expected digest.Digest, _ ...content.Opt) error {
	got := w.Digest()
	switch {
	case size > 0 && size != w.n:
		return fmt.Errorf("blob of %d bytes, %d were expected: %w", w.n, size, ErrInvalid)
	case expected != "" && expected != got:
		return fmt.Errorf("blob %s has digest %s: %w", expected, got, ErrDigest)
	}
	dst := w.d.path(got)
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return err
	}
	if err := os.Rename(w.f.Name(), dst); err != nil {
		return err
	}
	w.done = true
	return w.f.Close()
}

// Close implements io.Closer. What was not committed is gone.
func (w *blobWriter) Close() error {
	if w.done {
		return nil
	}
	w.done = true
	return errors.Join(w.f.Close(), os.Remove(w.f.Name()))
}
