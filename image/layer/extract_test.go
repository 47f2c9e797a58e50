package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/cri-shim/cri-shim/internal/sys"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners and device nodes")
	}
}

type entry struct {
	tar.Header
	body string
}

var someTime = time.Unix(1600000000, 0)

func file(name, body string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body}
}

func dir(name string, mode int64) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}, ""}
}

func link(kind byte, name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: kind, Linkname: target, Mode: 0o644}, ""}
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.body))
		if h.ModTime.IsZero() {
			h.ModTime = someTime
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("header %q: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpack unpacks into a new directory, one level below another, and checks that nothing happened beside it, and that an
// image of the archive would be the same.
func unpack(t testing.TB, archive []byte, o Options) (string, Result, error) {
	t.Helper()
	top := t.TempDir()
	root := filepath.Join(top, "a", "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if o.Frame != nil {
		if err := os.Mkdir(filepath.Join(top, "a", "replaced"), 0o755); err != nil {
			t.Fatal(err)
		}
		o.Replaced = rootFile(t, filepath.Join(top, "a", "replaced"))
	}
	began := time.Now()
	var frame bytes.Buffer
	if o.Frame != nil {
		o.Frame = io.MultiWriter(o.Frame, &frame)
	}
	res, err := Unpack(t.Context(), bytes.NewReader(archive), d, o)
	(&both{began, archive, o, root, o.Replaced, frame.Bytes(), res, err}).compareImage(t)
	if o.Frame != nil {
		defer func() {
			if n, _ := os.ReadDir(filepath.Join(top, "a")); len(n) != 2 {
				t.Fatalf("unpacking made something beside the root: %v", n)
			}
		}()
		return root, res, err
	}
	for _, dir := range []string{top, filepath.Join(top, "a")} {
		if n, _ := os.ReadDir(dir); len(n) != 1 {
			t.Fatalf("unpacking made something beside the root: %v", n)
		}
	}
	return root, res, err
}

func TestUnpackRefuses(t *testing.T) {
	needRoot(t)
	nul := makeTar(t, entry{tar.Header{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"comment": "c"}}, ""})
	for name, tc := range map[string]struct {
		tar  []byte
		want error
	}{
		"parent":              {makeTar(t, file("../x", "")), ErrInvalid},
		"parent inside":       {makeTar(t, file("a/../../x", "")), ErrInvalid},
		"dotdot":              {makeTar(t, dir("..", 0o755)), ErrInvalid},
		"absolute parent":     {makeTar(t, file("/../x", "")), ErrInvalid},
		"through link":        {makeTar(t, link(tar.TypeSymlink, "l", "../.."), file("l/x", "")), nil},
		"through absolute":    {makeTar(t, link(tar.TypeSymlink, "l", "/proc/self/root/tmp"), file("l/x", "")), ErrInvalid},
		"hard link outside":   {makeTar(t, link(tar.TypeLink, "l", "../../x")), ErrInvalid},
		"hard link missing":   {makeTar(t, link(tar.TypeLink, "l", "etc/passwd")), ErrInvalid},
		"hard link by link":   {makeTar(t, link(tar.TypeSymlink, "d", "/etc"), link(tar.TypeLink, "l", "d/passwd")), ErrInvalid},
		"hard link to itself": {makeTar(t, file("l", "x"), link(tar.TypeLink, "l", "l")), ErrInvalid},
		"hard link to dir":    {makeTar(t, dir("d", 0o755), link(tar.TypeLink, "l", "d")), ErrInvalid},
		"root as file":        {makeTar(t, file(".", "")), ErrInvalid},
		"root as link":        {makeTar(t, link(tar.TypeSymlink, ".", "/etc")), ErrInvalid},
		"below a file":        {makeTar(t, file("f", ""), file("f/x", "")), ErrInvalid},
		"below a fifo":        {makeTar(t, entry{tar.Header{Name: "f", Typeflag: tar.TypeFifo}, ""}, file("f/x", "")), ErrInvalid},
		"loop":                {makeTar(t, link(tar.TypeSymlink, "l", "l"), file("l/x", "")), syscall.ELOOP},
		"whiteout of nothing": {makeTar(t, file(".wh.", "")), ErrInvalid},
		"whiteout of parent":  {makeTar(t, file("a/.wh...", "")), ErrInvalid},
		"owner":               {makeTar(t, entry{tar.Header{Name: "x", Typeflag: tar.TypeReg, Uid: 1<<32 - 1}, ""}), ErrInvalid},
		"device number":       {makeTar(t, entry{tar.Header{Name: "x", Typeflag: tar.TypeChar, Devmajor: 1 << 20, Format: tar.FormatGNU}, ""}), ErrInvalid},
		"unknown type":        {makeTar(t, entry{tar.Header{Name: "x", Typeflag: 'Z'}, ""}), ErrInvalid},
		"too large":           {makeTar(t, file("x", strings.Repeat("x", 1<<20))), ErrTooLarge},
		"too many":            {makeTar(t, file("1", ""), file("2", ""), file("3", ""), file("4", ""), file("5", ""), file("6", "")), ErrTooLarge},
		"truncated":           {makeTar(t, file("x", strings.Repeat("x", 4096)))[:2048], io.ErrUnexpectedEOF},
		"garbage":             {bytes.Repeat([]byte("garbage!"), 128), ErrInvalid},
		"long name":           {makeTar(t, file(strings.Repeat("x", 256), "")), syscall.ENAMETOOLONG},
		"long path":           {makeTar(t, file(strings.Repeat("d/", 2100)+"x", "")), syscall.ENAMETOOLONG},
		"NUL":                 {bytes.Replace(nul, []byte("comment=c"), []byte("path=a\x00bc"), 1), ErrInvalid},
		"empty link":          {makeTar(t, link(tar.TypeSymlink, "l", "")), ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			root, _, err := unpack(t, tc.tar, Options{MaxSize: 64 << 10, MaxEntries: 5})
			if tc.want == nil {
				if err != nil {
					t.Errorf("Unpack() = %v; want it kept inside", err)
				}
				return
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("Unpack() = %v; want %v (in %s)", err, tc.want, root)
			}
		})
	}
}

