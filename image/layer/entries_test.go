package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// listing is all that a reader says of a stream: each entry, what could be read of its content, and how it ends. Of
// every third entry all is read, of every third a part.
func listing(next func() (*tar.Header, error), r io.Reader) (said []string) {
	for i := 0; ; i++ {
		h, err := next()
		if err != nil {
			return append(said, err.Error())
		}
		n := []int64{1 << 40, h.Size / 2, 0}[i%3]
		hash := sha256.New()
		n, err = io.Copy(hash, io.LimitReader(r, n))
		said = append(said, fmt.Sprintf("%q %q -> %q %d bytes %#o %d:%d %d %d %d:%d %q: %d %x %v", h.Typeflag, h.Name, h.Linkname, h.Size, h.Mode,
			h.Uid, h.Gid, h.ModTime.UnixNano(), h.AccessTime.UnixNano(), h.Devmajor, h.Devminor, h.PAXRecords, n, hash.Sum(nil), err))
	}
}

// sameAsLibrary compares entries with archive/tar, and returns how many of the entries were plain.
func sameAsLibrary(t *testing.T, stream []byte, how func(io.Reader) io.Reader) (plain int) {
	t.Helper()
	theirs, ours := bytes.NewReader(stream), bytes.NewReader(stream)
	tr, e := tar.NewReader(how(theirs)), &entries{raw: &rawReader{r: how(ours)}}
	want := listing(tr.Next, tr)
	got := listing(func() (*tar.Header, error) {
		h, err := e.next()
		if err == nil && e.tr == nil {
			plain++
		}
		return h, err
	}, e)
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Errorf("entry %d:\n got %.500q\nwant %.500q", i, got[min(i, len(got)):], want[min(i, len(want)):])
			break
		}
	}
	if ours.Len() != theirs.Len() {
		t.Errorf("%d bytes left; want %d", ours.Len(), theirs.Len())
	}
	return plain
}

func whole(r io.Reader) io.Reader { return r }

// sign gives each block that may be a header the checksum that it should have.
func sign(stream []byte) {
	for b := stream; len(b) >= TarBlock; b = b[TarBlock:] {
		if string(b[257:262]) == "ustar" {
			copy(b[148:156], fmt.Sprintf("%06o\x00 ", TarChecksum((*[TarBlock]byte)(b))))
		}
	}
}

func TestPlainEntries(t *testing.T) {
	all := []entry{
		file("a", "hello"), dir("d/", 0o755), link(tar.TypeSymlink, "d/l", "../a"), link(tar.TypeLink, "d/h", "a"), file("empty", ""),
		file("whole-blocks", strings.Repeat("x", 2*TarBlock)), file(strings.Repeat("p/", 60)+"prefix", "text"),
		{tar.Header{Name: "owned", Typeflag: tar.TypeReg, Mode: 0o7777, Uid: 0o7777777, Gid: 1, Uname: "u", Gname: "g"}, "x"},
	}
	for i := range all {
		all[i].Format = tar.FormatUSTAR
	}
	stream := makeTar(t, all...)
	for name, how := range map[string]func(io.Reader) io.Reader{"whole": whole, "bytes": iotest.OneByteReader, "end with data": iotest.DataErrReader} {
		if n := sameAsLibrary(t, stream, how); n != len(all) {
			t.Errorf("%s: %d entries were plain; want %d", name, n, len(all))
		}
	}
}

