package erofs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/image/erofs"
)

var modes = []struct {
	name string
	o    erofs.Options
}{
	{"plain", erofs.Options{}},
	{"lz4", erofs.Options{Compress: true}},
	{"hurry", erofs.Options{Compress: true, Hurry: func() bool { return true }}},
}

// sizes are lengths of contents around what is a limit somewhere.
func sizes() []int {
	var s []int
	for _, n := range []int{0, 256, 2048, 4032, 4096, 8192, 32768, 65536, 128 << 10, 256 << 10, 512 << 10} {
		for _, d := range []int{-64, -13, -5, -1, 0, 1, 5, 13, 64, 1000} {
			if n+d >= 0 {
				s = append(s, n+d)
			}
		}
	}
	return append(s, 1, 2, 12, 100, 3<<20, 3<<20+17)
}

func regular(content []byte) file {
	return file{Attr: erofs.Attr{Mode: unix.S_IFREG | 0o644, ModTime: time.Unix(1700000000, 123456789)}, content: content}
}

func contents() tree {
	tr := tree{}
	for i, n := range sizes() {
		seed := uint64(i)
		half := append(text(seed, n/2), noise(seed, n-n/2)...)
		tr[fmt.Sprintf("text/%d", n)] = regular(text(seed, n))
		tr[fmt.Sprintf("noise/%d", n)] = regular(noise(seed, n))
		tr[fmt.Sprintf("zeros/%d", n)] = regular(make([]byte, n))
		tr[fmt.Sprintf("half/%d", n)] = regular(half)
		tr[fmt.Sprintf("flah/%d", n)] = regular(append(bytes.Clone(half[n/2:]), half[:n/2]...))
	}
	var mixed []byte
	for i := range 400 {
		switch n := (i * 7919) % 9000; i % 3 {
		case 0:
			mixed = append(mixed, text(uint64(i), n*2)...)
		case 1:
			mixed = append(mixed, noise(uint64(i), n)...)
		default:
			mixed = append(mixed, make([]byte, n*20)...)
		}
	}
	tr["mixed"] = regular(mixed)
	return tr
}

func TestContents(t *testing.T) {
	tr := contents()
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			tr.both(t, m.o)
		})
	}
}

func TestAttributes(t *testing.T) {
	tr := tree{}
	for i, mode := range []uint32{
		unix.S_IFREG | 0o7777, unix.S_IFREG, unix.S_IFIFO | 0o600, unix.S_IFSOCK | 0o777, unix.S_IFCHR | 0o666,
		unix.S_IFBLK | 0o660, unix.S_IFLNK | 0o777, unix.S_IFDIR | 0o1777, unix.S_IFDIR | 0o6755,
	} {
		for j, at := range []time.Time{
			time.Unix(0, 0), time.Unix(-1, 0), time.Unix(-2208988800, 999999999), time.Unix(1<<33, 1), time.Unix(-1<<40, 5),
		} {
			x := file{Attr: erofs.Attr{Mode: mode, ModTime: at, UID: uint32(1)<<(i*j%32) - uint32(j), GID: 1<<32 - 2 - uint32(i)}}
			if x.UID > 1<<32-2 {
				x.UID = 0
			}
			switch mode & unix.S_IFMT {
			case unix.S_IFLNK:
				x.target = strings.Repeat("x/", i+j*200) + "y"
			case unix.S_IFCHR, unix.S_IFBLK:
				x.Major, x.Minor = []uint32{0, 1, 255, 256, 4095}[j], []uint32{0, 255, 256, 1<<20 - 1, 4096}[j]
			case unix.S_IFREG:
				x.content = text(uint64(i), i*j*j*1000)
			}
			tr[fmt.Sprintf("%d-%d", i, j)] = x
		}
	}
	long := file{Attr: erofs.Attr{Mode: unix.S_IFLNK | 0o777}, target: strings.Repeat("/", 4095)}
	tr["long"] = long
	long.Xattrs = []erofs.Xattr{{Name: "trusted.long", Value: noise(1, 3000)}}
	tr["longer"] = long
	tr["longer2"] = file{link: "longer"}
	tr[strings.Repeat("n", 255)] = file{link: "longer"}
	tr["d/e/f"] = file{link: "longer"}
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			tr.both(t, m.o)
		})
	}
}