func TestWhiteouts(t *testing.T) {
	needRoot(t)
	root, res, err := unpack(t, makeTar(t,
		file("a/.wh.gone", ""),
		file("a/.wh.both", ""), file("a/both", "stays"), // deleted below, made here
		file("a/first", "stays"), file("a/.wh.first", ""),
		file("a/.wh.dir", ""), file("a/dir/x", ""), // deleted below, and a directory here
		dir("a/later", 0o755), file("a/.wh.later", ""),
		file("opaque/.wh..wh..opq", ""), file("opaque/.wh..wh.plnk", ""),
		file(".wh..wh..opq", ""),
	), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !res.Opaque {
		t.Error("Opaque = false; want true for a whiteout in the root")
	}
	for name, want := range map[string]string{"a/both": "stays", "a/first": "stays", "a/dir/x": ""} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(b) != want {
			t.Errorf("%s = %q, %v; want %q", name, b, err, want)
		}
	}
	st, err := os.Stat(filepath.Join(root, "a/gone"))
	if err != nil {
		t.Fatal(err)
	}
	if s := st.Sys().(*syscall.Stat_t); s.Mode != syscall.S_IFCHR || s.Rdev != 0 {
		t.Errorf("a/gone is mode %o device %d; want a character device 0", s.Mode, s.Rdev)
	}
	for name, want := range map[string]string{"a/dir": "y", "a/later": "y", "opaque": "y", "a": ""} {
		got, err := sys.Getxattrat(dirFD(t, root), name, opaqueXattr)
		if err != nil || string(got) != want {
			t.Errorf("%s of %s = %q, %v; want %q", opaqueXattr, name, got, err, want)
		}
	}
	if diff := cmp.Diff([]string{".", "a", "a/dir", "opaque"}, res.Implied); diff != "" {
		t.Errorf("Implied (-want +got):\n%s", diff)
	}
}

func dirFD(t testing.TB, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

func TestOverlayAttributesAreNotTaken(t *testing.T) {
	needRoot(t)
	e := dir("d", 0o755)
	e.PAXRecords = map[string]string{
		"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.trusted.overlay.opaque": "y",
		"SCHILY.xattr.user.kept": "v",
	}
	root, _, err := unpack(t, makeTar(t, e), Options{})
	if err != nil {
		t.Fatal(err)
	}
	names, err := sys.Listxattrat(dirFD(t, root), "d")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, "trusted.overlay.") {
			t.Errorf("attribute %s was set; want it dropped", n)
		}
	}
	if v, err := sys.Getxattrat(dirFD(t, root), "d", "user.kept"); string(v) != "v" {
		t.Errorf("user.kept = %q, %v; want v", v, err)
	}
}

