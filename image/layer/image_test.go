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
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// mountImage mounts an image and returns its root.
func mountImage(t testing.TB, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := sys.MountErofs(f)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", m.Fd())
}

// imageOf unpacks into an image, plain or compressed, and returns its name.
func imageOf(t testing.TB, archive []byte, o ImageOptions) (string, Result, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	res, err := UnpackImage(t.Context(), bytes.NewReader(archive), f, o)
	if err == nil {
		if fi, serr := f.Stat(); serr != nil || fi.Size() != res.DiskSize {
			t.Errorf("the image has %d bytes (%v); DiskSize = %d", fi.Size(), serr, res.DiskSize)
		}
	}
	return name, res, err
}

// kinds of errors that a caller can tell apart.
var errorKinds = []error{
	ErrInvalid, ErrTooLarge, io.ErrUnexpectedEOF, tar.ErrHeader, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.ENOTDIR, syscall.EISDIR,
	syscall.ENOENT, syscall.EPERM, syscall.EINVAL, syscall.ERANGE, syscall.E2BIG, syscall.EEXIST, context.Canceled,
}

func sameError(a, b error) bool {
	return (a == nil) == (b == nil) && !slices.ContainsFunc(errorKinds, func(k error) bool { return errors.Is(a, k) != errors.Is(b, k) })
}

// both is what Unpack made of an archive.
type both struct {
	began    time.Time
	archive  []byte
	opts     Options
	root     string
	replaced *os.File // nil without a frame
	frame    []byte
	res      Result
	err      error
}

// compareImage makes an image of the archive, compressed or, of every other one, not, and compares it with the directory.
func (d *both) compareImage(t testing.TB) {
	t.Helper()
	if d.opts.KeepMarks {
		return // not of images
	}
	var b byte
	for _, c := range d.archive {
		b ^= c
	}
	plain := b&1 == 1
	o := ImageOptions{MaxSize: d.opts.MaxSize, MaxEntries: d.opts.MaxEntries, Plain: plain}
	var frame bytes.Buffer
	if d.opts.Frame != nil {
		o.Frame = &frame
	}
	name, res, err := imageOf(t, d.archive, o)
	if errors.Is(err, ErrNoImage) {
		if !bytes.Contains(d.archive, []byte("SCHILY.xattr.")) {
			t.Errorf("UnpackImage = %v; want an image", err)
		}
		return
	}
	if !sameError(err, d.err) {
		t.Errorf("UnpackImage = %v; Unpack says %v", err, d.err)
	}
	if err != nil || d.err != nil {
		return
	}
	got, want := res, d.res
	got.DiskSize, got.ImageSum, got.Inodes, want.DiskSize, want.Inodes = 0, 0, 0, 0, 0
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Result (-Unpack +UnpackImage):\n%s", diff)
	}
	mount := mountImage(t, name)
	want2, got2 := listTree(t, d.root), listTree(t, mount+"/fs")
	forgetTimes(want2, got2, d.began)
	if diff := cmp.Diff(want2, got2); diff != "" {
		t.Errorf("tree (-Unpack +UnpackImage):\n%s", diff)
	}
	if n := countInodes(t, mount); n != res.Inodes {
		t.Errorf("Inodes = %d; the image has %d", res.Inodes, n)
	}
	if d.opts.Frame == nil {
		return
	}
	d.compareFrames(t, mount, frame.Bytes())
}

