package erofs_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/image/erofs"
)

// file is what a path of a tree should be.
type file struct {
	erofs.Attr
	content []byte
	target  string
	link    string // the path of which this is another name; the rest is not used then
}

// tree is paths, without a slash at the beginning; "" is the root. Folders above a path are made where missing.
type tree map[string]file

func (tr tree) parents() {
	for _, name := range slices.Collect(maps.Keys(tr)) {
		for name != "" {
			if name = path.Dir(name); name == "." {
				name = ""
			}
			if _, ok := tr[name]; !ok {
				tr[name] = file{Attr: erofs.Attr{Mode: unix.S_IFDIR | 0o755, ModTime: time.Unix(1000000000, 0)}}
			}
		}
	}
}

func (tr tree) names() []string { return slices.Sorted(maps.Keys(tr)) }

// write writes the tree as an image and returns its size.
func (tr tree) write(t testing.TB, f erofs.File, o erofs.Options) int64 {
	t.Helper()
	tr.parents()
	w, err := erofs.NewWriter(f, o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	n, err := w.Close(tr.writeTo(t, w))
	if err != nil {
		t.Fatalf("Close() = %v", err)
	}
	checkSum(t, w, f, n)
	return n
}

// checkSum reads what w wrote, piece by piece.
func checkSum(t testing.TB, w *erofs.Writer, f erofs.File, size int64) {
	t.Helper()
	var sum erofs.Sum
	buf := make([]byte, 5*4096+17)
	if n, err := io.CopyBuffer(&sum, io.NewSectionReader(f, 0, size), buf); n != size || err != nil {
		t.Fatalf("read the image: %d bytes of %d, %v", n, size, err)
	}
	if sum.Sum64() != w.Sum() {
		t.Errorf("Sum() = %x; the sum of the file is %x", w.Sum(), sum.Sum64())
	}
}

// writeTo writes everything but directories, of which it returns the root.
func (tr tree) writeTo(t testing.TB, w *erofs.Writer) *erofs.Dir {
	t.Helper()
	dirs := map[string]*erofs.Dir{}
	inodes := map[string]*erofs.Inode{}
	names := tr.names()
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(len(tr[a].link), len(tr[b].link)) })
	for _, name := range names {
		x := tr[name]
		switch {
		case x.link != "":
			if inodes[name] = inodes[x.link]; inodes[name] == nil {
				t.Fatalf("%s is a link to %s, which is no file", name, x.link)
			}
		case x.Mode&unix.S_IFMT == unix.S_IFDIR:
			dirs[name] = &erofs.Dir{Attr: x.Attr}
		case x.Mode&unix.S_IFMT == unix.S_IFREG:
			i, err := w.WriteFile(context.Background(), x.Attr, int64(len(x.content)), bytes.NewReader(x.content))
			if err != nil {
				t.Fatalf("WriteFile(%s) = %v", name, err)
			}
			if i.Mode() != x.Mode || i.Size() != int64(len(x.content)) {
				t.Fatalf("WriteFile(%s) = mode %o, size %d", name, i.Mode(), i.Size())
			}
			inodes[name] = i
		default:
			i, err := w.WriteNode(x.Attr, x.target)
			if err != nil {
				t.Fatalf("WriteNode(%s) = %v", name, err)
			}
			inodes[name] = i
		}
	}
	for _, name := range names {
		if name == "" {
			continue
		}
		parent := path.Dir(name)
		if parent == "." {
			parent = ""
		}
		d := dirs[parent]
		d.Entries = append(d.Entries, erofs.Entry{Name: path.Base(name), Inode: inodes[name], Dir: dirs[name]})
	}
	return dirs[""]
}

// seen is what a path is, as the kernel or the reader of these tests sees it.
type seen struct {
	mode, uid, gid, links, rdevMajor, rdevMinor uint32
	size, sec, nsec                             int64
	content                                     []byte
	target                                      string
	xattrs                                      map[string]string
	node                                        uint64 // the same for other names of one inode
}

func (s seen) String() string {
	return fmt.Sprintf("mode %o owner %d:%d links %d device %d:%d size %d time %d.%09d target %.80q xattrs %.200q content %d bytes",
		s.mode, s.uid, s.gid, s.links, s.rdevMajor, s.rdevMinor, s.size, s.sec, s.nsec, s.target, s.xattrs, len(s.content))
}