// describe lists a tree with everything that an archive can set.
// untimed are paths whose times no entry sets.
func describe(t testing.TB, root string, untimed []string) []string {
	t.Helper()
	var all []string
	inodes := map[uint64]string{}
	d := dirFD(t, root)
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if rel == "." {
			return nil // containerd ignores entries for the root
		}
		st, err := sys.Lstatat(d, rel)
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s mode=%o %d:%d rdev=%d", rel, st.Mode, st.Uid, st.Gid, st.Rdev)
		if !slices.Contains(untimed, rel) && !isWhiteout(st) { // containerd leaves those of whiteouts
			line += fmt.Sprintf(" mtime=%d", time.Unix(st.Mtim.Unix()).UnixNano())
		}
		if e.Type()&fs.ModeSymlink != 0 {
			l, _ := os.Readlink(p)
			line += " -> " + l
		}
		if e.Type().IsRegular() {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + digest.FromBytes(b).String()
			if st.Nlink > 1 {
				if inodes[st.Ino] == "" {
					inodes[st.Ino] = rel
				}
				line += " inode of " + inodes[st.Ino]
			}
		}
		names, err := sys.Listxattrat(d, rel)
		if err != nil {
			return err
		}
		sort.Strings(names)
		for _, n := range names {
			v, _ := sys.Getxattrat(d, rel, n)
			line += fmt.Sprintf(" %s=%q", n, v)
		}
		all = append(all, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// compare unpacks with containerd and with ours, and back into a tar stream.
func compare(t *testing.T, stream []byte) {
	t.Helper()
	frame, ours := compareTrees(t, stream)
	size := frame.Len()
	var back bytes.Buffer
	if err := Reassemble(t.Context(), &back, frame, rootFile(t, ours), replacedOf(t, ours)); err != nil {
		t.Fatalf("Reassemble: %v", err)
	}
	if !bytes.Equal(back.Bytes(), stream) {
		t.Errorf("Reassemble gave %d bytes, other than the %d unpacked", back.Len(), len(stream))
	}
	t.Logf("%d bytes of tar, frame %d bytes", len(stream), size)
}

// replacedOf is the directory of replaced contents beside a root of unpack.
func replacedOf(t testing.TB, root string) *os.File {
	return rootFile(t, filepath.Join(filepath.Dir(root), "replaced"))
}

func compareTrees(t *testing.T, stream []byte) (*bytes.Reader, string) {
	t.Helper()
	theirs := t.TempDir()
	if err := os.Chmod(theirs, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := archive.Apply(t.Context(), theirs, bytes.NewReader(stream), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	if err != nil {
		t.Fatalf("containerd: %v", err)
	}
	var frame bytes.Buffer
	ours, res, err := unpack(t, stream, Options{Frame: &frame})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(describe(t, theirs, res.Implied), describe(t, ours, res.Implied)); diff != "" {
		t.Errorf("tree (-containerd +ours):\n%s", diff)
	}
	if res.TarSize != int64(len(stream)) {
		t.Errorf("TarSize = %d; want %d", res.TarSize, len(stream))
	}
	return bytes.NewReader(frame.Bytes()), ours
}

func everything() []entry {
	with := func(e entry, f func(*entry)) entry { f(&e); return e }
	long := strings.Repeat("long-directory-name/", 12)
	return []entry{
		dir("./", 0o755), dir("etc/", 0o755), file("etc/passwd", "root:x:0:0"),
		with(dir("tmp/", 0o1777), func(e *entry) { e.Uid, e.Gid = 7, 8 }),
		with(file("usr/bin/su", "elf"), func(e *entry) { e.Mode = 0o4755; e.Uid = 1 }),
		with(file("usr/bin/ping", "elf"), func(e *entry) {
			e.Mode, e.PAXRecords = 0o755, map[string]string{"SCHILY.xattr.security.capability": capability}
		}),
		// What a hard link's entry says is the file's from then on.
		with(link(tar.TypeLink, "usr/bin/ping4", "usr/bin/ping"), func(e *entry) { e.Mode = 0o755 }),
		with(link(tar.TypeLink, "usr/bin/su2", "usr/bin/su"), func(e *entry) { e.Mode, e.Uid = 0o755, 1 }),
		with(file("all-bits", "x"), func(e *entry) { e.Mode = 0o7777 }), dir("all-bits-dir", 0o7777),
		with(file("no-bits", "x"), func(e *entry) { e.Mode = 0 }), dir("no-bits-dir", 0), file("no-bits-dir/x", ""),
		with(dir("setgid", 0o2775), func(e *entry) { e.Gid = 5 }), file("setgid/child", "x"), dir("setgid/sub", 0o700),
		link(tar.TypeSymlink, "setgid/link", "x"), with(file("setgid/own", "x"), func(e *entry) { e.Gid = 5 }),
		link(tar.TypeSymlink, "lib", "usr/lib"), dir("usr/lib", 0o755), file("lib/through", "via link"),
		link(tar.TypeSymlink, "abs", "/usr/lib"), file("abs/through2", "via absolute link"),
		link(tar.TypeSymlink, "dangling", "/does/not/exist"), link(tar.TypeLink, "etc/passwd2", "etc/passwd"),
		link(tar.TypeLink, "/etc/dangling2", "dangling"),
		{tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}, ""},
		{tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 8, Devminor: 0, Gid: 6}, ""},
		{tar.Header{Name: "run/fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, ""},
		with(file("precise", "t"), func(e *entry) { e.ModTime, e.Format = time.Unix(1600000001, 123456789), tar.FormatPAX }),
		with(file("user", "t"), func(e *entry) { e.PAXRecords = map[string]string{"SCHILY.xattr.user.k": "v\x00w"} }),
		file(long+strings.Repeat("n", 200), "long"),
		with(file("not-\xff\xfe-utf8", "t"), func(e *entry) { e.Format = tar.FormatGNU }), file("ünïcode", "t"),
		file("big", strings.Repeat("0123456789abcdef", 40000)), file("zeros", strings.Repeat("\x00", 300<<10)),
		file("ends-with-a-hole", "x"+strings.Repeat("\x00", 400<<10)), file("hole-inside", strings.Repeat("\x00", 300<<10)+"x"),
		dir("dir-then-file", 0o755), file("dir-then-file/x", ""), file("dir-then-file", ""),
		file("replaced", "first"), link(tar.TypeSymlink, "replaced", "etc"),
		file("full-then-dir", "z"), dir("full-then-dir", 0o711),
		file("empty-then-dir", ""), dir("empty-then-dir", 0o711), file("empty-then-dir/y", "y"),
		file("x/.wh.gone", ""), file("y/.wh..wh..opq", ""), file("implied/by/this", "z"),
		dir("etc/", 0o700), // again, with another mode
	}
}

func TestCompareWithContainerd(t *testing.T) {
	needRoot(t)
	stream := makeTar(t, everything()...)
	compare(t, stream)
	// A global header, as git archive writes one, and what GNU tar pads its archives with.
	var global bytes.Buffer
	w := tar.NewWriter(&global)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	compare(t, slices.Concat(global.Bytes(), stream, make([]byte, 10240)))
}

// TestCompareUmask: nothing depends on the bits that files are created with.
func TestCompareUmask(t *testing.T) {
	needRoot(t)
	stream := makeTar(t, everything()...)
	for _, mask := range []int{0, 0o077, 0o777} {
		old := syscall.Umask(mask)
		func() {
			defer syscall.Umask(old)
			compare(t, stream)
		}()
	}
}

func TestCompareBusybox(t *testing.T) {
	needRoot(t)
	bb, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("no busybox in $PATH")
	}
	elf, err := os.ReadFile(bb)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bb, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	entries := []entry{dir("bin", 0o755), {tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, string(elf)}}
	for i, n := range strings.Fields(string(out)) {
		if n == "busybox" {
			continue
		}
		kind, target := byte(tar.TypeLink), "bin/busybox"
		if i%2 == 0 {
			kind, target = tar.TypeSymlink, "/bin/busybox"
		}
		e := link(kind, "bin/"+n, target)
		e.Mode = 0o755
		entries = append(entries, e)
	}
	compare(t, makeTar(t, entries...))
}

// TestCompareDistribution: layers of a distribution, as its own tar writes them: this machine's files, or the archives
// that TEST_LAYERS names.
func TestCompareDistribution(t *testing.T) {
	needRoot(t)
	if layers := os.Getenv("TEST_LAYERS"); layers != "" {
		for _, name := range filepath.SplitList(layers) {
			stream, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, stream)
		}
		return
	}
	gnutar, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("no tar in $PATH")
	}
	var from []string
	for _, d := range []string{"usr/sbin", "usr/share/zoneinfo/Europe", "etc/alternatives", "usr/lib/udev"} {
		if _, err := os.Stat(filepath.Join("/", d)); err == nil {
			from = append(from, d)
		}
	}
	for _, format := range []string{"gnu", "pax"} {
		args := append([]string{"-C", "/", "-c", "--format=" + format, "--numeric-owner", "--one-file-system", "-f", "-"}, from...)
		stream, err := exec.Command(gnutar, args...).Output()
		if err != nil {
			t.Skipf("tar of this machine's files: %v", err) // they change under it
		}
		compare(t, stream)
	}
}

// TestReplacedContent: an entry that comes twice counts as it comes last, and the stream is the same again.
func TestReplacedContent(t *testing.T) {
	needRoot(t)
	stream := makeTar(t, file("a", "first"), file("a", "other"), file("b", "x"), link(tar.TypeSymlink, "b", "a"),
		file("d/e/f", "deep"), file("d/e/g", "too"), file("d", "now a file"), file("a", "third"), file("b", ""), file("b", "y"))
	compare(t, stream)
	frame, ours := compareTrees(t, stream)
	if err := Reassemble(t.Context(), io.Discard, frame, rootFile(t, ours), nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("Reassemble without the replaced contents = %v; want ErrInvalid", err)
	}
}

// TestCompareGenerated: random archives of what diffs of file systems consist of.
func TestCompareGenerated(t *testing.T) {
	needRoot(t)
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		var entries []entry
		dirs, files := []string{""}, []string{}
		for i := range 150 {
			parent := dirs[r.IntN(len(dirs))]
			name := fmt.Sprintf("%sn%d", parent, i)
			h := tar.Header{Name: name, Mode: int64(r.IntN(0o10000)), Uid: r.IntN(1 << 20), Gid: r.IntN(1 << 20),
				ModTime: time.Unix(r.Int64N(1<<31), 0)}
			body := ""
			switch k := r.IntN(10); {
			case k < 3:
				h.Typeflag, h.Name = tar.TypeDir, name+"/"
				dirs = append(dirs, h.Name)
			case k < 4 && len(files) > 0:
				h.Typeflag, h.Linkname = tar.TypeLink, files[r.IntN(len(files))]
			case k < 5:
				h.Typeflag, h.Linkname = tar.TypeSymlink, strings.Repeat("../", r.IntN(4))+"x"
			case k < 6:
				h.Typeflag, h.Name = tar.TypeReg, parent+".wh.w"+fmt.Sprint(i)
			default:
				h.Typeflag = tar.TypeReg
				body = strings.Repeat(string(rune('a'+r.IntN(26))), r.IntN(20000))
				files = append(files, name)
			}
			entries = append(entries, entry{h, body})
		}
		compare(t, makeTar(t, entries...))
	}
}