// compareFrames: the contents that were replaced are there as well, and the stream can be put together again as far as it
// can be from the directory.
func (d *both) compareFrames(t testing.TB, mount string, frame []byte) {
	t.Helper()
	aside := replacedIn(t, d.replaced.Name())
	var replaced *os.File
	if _, err := os.Stat(mount + "/replaced"); err == nil {
		replaced = rootFile(t, mount+"/replaced")
		if diff := cmp.Diff(aside, replacedIn(t, mount+"/replaced")); diff != "" {
			t.Errorf("contents put aside (-Unpack +UnpackImage):\n%s", diff)
		}
	} else if len(aside) > 0 {
		t.Errorf("%v; want the %d contents put aside", err, len(aside))
	}
	// Within a directory that is removed, contents are put aside in the order of the file system.
	if len(aside) < 2 && !bytes.Equal(frame, d.frame) {
		t.Errorf("frame file of %d bytes differs from that of %d bytes", len(frame), len(d.frame))
	}
	type back struct {
		Same, Error bool
	}
	through := func(frame []byte, root, replaced *os.File, f func(context.Context, io.Writer, io.ReadSeeker, *os.File, *os.File) error) back {
		var b bytes.Buffer
		err := f(t.Context(), &b, bytes.NewReader(frame), root, replaced)
		return back{bytes.Equal(b.Bytes(), d.archive), err != nil}
	}
	disk, image := rootFile(t, d.root), rootFile(t, mount+"/fs")
	if want, got := through(d.frame, disk, d.replaced, Reassemble), through(frame, image, replaced, Reassemble); got != want {
		t.Errorf("Reassemble of the image: %+v; of the directory: %+v", got, want)
	}
	if want, got := through(d.frame, disk, d.replaced, Verify), through(frame, image, replaced, Verify); got != want {
		t.Errorf("Verify of the image: %+v; of the directory: %+v", got, want)
	}
}

func replacedIn(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	for name, n := range listTree(t, dir) {
		if name != "." {
			all = append(all, fmt.Sprintf("%o %d:%d %d %s %v", n.Mode, n.UID, n.GID, n.MTime, n.Content, n.Xattrs))
		}
	}
	sort.Strings(all)
	return all
}

// node is a file of a tree, with everything that an archive can set.
type node struct {
	Mode, UID, GID uint32
	Rdev           uint64
	Links          uint64 // of a directory: 0
	First          string // of its names
	MTime          int64
	Content        string
	Xattrs         map[string]string
}