// check compares what is there with the tree.
func (tr tree) check(t testing.TB, got map[string]seen) {
	t.Helper()
	links, subs := map[string]uint32{}, map[string]uint32{}
	for name, x := range tr {
		if x.link == "" {
			links[name]++
		} else {
			links[x.link]++
		}
		if name != "" && x.link == "" && x.Mode&unix.S_IFMT == unix.S_IFDIR {
			parent := path.Dir(name)
			if parent == "." {
				parent = ""
			}
			subs[parent]++
		}
	}
	bad := 0
	report := func(format string, args ...any) {
		t.Helper()
		if bad++; bad < 20 {
			t.Errorf(format, args...)
		}
	}
	for name := range got {
		if _, ok := tr[name]; !ok {
			report("%q is in the image", name)
		}
	}
	for name, x := range tr {
		of := name
		if x.link != "" {
			of = x.link
			x = tr[of]
		}
		g, ok := got[name]
		if !ok {
			report("%q is missing", name)
			continue
		}
		want := seen{
			mode: x.Mode, uid: x.UID, gid: x.GID, links: links[of], sec: x.ModTime.Unix(), nsec: int64(x.ModTime.Nanosecond()),
			size: int64(len(x.content)), content: x.content, target: x.target, xattrs: map[string]string{}, node: got[of].node,
		}
		for _, a := range x.Xattrs {
			want.xattrs[a.Name] = string(a.Value)
		}
		switch x.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			want.links, want.size = 2+subs[name], g.size
		case unix.S_IFLNK:
			want.size = int64(len(x.target))
		case unix.S_IFCHR, unix.S_IFBLK:
			want.rdevMajor, want.rdevMinor = x.Major, x.Minor
		}
		if g.String() != want.String() || g.node != want.node || !maps.Equal(g.xattrs, want.xattrs) || g.target != want.target {
			report("%q:\ngot  %v\nwant %v", name, g, want)
		} else if !bytes.Equal(g.content, want.content) {
			i := 0
			for i < min(len(g.content), len(want.content)) && g.content[i] == want.content[i] {
				i++
			}
			report("%q: content differs from byte %d of %d", name, i, len(want.content))
		}
	}
	if bad >= 20 {
		t.Errorf("%d differences", bad)
	}
}

// mount mounts an image, in no mount table, and returns a path to it.
func mount(t testing.TB, image string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err == unix.ENODEV {
		t.Skip("this kernel has no EROFS")
	}
	if err != nil {
		t.Fatalf("fsopen: %v", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", image); err != nil {
		t.Fatalf("source: %v", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		if err == unix.ENOTBLK {
			t.Skip("this kernel does not mount EROFS from files (Linux 6.12)")
		}
		log, _ := readLog(fs)
		t.Fatalf("mount: %v: %s", err, log)
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		t.Fatalf("fsmount: %v", err)
	}
	t.Cleanup(func() { unix.Close(m) })
	return fmt.Sprintf("/proc/self/fd/%d", m)
}

func readLog(fs int) (string, error) {
	b := make([]byte, 4096)
	n, err := unix.Read(fs, b)
	return string(b[:max(n, 0)]), err
}

// both writes the tree as an image and compares what the reader of these tests and what the kernel see of it.
func (tr tree) both(t *testing.T, o erofs.Options) *os.File {
	t.Helper()
	f := tempFile(t)
	n := tr.write(t, f, o)
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != n {
		t.Errorf("Close() = %d; the file has %d bytes", n, len(b))
	}
	tr.checkImage(t, b)
	t.Run("kernel", func(t *testing.T) { tr.check(t, look(t, mount(t, f.Name()))) })
	return f
}

func (tr tree) checkImage(t testing.TB, b []byte) {
	t.Helper()
	got, err := readImage(b)
	if err != nil {
		t.Fatalf("the image: %v", err)
	}
	tr.check(t, got)
}

// look reads a mounted tree.
func look(t testing.TB, root string) map[string]seen {
	t.Helper()
	got := map[string]seen{}
	err := filepath.WalkDir(root+"/", func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		s, err := lookAt(p)
		if err != nil {
			return err
		}
		got[strings.TrimPrefix(strings.TrimPrefix(p, root), "/")] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func lookAt(p string) (s seen, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return s, fmt.Errorf("lstat %s: %w", p, err)
	}
	s = seen{
		mode: st.Mode, uid: st.Uid, gid: st.Gid, links: uint32(st.Nlink), size: st.Size, sec: st.Mtim.Sec, nsec: st.Mtim.Nsec,
		rdevMajor: unix.Major(st.Rdev), rdevMinor: unix.Minor(st.Rdev), node: st.Ino, xattrs: map[string]string{},
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if s.content, err = os.ReadFile(p); err != nil {
			return s, err
		}
	case unix.S_IFLNK:
		if s.target, err = os.Readlink(p); err != nil {
			return s, err
		}
	}
	n, err := unix.Llistxattr(p, nil)
	if err != nil {
		return s, fmt.Errorf("llistxattr %s: %w", p, err)
	}
	buf := make([]byte, n)
	if n > 0 {
		if n, err = unix.Llistxattr(p, buf); err != nil {
			return s, fmt.Errorf("llistxattr %s: %w", p, err)
		}
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return s, fmt.Errorf("lgetxattr %s %s: %w", p, name, err)
		}
		s.xattrs[name] = string(value[:n])
	}
	return s, nil
}

// text is compressible bytes, the same for the same seed.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var words [256][]byte
	for i := range words {
		words[i] = make([]byte, 2+r.IntN(9))
		for j := range words[i] {
			words[i][j] = 'a' + byte(r.IntN(26))
		}
	}
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(append(b, words[r.IntN(1+r.IntN(256))]...), ' ')
	}
	return b[:n]
}

// noise is bytes that cannot be compressed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	c := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	c.Read(b)
	return b
}

func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