func TestXattrs(t *testing.T) {
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, 4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 4, 0, 0xff, 0xff, 0xff, 0xff}
	tr := tree{}
	for i, xs := range [][]erofs.Xattr{
		{{Name: "user.a", Value: []byte("b")}},
		{{Name: "trusted.overlay.opaque", Value: []byte("y")}, {Name: "user.empty"}},
		{{Name: "security.capability", Value: []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}},
		{{Name: "system.posix_acl_access", Value: acl}, {Name: "user.x", Value: noise(1, 5)}},
		{{Name: "user." + strings.Repeat("n", 250), Value: noise(2, 65535)}},
		{{Name: "trusted.4", Value: noise(3, 3960)}},
		{{Name: "trusted.5", Value: noise(4, 4096)}, {Name: "trusted.6", Value: noise(5, 4001)}, {Name: "trusted.7", Value: noise(5, 65535)}},
	} {
		for j, n := range []int{0, 100, 3000, 4090, 5000, 70000} {
			x := regular(text(uint64(n), n))
			x.Xattrs = xs
			tr[fmt.Sprintf("%d/f%d", i, j)] = x
		}
		tr[fmt.Sprintf("%d", i)] = file{Attr: erofs.Attr{Mode: unix.S_IFDIR | 0o700, Xattrs: xs}}
		d := file{Attr: erofs.Attr{Mode: unix.S_IFDIR | 0o700, Xattrs: xs}}
		if i == 3 {
			d.Xattrs = append([]erofs.Xattr{{Name: "system.posix_acl_default", Value: acl}}, xs...)
		}
		tr[fmt.Sprintf("%d/empty", i)] = d
		if i != 0 && i != 3 && i != 4 && i != 1 {
			tr[fmt.Sprintf("%d/link", i)] = file{Attr: erofs.Attr{Mode: unix.S_IFLNK | 0o777, Xattrs: xs}, target: "some/where"}
			tr[fmt.Sprintf("%d/null", i)] = file{Attr: erofs.Attr{Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 3, Xattrs: xs}}
		}
		for j := range 300 * i {
			tr[fmt.Sprintf("%d/%030d", i, j)] = file{link: fmt.Sprintf("%d/f1", i)}
		}
	}
	tr[""] = file{Attr: erofs.Attr{Mode: unix.S_IFDIR | 0o711, ModTime: time.Unix(7, 7), Xattrs: []erofs.Xattr{{Name: "user.root", Value: noise(1, 2700)}}}}
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			tr.both(t, m.o)
		})
	}
}

func TestSetAttr(t *testing.T) {
	tr := tree{}
	for _, n := range []int{0, 10, 2000, 3900, 4000, 5000, 40000, 1 << 20, 33 << 20} {
		tr[fmt.Sprintf("text%d", n)] = regular(text(1, n))
		tr[fmt.Sprintf("noise%d", n)] = regular(noise(1, n))
	}
	tr["link"] = file{Attr: erofs.Attr{Mode: unix.S_IFLNK | 0o777}, target: "x"}
	tr["null"] = file{Attr: erofs.Attr{Mode: unix.S_IFCHR, Major: 1, Minor: 3}}
	tr.parents()
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			f := tempFile(t)
			w, err := erofs.NewWriter(f, m.o)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			root := tr.writeTo(t, w)
			want := tree{"": tr[""]}
			for i, e := range root.Entries {
				x := tr[e.Name]
				for j, n := range []int{0, 1, 100, 5000, 20}[:1+i%5] {
					x.Attr.Mode ^= 0o111
					x.Attr.UID += uint32(j)
					x.Attr.ModTime = time.Unix(int64(j), int64(i))
					x.Attr.Xattrs = nil
					if n > 0 {
						x.Attr.Xattrs = []erofs.Xattr{{Name: "trusted.x", Value: noise(uint64(i), n)}}
					}
					if err := w.SetAttr(e.Inode, x.Attr); err != nil {
						t.Fatalf("SetAttr(%s) = %v", e.Name, err)
					}
				}
				want[e.Name] = x
			}
			if err := w.SetAttr(root.Entries[0].Inode, erofs.Attr{Mode: unix.S_IFDIR}); err == nil {
				t.Error("SetAttr() that changes the type = nil")
			}
			if _, err := w.Close(root); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			want.checkImage(t, b)
			t.Run("kernel", func(t *testing.T) { want.check(t, look(t, mount(t, f.Name()))) })
		})
	}
}