func listTree(t testing.TB, root string) map[string]*node {
	t.Helper()
	all := map[string]*node{}
	firsts := map[uint64]string{}
	d := dirFD(t, root)
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		st, err := sys.Lstatat(d, rel)
		if err != nil {
			return err
		}
		n := &node{Mode: st.Mode, UID: st.Uid, GID: st.Gid, MTime: time.Unix(st.Mtim.Unix()).UnixNano(), Xattrs: map[string]string{}}
		all[rel] = n
		if kind := st.Mode & sys.FileTypeMask; kind == sys.FileChar || kind == sys.FileBlock {
			n.Rdev = st.Rdev
		}
		if n.Mode&sys.FileTypeMask != sys.FileDir {
			if firsts[st.Ino] == "" {
				firsts[st.Ino] = rel
			}
			n.Links, n.First = st.Nlink, firsts[st.Ino]
		}
		switch n.Mode & sys.FileTypeMask {
		case sys.FileSymlink:
			n.Content, err = os.Readlink(p)
		case sys.FileReg:
			var b []byte
			b, err = os.ReadFile(p)
			n.Content = digest.FromBytes(b).String()
		}
		if err != nil {
			return err
		}
		names, err := sys.Listxattrat(d, rel)
		for _, k := range names {
			v, err := sys.Getxattrat(d, rel, k)
			n.Xattrs[k] = fmt.Sprintf("%q %v", v, err) // an empty security.capability cannot be read
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// forgetTimes: directories whose times no entry sets have those of their making, and the epoch in images. File systems have
// various ends of time.
func forgetTimes(disk, image map[string]*node, began time.Time) {
	for name, d := range disk {
		i := image[name]
		if i == nil {
			continue
		}
		now := d.MTime >= began.Add(-time.Second).UnixNano() && d.MTime <= time.Now().UnixNano()
		if d.Mode&sys.FileTypeMask == sys.FileDir && now && i.MTime == 0 {
			d.MTime = 0
		}
		if d.MTime >= 1<<31*int64(time.Second)-1 && i.MTime != d.MTime {
			d.MTime = i.MTime
		}
	}
}

func countInodes(t testing.TB, root string) int64 {
	t.Helper()
	seen := map[uint64]bool{}
	d := dirFD(t, root)
	err := filepath.WalkDir(root+"/", func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		st, err := sys.Lstatat(d, rel)
		seen[st.Ino] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return int64(len(seen))
}

// someArchive is an archive of few names that get in one another's way, as the bytes choose: four for an entry.
func someArchive(choice []byte) []entry {
	names := []string{
		"a", "b", "c", "d", "l", "m", "a/b", "a/c", "a/b/c", "b/a", "b/c/d", "d/a", "d/b/c", "l/a", "l/b/c", "m/a", "m/l/b", "a/l", "a/l/x",
		"./a", "a/../b", "/c/", "l/m/x", "a/b/c/d/e/f", "d/", "a/.wh.b", ".wh.a", "a/.wh..wh..opq", ".wh..wh..opq", "l/.wh.a",
		"b/.wh.c", ".wh.l", "a/.wh..wh.x", ".wh.b", "l/.wh..wh..opq", "m/.wh.x", "a/b/.wh..wh..opq", "b", "c", "d", "a", "b/a", "a/b",
	}
	if len(choice) > 0 && choice[0]%16 == 0 { // rarely, since everything after it is lost
		names = append(names, ".", "../x", "a/..", ".wh.", "a/.wh...", strings.Repeat("n", 256), strings.Repeat("n", 255), strings.Repeat("long/", 900),
			".wh."+strings.Repeat("n", 255))
	}
	targets := []string{
		"a", "b", "c", "d", "l", "m", "../b", "/a", "/a/b", "..", "../..", "a/l", "./a/./b", "/", "a//b/", "l/../b", "m/a", ".",
		"a/b", "b/a", "a", "b", "/d", "c",
	}
	types := []byte{
		tar.TypeReg, tar.TypeReg, tar.TypeReg, tar.TypeDir, tar.TypeDir, tar.TypeDir, tar.TypeSymlink, tar.TypeSymlink, tar.TypeLink, tar.TypeLink,
		tar.TypeChar, tar.TypeBlock, tar.TypeFifo,
	}
	xattrs := []map[string]string{
		nil, nil, nil, {"user.k": "v"}, {"user.k": "w", "user.l": ""}, {"security.capability": capability}, {"trusted.x": "y"},
		{"trusted.overlay.opaque": "y"}, {"system.unknown": "v", "nothing": "w"},
	}
	if len(choice) > 0 && choice[0]%16 == 1 {
		xattrs = append(xattrs, map[string]string{"security.capability": "short"}, map[string]string{"user.": "x"}, map[string]string{"user." + strings.Repeat("n", 255): "x"},
			map[string]string{"security.": "x"}, map[string]string{"user.large": strings.Repeat("x", 64<<10+1)}, map[string]string{"security.capability": ""})
	}
	all := []entry{dir("a", 0o755), dir("b", 0o755), file("b/a", "first"), link(tar.TypeSymlink, "l", "b"), file("c", "")}
	for i, c := range slices.Collect(slices.Chunk(choice, 4)) {
		if len(c) < 4 || i == 32 {
			break
		}
		h := tar.Header{Name: names[int(c[0])%len(names)], Typeflag: types[int(c[1])%len(types)], ModTime: time.Unix(int64(c[3])*1e6, 0)}
		if h.Typeflag != tar.TypeDir {
			h.Name = strings.TrimRight(h.Name, "/")
		}
		h.Mode = []int64{0o755, 0o644, 0, 0o2775, 0o4711, 0o1700, 0o7555}[int(c[3])%7]
		h.Uid, h.Gid = int(c[3]&3), int(c[3]>>2&1)
		switch h.Typeflag {
		case tar.TypeSymlink, tar.TypeLink:
			h.Linkname = targets[int(c[2])%len(targets)]
		case tar.TypeChar, tar.TypeBlock:
			h.Devmajor, h.Devminor = int64(c[2]&1), int64(c[2]&2)
		}
		for k, v := range xattrs[int(c[2]>>3)%len(xattrs)] {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[paxXattr+k] = v
		}
		body := ""
		if h.Typeflag == tar.TypeReg && !strings.Contains(h.Name, "/.wh.") {
			body = strings.Repeat(string(rune('a'+i%26)), []int{0, 1, 5, 4096, 9000}[int(c[2])%5])
		}
		all = append(all, entry{h, body})
	}
	return all
}

const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// TestImageGenerated: archives in which entries replace, hide and link one another in every way. Most have an entry that is
// refused and tells nothing of what would have come after it, so of the others those are left out.
func TestImageGenerated(t *testing.T) {
	needRoot(t)
	const n = 200
	for seed := range uint64(n) {
		r := rand.New(rand.NewPCG(seed, 2))
		choice := make([]byte, 4*(1+r.IntN(32)))
		for i := range choice {
			choice[i] = byte(r.Uint32())
		}
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			entries := someArchive(choice)
			whole := seed%4 == 0
			if !whole {
				entries = accepted(t, entries)
			}
			var frame bytes.Buffer
			o := Options{MaxEntries: 1000}
			if seed%3 != 0 {
				o.Frame = &frame
			}
			if _, _, err := unpack(t, makeTar(t, entries...), o); err != nil && !whole {
				t.Errorf("Unpack() = %v, but an image can be made of it", err)
			}
		})
		if !ok {
			t.Logf("choice %x", choice)
		}
	}
}

// accepted is the entries but those that an image cannot be made with after what is before them.
func accepted(t *testing.T, entries []entry) []entry {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var some []entry
	for _, e := range entries {
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		more := append(slices.Clip(some), e)
		if _, err := UnpackImage(t.Context(), bytes.NewReader(makeTar(t, more...)), f, ImageOptions{Plain: true}); err == nil {
			some = more
		}
	}
	return some
}

func FuzzUnpackImage(f *testing.F) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 3))
		choice := make([]byte, 4*8)
		for i := range choice {
			choice[i] = byte(r.Uint32())
		}
		f.Add(choice)
	}
	f.Fuzz(func(t *testing.T, choice []byte) {
		archive := makeTar(t, someArchive(choice)...)
		var frame bytes.Buffer
		if os.Geteuid() == 0 {
			_, _, _ = unpack(t, archive, Options{Frame: &frame})
			return
		}
		// Without privileges, that it comes to an end and to the same one again.
		once, res, err := imageOf(t, archive, ImageOptions{Frame: &frame})
		again, res2, err2 := imageOf(t, archive, ImageOptions{Frame: io.Discard})
		if !sameError(err, err2) || !cmp.Equal(res, res2) {
			t.Fatalf("UnpackImage = %+v, %v; the second time %+v, %v", res, err, res2, err2)
		}
		if err == nil {
			sameFiles(t, once, again)
		}
	})
}