// TestEntriesAsLibrary: whatever a stream is, entries says of it what archive/tar says.
func TestEntriesAsLibrary(t *testing.T) {
	plain := func(edit func(b []byte)) []byte {
		e := file("name", "content")
		e.Format = tar.FormatUSTAR
		stream := makeTar(t, e, e)
		edit(stream)
		sign(stream)
		return stream
	}
	set := func(at int, s string) []byte { return plain(func(b []byte) { copy(b[at:], s) }) }
	streams := map[string][]byte{
		"everything":          makeTar(t, everything()...),
		"mode with a space":   set(100, "000644 \x00"),
		"size with spaces":    set(124, "          7 "),
		"size of 8 GiB":       set(124, "77777777777\x00"),
		"size in base 256":    set(124, "\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07"),
		"size negative":       set(124, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
		"size no number":      set(124, "0000000000x\x00"),
		"size too long":       set(124, "000000000007"),
		"time negative":       set(136, "-0000000001\x00"),
		"owner 8":             set(108, "0000008\x00"),
		"device":              set(329, "000000x\x00"),
		"device empty":        set(329, strings.Repeat("\x00", 16)),
		"old":                 set(257, strings.Repeat("\x00", 8)),
		"star":                set(508, "tar\x00"),
		"gnu":                 set(257, "ustar  \x00"),
		"ustar version":       set(263, "77"),
		"directory with size": set(156, "5"),
		"link with size":      set(156, "1"),
		"device with size":    set(156, "3"),
		"unknown type":        set(156, "Z"),
		"old regular":         set(156, "\x00"),
		"old directory":       plain(func(b []byte) { copy(b, "name/\x00"); b[156] = 0 }),
		"sparse type":         set(156, "S"),
		"name with a slash":   set(0, "name/"),
		"name full":           set(0, strings.Repeat("n", 100)),
		"name empty":          set(0, strings.Repeat("\x00", 100)),
		"name not ASCII":      set(0, "n\xffm"),
		"prefix":              set(345, "before"),
		"prefix full":         set(345, strings.Repeat("p", 155)),
		"zero block inside":   plain(func(b []byte) { clear(b[2*TarBlock : 3*TarBlock]) }),
	}
	// Of a block of content the map of the sparse file has five bytes. The first two entries let it be one that is not read.
	unused := plain(func(b []byte) {
		copy(b[257:], "ustar  \x00")
		b[156] = 'S'
		copy(b[124:], "00000001000")
		copy(b[386:], "00000000000\x0000000000005\x00")
		copy(b[483:], "00000000005\x00")
	})
	streams["sparse with more"] = slices.Concat(plain(func([]byte) {})[:4*TarBlock], unused)
	bad := plain(func([]byte) {})
	bad[2*TarBlock]++
	streams["checksum"] = bad
	if gnutar, err := exec.LookPath("tar"); err == nil {
		sparse := filepath.Join(t.TempDir(), "sparse")
		if err := os.WriteFile(sparse, []byte("begin"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(sparse, 1<<20); err != nil {
			t.Fatal(err)
		}
		for _, format := range []string{"gnu", "pax"} {
			out, err := exec.Command(gnutar, "--sparse", "--format="+format, "-cf", "-", "-C", filepath.Dir(sparse), "sparse", "./sparse").Output()
			if err != nil {
				t.Logf("no sparse file: tar: %v", err)
				continue
			}
			streams["sparse "+format] = slices.Concat(plain(func([]byte) {})[:4*TarBlock], out)
		}
	}
	for name, stream := range streams {
		t.Run(name, func(t *testing.T) {
			sameAsLibrary(t, stream, whole)
			sameAsLibrary(t, stream, iotest.HalfReader)
			step := max(1, len(stream)/500)
			for n := 0; n < len(stream); n += step {
				sameAsLibrary(t, stream[:n], whole)
			}
		})
	}
}

func FuzzEntries(f *testing.F) {
	for _, e := range everything() {
		f.Add(makeTar(f, e), true)
		e.Format = tar.FormatUSTAR
		notASCII := func(r rune) bool { return r > 0x7f }
		if e.PAXRecords == nil && len(e.Name) < 100 && e.ModTime.IsZero() && !strings.ContainsFunc(e.Name, notASCII) {
			f.Add(makeTar(f, e, e), true)
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte, signed bool) {
		if signed {
			sign(stream)
		}
		sameAsLibrary(t, stream, whole)
	})
}