func TestDirectories(t *testing.T) {
	tr := tree{"target": file{Attr: erofs.Attr{Mode: unix.S_IFIFO | 0o600}}}
	for _, n := range []int{1, 100, 339, 340, 341, 1000, 100000} {
		for i := range n {
			tr[fmt.Sprintf("%d/%d", n, i)] = file{link: "target"}
		}
	}
	for _, name := range []string{"!", "-", ".!", ".-", "...", "..a", ".a", "/", "\xff", "\x01", "é", strings.Repeat("z", 255)} {
		if name != "/" {
			tr["odd/"+name] = file{link: "target"}
			tr["odder/"+name+"/x"] = file{link: "target"}
		}
	}
	// Names for which a block is nearly or wholly full.
	for n := 1; n < 255; n += 3 {
		for i := range 40 {
			tr[fmt.Sprintf("full%d/%s%02d", n, strings.Repeat("a", n), i)] = file{link: "target"}
		}
	}
	deep := strings.Repeat("d/", 1000)
	tr[deep+"end"] = file{link: "target"}
	f := tr.both(t, erofs.Options{})
	root := mount(t, f.Name())
	for _, name := range []string{"odd/..", "odd/.", "odd/nothing", "odd/" + strings.Repeat("z", 254), "100000/100000", "100000/99999"} {
		var st unix.Stat_t
		err := unix.Lstat(root+"/"+name, &st)
		if want := strings.HasSuffix(name, ".") || name == "100000/99999"; (err == nil) != want {
			t.Errorf("lstat(%s) = %v", name, err)
		}
	}
}

// A tree of everything, by chance.
func randomTree(r *rand.Rand, n int) tree {
	tr := tree{"": file{Attr: erofs.Attr{Mode: unix.S_IFDIR | 0o755}}}
	dirs, files := []string{""}, []string{}
	for i := range n {
		name := path.Join(dirs[r.IntN(len(dirs))], fmt.Sprintf("%d%s", i, strings.Repeat("n", r.IntN(1<<r.IntN(8)))))
		x := file{Attr: erofs.Attr{
			Mode: r.Uint32() & 0o7777, UID: r.Uint32() >> r.IntN(32), GID: r.Uint32() >> r.IntN(32) & 0xfffff,
			ModTime: time.Unix(r.Int64N(1<<35)-1<<34, r.Int64N(1e9)),
		}}
		x.UID = min(x.UID, 1<<32-2)
		for j := range r.IntN(4) * r.IntN(2) {
			x.Xattrs = append(x.Xattrs, erofs.Xattr{Name: fmt.Sprintf("trusted.%d", j), Value: noise(r.Uint64(), r.IntN(1<<r.IntN(13)))})
		}
		switch kind := r.IntN(20); {
		case kind < 3:
			x.Mode |= unix.S_IFDIR
			dirs = append(dirs, name)
		case kind == 3:
			x.Mode |= unix.S_IFLNK
			x.target = strings.Repeat("t", 1+r.IntN(1<<r.IntN(12)))
		case kind == 4:
			x.Mode |= []uint32{unix.S_IFCHR, unix.S_IFBLK}[r.IntN(2)]
			x.Major, x.Minor = r.Uint32N(1<<12), r.Uint32N(1<<20)
		case kind == 5:
			x.Mode |= []uint32{unix.S_IFIFO, unix.S_IFSOCK}[r.IntN(2)]
		case kind == 6 && len(files) > 0:
			x = file{link: files[r.IntN(len(files))]}
		default:
			x.Mode |= unix.S_IFREG
			for range 1 + r.IntN(3) {
				size := r.IntN(1 << r.IntN(19))
				switch r.IntN(4) {
				case 0:
					x.content = append(x.content, noise(r.Uint64(), size)...)
				case 1:
					x.content = append(x.content, make([]byte, size)...)
				default:
					x.content = append(x.content, text(r.Uint64(), size)...)
				}
			}
			files = append(files, name)
		}
		tr[name] = x
	}
	return tr
}