func sameFiles(t testing.TB, a, b string) {
	t.Helper()
	ca, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	cb, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ca, cb) {
		t.Errorf("two images of one archive differ")
	}
}

// TestImageUnprivileged: an image needs no rights, and is the same each time.
func TestImageUnprivileged(t *testing.T) {
	stream := makeTar(t, everything()...)
	once, _, err := imageOf(t, stream, ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := imageOf(t, stream, ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sameFiles(t, once, again)
}

func TestImageCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	want := errors.New("enough")
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stream := makeTar(t, file("a", strings.Repeat("x", 4<<20)))
	r := io.MultiReader(bytes.NewReader(stream[:1<<20]), readerFunc(func([]byte) (int, error) {
		cancel(want)
		return 0, io.EOF
	}), bytes.NewReader(stream[1<<20:]))
	if _, err := UnpackImage(ctx, r, f, ImageOptions{}); !errors.Is(err, want) {
		t.Errorf("UnpackImage() = %v; want %v", err, want)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestImageLimits: of paths, names and links on the way, at which the kernel refuses, and what it makes of odd entries.
func TestImageLimits(t *testing.T) {
	needRoot(t)
	chain := func(n int) []entry { // of n links to a directory
		all := []entry{dir("d", 0o755)}
		for i, target := 0, "d"; i < n; i++ {
			name := fmt.Sprintf("l%d", i)
			all = append(all, link(tar.TypeSymlink, name, target))
			target = "./" + name + "/"
		}
		return append(all, file(fmt.Sprintf("l%d/x", n-1), "x"))
	}
	deep := func(size int) entry { // a file in a directory with a path of that size
		name := strings.Repeat("0123456789abcde/", size/16-1)
		return file(name+strings.Repeat("y", size-len(name))+"/x", "")
	}
	with := func(e entry, xattr, value string) entry {
		e.PAXRecords = map[string]string{paxXattr + xattr: value}
		return e
	}
	by := func(e entry, uid int, mode int64) entry { e.Uid, e.Gid, e.Mode = uid, uid, mode; return e }
	device := func(name string, kind byte) entry { return entry{tar.Header{Name: name, Typeflag: kind}, ""} }
	n255, n256 := strings.Repeat("n", 255), strings.Repeat("n", 256)
	for name, tc := range map[string]struct {
		entries []entry
		refused bool
	}{
		"40 links":               {chain(40), false},
		"41 links":               {chain(41), true},
		"path of 4096":           {[]entry{deep(4096)}, true},
		"name of 255":            {[]entry{file(n255, "")}, false},
		"whiteout of 255":        {[]entry{file(".wh."+n255, "")}, false},
		"whiteout of 256":        {[]entry{file(".wh."+n256, "")}, true},
		"directory of 256":       {[]entry{file(n256+"/x", "")}, true},
		"link target of 4095":    {[]entry{link(tar.TypeSymlink, "l", strings.Repeat("/", 4094)+"d"), file("l", "")}, false},
		"link target of 4096":    {[]entry{link(tar.TypeSymlink, "l", strings.Repeat("/", 4095)+"d")}, true},
		"link to slashes":        {[]entry{link(tar.TypeSymlink, "l", strings.Repeat("/", 4095)), file("l/x", "")}, false},
		"hard link to 256":       {[]entry{link(tar.TypeLink, "l", n256)}, true},
		"through a whiteout":     {[]entry{file(".wh.a", ""), link(tar.TypeSymlink, "l", "a"), file("l/x", "")}, true},
		"hard link to whiteout":  {[]entry{file(".wh.a", ""), link(tar.TypeLink, "b", "a"), file("b/x", "")}, false},
		"hard link to the root":  {[]entry{link(tar.TypeLink, "l", "/")}, true},
		"hard link over itself":  {[]entry{file("a", "x"), link(tar.TypeLink, "b", "a"), link(tar.TypeLink, "b", "a"), link(tar.TypeLink, "a", "b")}, false},
		"link to what it covers": {[]entry{file("d/x", "x"), link(tar.TypeLink, "d", "d/x")}, true},
		"link to a fifo":         {[]entry{device("p", tar.TypeFifo), by(link(tar.TypeLink, "q", "p"), 7, 0o6755)}, false},
		"link to a link":         {[]entry{link(tar.TypeSymlink, "s", "x"), by(with(link(tar.TypeLink, "t", "s"), "trusted.x", "y"), 7, 0o700)}, false},
		"link loses capability":  {[]entry{with(file("a", "x"), xattrCapability, capability), by(link(tar.TypeLink, "b", "a"), 0, 0o755)}, false},
		"link has attributes":    {[]entry{with(file("a", "x"), "user.a", "x"), with(by(link(tar.TypeLink, "b", "a"), 5, 0o4755), "user.b", "y")}, false},
		"link to replaced":       {[]entry{file("a", "x"), link(tar.TypeLink, "b", "a"), file("a", "y"), by(link(tar.TypeLink, "c", "b"), 5, 0o600)}, false},
		"implied below setgid":   {[]entry{by(dir("s", 0), 9, 0o2775), file("s/implied/x", "")}, false},
		"user attribute of link": {[]entry{with(link(tar.TypeSymlink, "l", "x"), "user.x", "y"), with(device("p", tar.TypeFifo), "user.x", "y")}, false},
		"directory twice":        {[]entry{with(dir("d", 0o700), "user.a", "1"), file("d/x", ""), with(dir("d", 0o711), "user.b", "2")}, false},
		"directory by two names": {[]entry{dir("d", 0o755), link(tar.TypeSymlink, "l", "d"), dir("l/x", 0o700), {tar.Header{Name: "d/x", Typeflag: tar.TypeDir,
			ModTime: time.Unix(1e9, 0)}, ""}}, false},
		"its link replaced":    {[]entry{dir("d", 0o755), link(tar.TypeSymlink, "l", "d"), dir("l/x", 0o700), link(tar.TypeSymlink, "l", "l")}, true},
		"attribute name":       {[]entry{with(file("f", ""), "user."+n255[:250], "x")}, false},
		"attribute name, long": {[]entry{with(file("f", ""), "user."+n255[:251], "x")}, true},
		"attribute, no name":   {[]entry{with(file("f", ""), "trusted.", "x")}, true},
		"attribute, long":      {[]entry{with(file("f", ""), "user.x", strings.Repeat("x", 64<<10+1))}, true},
		"attribute, empty":     {[]entry{with(file("f", ""), "user.x", "")}, false},
		"attribute, unknown":   {[]entry{with(file("f", ""), "other.x", "y"), with(file("g", ""), "user", "y"), with(file("h", ""), "system.x", "y")}, false},
		"capability":           {[]entry{with(file("f", ""), xattrCapability, "\x01\x00\x00\x03"+capability[4:]+"\x00\x00\x01\x00")}, false},
		"capability of root":   {[]entry{with(file("f", ""), xattrCapability, "\x01\x00\x00\x03"+capability[4:]+"\x00\x00\x00\x00")}, false},
		"capability of nobody": {[]entry{with(file("f", ""), xattrCapability, "\x01\x00\x00\x03"+capability[4:]+"\xff\xff\xff\xff")}, true},
		"capability, empty":    {[]entry{with(file("f", ""), xattrCapability, "")}, false},
		"empty, and a link":    {[]entry{with(file("f", ""), xattrCapability, ""), link(tar.TypeLink, "l", "f")}, false},
		"capability, revision": {[]entry{with(file("f", ""), xattrCapability, "\x01\x00\x00\x01"+capability[4:])}, true},
		"capability, short":    {[]entry{with(file("f", ""), xattrCapability, capability[:19])}, true},
		"largest owner":        {[]entry{by(file("f", ""), 1<<32-2, 0o644)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var frame bytes.Buffer
			_, _, err := unpack(t, makeTar(t, tc.entries...), Options{Frame: &frame})
			if (err != nil) != tc.refused {
				t.Errorf("Unpack() = %v; refused should be %v", err, tc.refused)
			}
		})
	}
}

// TestLongPath: one byte less than TestImageLimits has refused.
func TestLongPath(t *testing.T) {
	needRoot(t)
	stream := makeTar(t, file(strings.Repeat("0123456789abcde/", 4096/16-1)+strings.Repeat("y", 15)+"/x", ""))
	if _, err := Unpack(t.Context(), bytes.NewReader(stream), rootFile(t, t.TempDir()), Options{}); err != nil {
		t.Errorf("Unpack() = %.200v; want no error", err)
	}
	if _, _, err := imageOf(t, stream, ImageOptions{}); err != nil {
		t.Errorf("UnpackImage() = %.200v; want no error", err)
	}
}

// TestNoImage: what a directory can hold and an image cannot has an error of its own.
func TestNoImage(t *testing.T) {
	defer func(n int) { maxImageNames = n }(maxImageNames)
	maxImageNames = 1000
	var many []entry
	deep := strings.Repeat("d/", 500)
	for i := range 2 { // with 501 directories that they imply, each
		many = append(many, file(fmt.Sprintf("%d/%sf", i, deep), ""))
	}
	acl := file("f", "")
	acl.PAXRecords = map[string]string{paxXattr + "system.posix_acl_access": "\x02\x00\x00\x00"}
	large := file("f", "content")
	large.PAXRecords = map[string]string{paxXattr + "user.x": strings.Repeat("x", 64<<10)}
	for name, tc := range map[string]struct {
		entries []entry
		want    error
	}{
		"one too many":        {many, ErrNoImage},
		"as many":             {many[:1], nil},
		"access control list": {[]entry{acl}, ErrNoImage},
		"large attribute":     {[]entry{large}, ErrNoImage},
	} {
		_, _, err := imageOf(t, makeTar(t, tc.entries...), ImageOptions{})
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: UnpackImage = %.200v; want %v", name, err, tc.want)
		}
	}
}

// TestImpliedNames: names of directories that entries only imply are bounded, however short the archive is.
func TestImpliedNames(t *testing.T) {
	var many []entry
	deep := strings.Repeat("directory/", 400)
	for i := range 700 {
		many = append(many, file(fmt.Sprintf("%d/%sf", i, deep), ""))
	}
	_, _, err := imageOf(t, makeTar(t, many...), ImageOptions{})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("UnpackImage = %v; want ErrTooLarge", err)
	}
}