// TestSparse: GNU tar's sparse files come out whole, with holes, and go back into the same stream.
func TestSparse(t *testing.T) {
	needRoot(t)
	gnutar, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("no tar in $PATH")
	}
	src := t.TempDir()
	f, err := os.Create(filepath.Join(src, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 3 << 20, 9<<20 + 5} {
		if _, err := f.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(16<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax"} {
		stream, err := exec.Command(gnutar, "--sparse", "--format="+format, "-C", src, "-cf", "-", "sparse").Output()
		if err != nil {
			t.Skipf("tar --sparse: %v", err)
		}
		if len(stream) > 1<<20 {
			t.Skipf("tar wrote %d bytes: no holes on this file system", len(stream))
		}
		var frame, back bytes.Buffer
		root, res, err := unpack(t, stream, Options{Frame: &frame})
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		want, _ := os.ReadFile(filepath.Join(src, "sparse"))
		if got, err := os.ReadFile(filepath.Join(root, "sparse")); !bytes.Equal(got, want) {
			t.Errorf("%s: content differs (%d bytes, %v)", format, len(got), err)
		}
		if res.DiskSize > 1<<20 {
			t.Errorf("%s: DiskSize = %d; want holes", format, res.DiskSize)
		}
		if err := Reassemble(t.Context(), &back, bytes.NewReader(frame.Bytes()), rootFile(t, root), nil); err != nil || !bytes.Equal(back.Bytes(), stream) {
			t.Errorf("%s: Reassemble gave %d bytes, %v; want the %d unpacked", format, back.Len(), err, len(stream))
		}
	}
}

func rootFile(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestReassembleDamaged(t *testing.T) {
	needRoot(t)
	var frame bytes.Buffer
	root, _, err := unpack(t, makeTar(t, file("a", "hello")), Options{Frame: &frame})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "a"), []byte("hello!"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Reassemble(t.Context(), io.Discard, bytes.NewReader(frame.Bytes()), rootFile(t, root), nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("Reassemble of a changed file = %v; want ErrInvalid", err)
	}
	for n := range frame.Len() {
		if err := readFrame(t.Context(), bytes.NewReader(frame.Bytes()[:n]), func(record) error { return nil }); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("readFrame of %d of %d bytes = %v; want an error", n, frame.Len(), err)
		}
	}
}

func TestUnpackCancelled(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	want := errors.New("enough")
	cancel(want)
	if _, err := Unpack(ctx, bytes.NewReader(makeTar(t, file("a", ""))), rootFile(t, t.TempDir()), Options{}); !errors.Is(err, want) {
		t.Errorf("Unpack() = %v; want %v", err, want)
	}
}

func FuzzUnpack(f *testing.F) {
	needRoot(f)
	small := slices.DeleteFunc(everything(), func(e entry) bool { return len(e.body) > 1000 })
	for i := 0; i+4 <= len(small); i += 4 { // the fuzzer is slow on large inputs
		f.Add(makeTar(f, small[i:i+4]...))
	}
	f.Add(makeTar(f, link(tar.TypeSymlink, "l", "../.."), file("l/x", "y"), link(tar.TypeLink, "h", "l/x")))
	f.Add(makeTar(f, file("a/.wh.b", ""), file("a/b/c", ""), file("a/.wh..wh..opq", "")))
	f.Fuzz(func(t *testing.T, stream []byte) {
		var frame, back bytes.Buffer
		root, res, err := unpack(t, stream, Options{MaxSize: 1 << 20, MaxEntries: 200, Frame: &frame})
		if err != nil {
			return
		}
		if res.TarSize != int64(len(stream)) {
			t.Errorf("TarSize = %d; want %d", res.TarSize, len(stream))
		}
		// Where a file was replaced through a link to its directory it may differ or say so, but must not fall over.
		_ = Reassemble(t.Context(), &back, bytes.NewReader(frame.Bytes()), rootFile(t, root), replacedOf(t, root))
		// With its whiteouts kept apart it is as good, and they can be put in their places, twice.
		root, res, err = unpack(t, stream, Options{MaxSize: 1 << 20, MaxEntries: 200, KeepMarks: true})
		if err != nil {
			t.Errorf("Unpack with KeepMarks = %v", err)
		} else if res.Marks != nil {
			for range 2 {
				if err := res.Marks.Apply(rootFile(t, root)); err != nil {
					t.Errorf("Apply(%+v) = %v", res.Marks, err)
				}
			}
		}
	})
}

func FuzzReassemble(f *testing.F) {
	needRoot(f)
	var frame bytes.Buffer
	root, _, err := unpack(f, makeTar(f, file("a", "hello")), Options{Frame: &frame})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = Reassemble(t.Context(), io.Discard, bytes.NewReader(b), rootFile(t, root), nil)
	})
}

// BenchmarkUnpack: 2000 files of 12 KiB, with containerd's unpacker beside ours.
func BenchmarkUnpack(b *testing.B) {
	needRoot(b)
	var entries []entry
	for i := range 2000 {
		if i%50 == 0 {
			entries = append(entries, dir(fmt.Sprintf("d%d", i/50), 0o755))
		}
		entries = append(entries, file(fmt.Sprintf("d%d/f%d", i/50, i), strings.Repeat("content ", 1500)))
	}
	stream := makeTar(b, entries...)
	for name, f := range map[string]func(root string) error{
		"ours": func(root string) error {
			var frame bytes.Buffer
			_, err := Unpack(b.Context(), bytes.NewReader(stream), rootFile(b, root), Options{Frame: &frame})
			return err
		},
		"containerd": func(root string) error {
			_, err := archive.Apply(b.Context(), root, bytes.NewReader(stream), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(stream)))
			for b.Loop() {
				root := b.TempDir()
				if err := f(root); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := os.RemoveAll(root); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