func TestRandomTrees(t *testing.T) {
	for seed := range uint64(4) {
		for _, m := range modes {
			t.Run(fmt.Sprint(m.name, seed), func(t *testing.T) {
				randomTree(rand.New(rand.NewPCG(seed, 0)), 600).both(t, m.o)
			})
		}
	}
}

// The same input gives the same bytes, whatever the buffers were used for before.
func TestDeterministic(t *testing.T) {
	tr := randomTree(rand.New(rand.NewPCG(7, 7)), 300)
	var first []byte
	for range 3 {
		f := tempFile(t)
		tr.write(t, f, erofs.Options{Compress: true})
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		}
		if !bytes.Equal(first, b) {
			t.Fatal("the second image differs from the first")
		}
		randomTree(rand.New(rand.NewPCG(8, 8)), 100).write(t, tempFile(t), erofs.Options{Compress: true})
	}
}

// Debian's own tools find nothing to complain about, and take the same contents out.
func TestFsck(t *testing.T) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Skipf("erofs-utils: %v", err)
	}
	tr := contents()
	for name, x := range tr {
		x.Mode = unix.S_IFREG | 0o644
		x.ModTime = time.Unix(1700000000, 5)
		tr[name] = x
	}
	tr["link"] = file{Attr: erofs.Attr{Mode: unix.S_IFLNK | 0o777}, target: "text/100"}
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			f := tempFile(t)
			tr.write(t, f, m.o)
			dir := filepath.Join(t.TempDir(), "out")
			if out, err := exec.Command(fsck, "--extract="+dir, f.Name()).CombinedOutput(); err != nil {
				t.Fatalf("fsck.erofs: %v: %s", err, out)
			}
			for name, x := range tr {
				if x.Mode&unix.S_IFMT != unix.S_IFREG {
					continue
				}
				if !m.o.Compress && (name == "mixed" || strings.HasPrefix(name, "zeros/")) {
					continue // fsck.erofs 1.5 takes files out without their holes
				}
				if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(b, x.content) {
					t.Errorf("%s: %d bytes of %d: %v", name, len(b), len(x.content), err)
				}
			}
			out, err := exec.Command("dump.erofs", "-s", f.Name()).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "sb_csum mtime") {
				t.Errorf("dump.erofs: %v: %s", err, out)
			}
		})
	}
}

// bigFile is size bytes, most of them zeros: at each place of marks are a few that are not.
type bigFile struct {
	size, pos int64
	marks     []int64
}

func (b *bigFile) Read(p []byte) (int, error) {
	n := int(min(int64(len(p)), b.size-b.pos))
	if n == 0 {
		return 0, io.EOF
	}
	clear(p[:n])
	for _, m := range b.marks {
		for i := range int64(100) {
			if at := m + i - b.pos; at >= 0 && at < int64(n) {
				p[at] = byte(m>>12) + byte(i) | 1
			}
		}
	}
	b.pos += int64(n)
	return n, nil
}

