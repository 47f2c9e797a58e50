package erofs_test

import (
	"bytes"
	"fmt"
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
			f := tempFile(t)
			n := tr.write(t, f, m.o)
			if st, err := f.Stat(); err != nil || st.Size() != n {
				t.Errorf("Close() = %d; the file has %d bytes", n, st.Size())
			}
			tr.check(t, look(t, mount(t, f.Name())))
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
			f := tempFile(t)
			tr.write(t, f, m.o)
			tr.check(t, look(t, mount(t, f.Name())))
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
			f := tempFile(t)
			tr.write(t, f, m.o)
			tr.check(t, look(t, mount(t, f.Name())))
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
			want.check(t, look(t, mount(t, f.Name())))
		})
	}
}

func TestDirectories(t *testing.T) {
	tr := tree{"target": regular([]byte("x"))}
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
	f := tempFile(t)
	tr.write(t, f, erofs.Options{})
	root := mount(t, f.Name())
	tr.check(t, look(t, root))
	for _, name := range []string{"odd/..", "odd/.", "odd/nothing", "odd/" + strings.Repeat("z", 254), "100000/100000", "100000/99999"} {
		var st unix.Stat_t
		err := unix.Lstat(root+"/"+name, &st)
		if want := strings.HasSuffix(name, ".") || name == "100000/99999"; (err == nil) != want {
			t.Errorf("lstat(%s) = %v", name, err)
		}
	}
}
