package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Verify tells whether an unpacked layer is what its tar stream said: that the stream can be put together again (whose
// bytes go to w, for the caller to compare the digest), and that each entry is there with its type, mode, owner and
// link. Extended attributes and times are not compared. What is wrong matches ErrInvalid.
func Verify(ctx context.Context, w io.Writer, frame io.ReadSeeker, root, replaced *os.File) error {
	pr, pw := io.Pipe()
	v := &verifier{root: int(root.Fd()), entries: map[string]archived{}}
	read := make(chan error, 1)
	go func() {
		err := v.collect(pr)
		pr.CloseWithError(err)
		read <- err
	}()
	err := Reassemble(ctx, io.MultiWriter(w, pw), frame, root, replaced)
	pw.CloseWithError(err)
	if rerr := <-read; err == nil {
		err = rerr
	}
	if err != nil {
		return err
	}
	return v.compare(ctx)
}

// archived is what an archive says of a path.
type archived struct {
	kind     byte
	mode     uint32
	uid, gid int
	link     string
	linked   bool // another entry shares the inode, and may have changed what is said here
}

type verifier struct {
	root    int
	entries map[string]archived
	// odd: entries replace one another in ways that are not followed here.
	odd bool
}

func (v *verifier) collect(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return tarError(err)
		}
		name, err := cleanName(hdr.Name)
		if err != nil {
			return err
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader || strings.HasPrefix(path.Base(name), whiteoutPrefix) || isWhiteoutDevice(hdr) {
			continue
		}
		e := archived{kind: hdr.Typeflag, mode: uint32(hdr.Mode) & 0o7777, uid: hdr.Uid, gid: hdr.Gid, link: hdr.Linkname}
		if old, ok := v.entries[name]; ok && (old.kind != e.kind || old.linked) {
			v.odd = true
		}
		if e.kind == tar.TypeLink {
			v.share(&e)
		}
		v.entries[name] = e
	}
}

// share notes that a hard link has an inode in common with an earlier entry.
func (v *verifier) share(e *archived) {
	e.linked = true
	target, err := cleanName(e.link)
	if err != nil {
		return
	}
	e.link = target
	if t, ok := v.entries[target]; ok {
		t.linked = true
		v.entries[target] = t
	}
}

func (v *verifier) compare(ctx context.Context) error {
	if v.odd {
		return nil
	}
	for name, e := range v.entries {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := v.compareOne(name, e); err != nil {
			return fmt.Errorf("entry %.200q: %w", name, err)
		}
	}
	return nil
}

// compareOne looks at one entry. Directories above it may be links within the layer.
func (v *verifier) compareOne(name string, e archived) error {
	dir, base := path.Split(name)
	parent, err := sys.OpenInRoot(v.root, path.Clean("./"+dir), sys.OpenPath|sys.OpenDirectory, 0)
	if err == nil {
		defer sys.Close(parent)
	}
	var st syscall.Stat_t
	if err == nil {
		st, err = sys.Lstatat(parent, base)
	}
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err != nil {
		return err
	}
	kinds := map[byte]uint32{
		tar.TypeReg: sys.FileReg, tar.TypeGNUSparse: sys.FileReg, tar.TypeDir: sys.FileDir, tar.TypeSymlink: sys.FileSymlink,
		tar.TypeChar: sys.FileChar, tar.TypeBlock: sys.FileBlock, tar.TypeFifo: sys.FileFifo,
	}
	want, known := kinds[e.kind]
	got := uint32(st.Mode)
	switch {
	case known && got&sys.FileTypeMask != want:
		return fmt.Errorf("has type %#o, the archive says %#o: %w", got&sys.FileTypeMask, want, ErrInvalid)
	case e.linked:
		return nil
	case int(st.Uid) != e.uid || int(st.Gid) != e.gid:
		return fmt.Errorf("belongs to %d:%d, the archive says %d:%d: %w", st.Uid, st.Gid, e.uid, e.gid, ErrInvalid)
	case want != sys.FileSymlink && got&0o7777 != e.mode:
		return fmt.Errorf("has mode %#o, the archive says %#o: %w", got&0o7777, e.mode, ErrInvalid)
	case want == sys.FileSymlink && st.Size != int64(len(e.link)):
		return fmt.Errorf("is a link with %d bytes, the archive says %q: %w", st.Size, e.link, ErrInvalid)
	}
	return nil
}