func TestBigFiles(t *testing.T) {
	const giB = 1 << 30
	for _, c := range []struct {
		name  string
		size  int64
		marks []int64
		most  int64 // of the image
	}{
		{"hole first", 4*giB + 12345, []int64{1 << 20, 4*giB - 50}, 2 << 20},
		{"data first", giB + 77, []int64{0, giB / 3, giB - 30}, 30 << 20},
		{"index in two places", 40<<20 + 1, []int64{0, 5000000, 40<<20 - 99}, 2 << 20},
	} {
		for _, m := range modes {
			most := c.most
			if !m.o.Compress {
				most = 2 << 20
			}
			t.Run(c.name+"/"+m.name, func(t *testing.T) {
				f := tempFile(t)
				w, err := erofs.NewWriter(f, m.o)
				if err != nil {
					t.Fatal(err)
				}
				defer w.Abort()
				a := erofs.Attr{Mode: unix.S_IFREG | 0o600}
				big, err := w.WriteFile(t.Context(), a, c.size, &bigFile{size: c.size, marks: c.marks})
				if err != nil {
					t.Fatal(err)
				}
				a.Xattrs = []erofs.Xattr{{Name: "trusted.x", Value: noise(1, 100)}}
				if err := w.SetAttr(big, a); err != nil {
					t.Fatal(err)
				}
				n, err := w.Close(&erofs.Dir{Attr: erofs.Attr{Mode: unix.S_IFDIR | 0o700}, Entries: []erofs.Entry{{Name: "big", Inode: big}}})
				if err != nil {
					t.Fatal(err)
				}
				checkSum(t, w, f, n)
				if n > most {
					t.Errorf("the image has %d bytes; want at most %d", n, most)
				}
				b, err := os.Open(mount(t, f.Name()) + "/big")
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				if st, err := b.Stat(); err != nil || st.Size() != c.size {
					t.Fatalf("size %d, %v; want %d", st.Size(), err, c.size)
				}
				for _, at := range append(c.marks, 0, 4096, c.size/2, c.size-3000) {
					for at, end := max(at-5000, 0), min(at+5000, c.size); at < end; at += 1000 {
						got := make([]byte, min(1000, c.size-at))
						want := make([]byte, len(got))
						if _, err := b.ReadAt(got, at); err != nil {
							t.Fatalf("read at %d: %v", at, err)
						}
						io.ReadFull(&bigFile{size: c.size, pos: at, marks: c.marks}, want)
						if !bytes.Equal(got, want) {
							t.Fatalf("the bytes at %d differ", at)
						}
					}
				}
			})
		}
	}
}

