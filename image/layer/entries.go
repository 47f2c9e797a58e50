package layer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"time"
)

// entries reads a tar stream as archive/tar does, entry by entry, and leaves to it what is not as plain as most are: an
// entry with one ustar header (POSIX.1-2017, pax, "ustar Interchange Format") and numbers that fill their fields. The
// package looks at each byte of a header several times, which was a thirtieth of what a pull costs.
type entries struct {
	raw  *rawReader
	blk  [TarBlock]byte
	hdr  tar.Header // of a plain entry
	left int64      // of its content
	// tr has the current entry, if that is not plain. It reads the one behind a sparse entry too, for only it
	// knows where that ends.
	tr     *tar.Reader
	sparse bool
}

// TarBlock is the length of a tar header, and of what a tar stream is made of.
const TarBlock = 512

// next returns the next entry's header, valid until the one after it, and the errors of tar.Reader.Next.
func (e *entries) next() (*tar.Header, error) {
	if !e.sparse {
		if err := e.skip(); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(e.raw, e.blk[:]); err != nil {
			return nil, err
		}
		if e.plain() {
			e.tr, e.left = nil, e.hdr.Size
			return &e.hdr, nil
		}
		e.tr = tar.NewReader(io.MultiReader(bytes.NewReader(e.blk[:]), e.raw))
	}
	hdr, err := e.tr.Next()
	if err != nil {
		return nil, err
	}
	e.sparse = isSparse(hdr)
	return hdr, nil
}

// skip goes to the end of the current entry. A stream that ends in the padding behind it ends well.
func (e *entries) skip() error {
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{e}); err != nil {
		return err
	}
	pad := e.blk[:-e.raw.n&(TarBlock-1)]
	for len(pad) > 0 {
		n, err := e.raw.Read(pad)
		if pad = pad[n:]; err != nil && (len(pad) > 0 || !errors.Is(err, io.EOF)) {
			return err
		}
	}
	return nil
}

// Read implements io.Reader for the current entry's content.
func (e *entries) Read(p []byte) (int, error) {
	if e.tr != nil {
		return e.tr.Read(p)
	}
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.raw.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	switch {
	case err == io.EOF && e.left > 0: //nolint:errorlint // as archive/tar: nothing else is the end
		return n, io.ErrUnexpectedEOF
	case err == nil && e.left == 0:
		return n, io.EOF
	}
	return n, err
}

// plain makes hdr of the block, if that is plain.
func (e *entries) plain() bool {
	b := &e.blk
	if string(b[257:263]) != "ustar\x00" || string(b[508:512]) == "tar\x00" || b[155] != ' ' {
		return false
	}
	ok := true
	number := func(field []byte) (n int64) {
		last := len(field) - 1
		for _, c := range field[:last] {
			ok = ok && c >= '0' && c <= '7'
			n = n<<3 | int64(c-'0')
		}
		ok = ok && field[last] == 0
		return n
	}
	sum := number(b[148:155])
	h := tar.Header{
		Typeflag: b[156], Name: cString(b[0:100]), Linkname: cString(b[157:257]),
		Mode: number(b[100:108]), Uid: int(number(b[108:116])), Gid: int(number(b[116:124])), Size: number(b[124:136]),
	}
	h.ModTime = time.Unix(number(b[136:148]), 0)
	number(b[329:337]) // numbers of a device, which this is none of
	number(b[337:345])
	if !ok || sum != TarChecksum(b) {
		return false
	}
	switch h.Typeflag {
	case tar.TypeReg:
	case tar.TypeDir, tar.TypeLink, tar.TypeSymlink:
		if h.Size != 0 {
			return false
		}
	default:
		return false
	}
	if prefix := cString(b[345:500]); prefix != "" {
		h.Name = prefix + "/" + h.Name
	}
	e.hdr = h
	return true
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// TarChecksum is the sum of a header's bytes, with spaces for those of the checksum itself.
func TarChecksum(b *[TarBlock]byte) int64 {
	const even = 0x00ff00ff00ff00ff
	sum := uint64(0) // four of 16 bits each
	for i := 0; i < TarBlock; i += 8 {
		v := binary.LittleEndian.Uint64(b[i:])
		sum += v&even + v>>8&even
	}
	n := int64(sum&0xffff + sum>>16&0xffff + sum>>32&0xffff + sum>>48)
	for _, c := range b[148:156] {
		n += ' ' - int64(c)
	}
	return n
}