// memory is a file in memory.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p); n > len(m.b) {
		m.b = append(m.b, make([]byte, n-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }

func FuzzWriter(f *testing.F) {
	f.Add(uint64(1), uint16(50), true)
	f.Add(uint64(2), uint16(50), false)
	f.Add(uint64(3), uint16(0), true)
	f.Fuzz(func(t *testing.T, seed uint64, n uint16, compress bool) {
		tr := randomTree(rand.New(rand.NewPCG(seed, 1)), int(n%300))
		m := new(memory)
		size := tr.write(t, m, erofs.Options{Compress: compress})
		if int(size) != len(m.b) {
			t.Errorf("Close() = %d; the file has %d bytes", size, len(m.b))
		}
		tr.checkImage(t, m.b)
	})
}

func TestUnsupported(t *testing.T) {
	w, err := erofs.NewWriter(new(memory), erofs.Options{Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	file := func(a erofs.Attr) error {
		_, err := w.WriteFile(t.Context(), a, 0, nil)
		return err
	}
	node := func(a erofs.Attr, target string) error {
		_, err := w.WriteNode(a, target)
		return err
	}
	xattr := func(name string, n int) erofs.Attr {
		return erofs.Attr{Mode: unix.S_IFREG, Xattrs: []erofs.Xattr{{Name: name, Value: make([]byte, n)}}}
	}
	many := xattr("user.0", 60000)
	for i := range 5 {
		many.Xattrs = append(many.Xattrs, erofs.Xattr{Name: fmt.Sprint("user.x", i), Value: many.Xattrs[0].Value})
	}
	for name, err := range map[string]error{
		"target":            node(erofs.Attr{Mode: unix.S_IFLNK}, strings.Repeat("x", 4096)),
		"empty target":      node(erofs.Attr{Mode: unix.S_IFLNK}, ""),
		"NUL in target":     node(erofs.Attr{Mode: unix.S_IFLNK}, "a\x00b"),
		"major":             node(erofs.Attr{Mode: unix.S_IFCHR, Major: 4096}, ""),
		"minor":             node(erofs.Attr{Mode: unix.S_IFBLK, Minor: 1 << 20}, ""),
		"mode":              node(erofs.Attr{Mode: 0o755}, ""),
		"a directory":       node(erofs.Attr{Mode: unix.S_IFDIR}, ""),
		"attribute":         file(xattr("user.x", 65536)),
		"attribute's name":  file(xattr("user."+strings.Repeat("x", 251), 1)),
		"attribute's space": file(xattr("os2.x", 1)),
		"longer ACL name":   file(xattr("system.posix_acl_access2", 1)),
		"attributes":        file(many),
	} {
		if !errors.Is(err, erofs.ErrUnsupported) {
			t.Errorf("%s: error %v; want ErrUnsupported", name, err)
		}
	}
	// They cost the inode, not the image.
	good, err := w.WriteFile(t.Context(), erofs.Attr{Mode: unix.S_IFREG}, 3, strings.NewReader("abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entries := range [][]erofs.Entry{
		{{Name: "", Inode: good}}, {{Name: ".", Inode: good}}, {{Name: "a/b", Inode: good}}, {{Name: strings.Repeat("n", 256), Inode: good}},
		{{Name: "a", Inode: good}, {Name: "a", Inode: good}}, {{Name: "a"}},
	} {
		w, err := erofs.NewWriter(new(memory), erofs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Close(&erofs.Dir{Attr: erofs.Attr{Mode: unix.S_IFDIR}, Entries: entries}); err == nil {
			t.Errorf("Close() with entries %.100v = nil", entries)
		}
	}
}

type broken struct{ memory }

func (b *broken) WriteAt(p []byte, off int64) (int, error) { return 0, unix.ENOSPC }

func TestErrors(t *testing.T) {
	for _, m := range modes {
		for _, n := range []int64{1, 4096, 100000, 1 << 20, 40 << 20} {
			w, err := erofs.NewWriter(new(memory), m.o)
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.WriteFile(t.Context(), erofs.Attr{Mode: unix.S_IFREG}, n, bytes.NewReader(make([]byte, n-1)))
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("WriteFile() of %d bytes that lack one = %v", n, err)
			}
			if _, err := w.Close(&erofs.Dir{Attr: erofs.Attr{Mode: unix.S_IFDIR}}); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("Close() after an error = %v", err)
			}
			w.Abort()
		}
		w, err := erofs.NewWriter(new(broken), m.o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteFile(t.Context(), erofs.Attr{Mode: unix.S_IFREG}, 2<<20, bytes.NewReader(noise(1, 2<<20))); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("WriteFile() to a full disk = %v", err)
		}
		w.Abort()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if w, err = erofs.NewWriter(new(memory), m.o); err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteFile(ctx, erofs.Attr{Mode: unix.S_IFREG}, 2<<20, bytes.NewReader(noise(1, 2<<20))); !errors.Is(err, context.Canceled) {
			t.Errorf("WriteFile() that was given up = %v", err)
		}
		w.Abort()
	}
}
