package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Overlay describes an overlay mount. All directories are given as open directories (O_PATH is enough), so no path
// is resolved again and the number of layers is bounded by the kernel (500) and not by the length of paths.
type Overlay struct {
	Lower []*os.File // top first; two or more where Upper is nil
	Upper *os.File   // nil: read-only
	Work  *os.File   // on the file system of Upper
	// Volatile drops what syncs the upper directory (Linux 5.10; left out where the kernel lacks it).
	Volatile bool
	// Context is the SELinux context of everything in the mount; empty for none.
	Context string
	// Readonly sets the mount attribute.
	Readonly bool
	// Detached says that Lower are mounts of CloneTree, and not directories of this mount namespace.
	Detached bool
}

// MountOverlay makes a detached overlay mount: it is in no mount namespace and lives as long as the returned file, or
// as the mount it is moved to.
func MountOverlay(o Overlay) (*os.File, error) {
	f, err := mountOverlayFs(o)
	// lowerdir+ came with Linux 6.8. Before it, only mount(2) takes a list of lower directories of any use. Layers that
	// are in no mount namespace came with Linux 6.15.
	if errors.Is(err, errNoLowerdirAppend) || o.Detached && errors.Is(err, unix.EINVAL) {
		return mountOverlayLegacy(o)
	}
	return f, err
}

var errNoLowerdirAppend = errors.New("overlay has no lowerdir+")

// lacksLowerdirAppend tells what a kernel without lowerdir+ answers to the first one: EINVAL if it does not know the
// key (Linux 6.5 to 6.7), EOPNOTSUPP before, when overlay had no parameters but the string of mount(2).
func lacksLowerdirAppend(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

func mountOverlayFs(o Overlay) (*os.File, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.ENOSYS) {
			return nil, errNoLowerdirAppend
		}
		return nil, fmt.Errorf("fsopen overlay: %w", err)
	}
	fs := os.NewFile(uintptr(fd), "fsopen:overlay")
	defer fs.Close()
	if err := unix.FsconfigSetString(fd, "source", "overlay"); err != nil {
		return nil, fsError(fd, "overlay", "source", err)
	}
	for i, l := range o.Lower {
		if err := setLayer(fd, "lowerdir+", l); err != nil {
			if i == 0 && lacksLowerdirAppend(err) {
				return nil, errNoLowerdirAppend
			}
			return nil, fsError(fd, "overlay", fmt.Sprintf("lowerdir+ (layer %d of %d, %s)", i+1, len(o.Lower), l.Name()), err)
		}
	}
	if o.Upper != nil {
		if err := setLayer(fd, "upperdir", o.Upper); err != nil {
			return nil, fsError(fd, "overlay", "upperdir "+o.Upper.Name(), err)
		}
		if err := setLayer(fd, "workdir", o.Work); err != nil {
			return nil, fsError(fd, "overlay", "workdir "+o.Work.Name(), err)
		}
	}
	for _, kv := range o.options() {
		if err := unix.FsconfigSetString(fd, kv[0], kv[1]); err != nil {
			return nil, fsError(fd, "overlay", kv[0]+"="+kv[1], err)
		}
	}
	if o.Upper != nil {
		// No UUID of its own, which would be an xattr written to every upper directory (Linux 6.6).
		if err := unix.FsconfigSetString(fd, "uuid", "null"); err != nil && !errors.Is(err, unix.EINVAL) {
			return nil, fsError(fd, "overlay", "uuid=null", err)
		}
	}
	if o.Volatile && o.Upper != nil {
		if err := unix.FsconfigSetFlag(fd, "volatile"); err != nil && !errors.Is(err, unix.EINVAL) {
			return nil, fsError(fd, "overlay", "volatile", err)
		}
	}
	if err := noEINTR(func() error { return unix.FsconfigCreate(fd) }); err != nil {
		return nil, fsError(fd, "overlay", "create", err)
	}
	attr := 0
	if o.Readonly {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, fsError(fd, "overlay", "fsmount", err)
	}
	return os.NewFile(uintptr(m), "overlay"), nil
}

// options are the key=value pairs. No index and no metacopy: with them the meaning of an upper directory depends on
// the exact lower directories, and a lower file could hold redirections that its image chose.
func (o Overlay) options() [][2]string {
	kv := [][2]string{{"index", "off"}, {"metacopy", "off"}}
	if o.Context != "" {
		kv = append(kv, [2]string{"context", o.Context})
	}
	return kv
}

// setLayer gives a directory to the context: as an fd (Linux 6.13), else as a path through /proc, which is short
// whatever the directory is called (strings end at 256 bytes).
func setLayer(fs int, key string, dir *os.File) error {
	err := unix.FsconfigSetFd(fs, key, int(dir.Fd()))
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	return unix.FsconfigSetString(fs, key, "/proc/self/fd/"+strconv.Itoa(int(dir.Fd())))
}

// fsError adds what the kernel wrote into the context's log: it says which directory it does not like, and why.
func fsError(fd int, kind, what string, err error) error {
	var lines []string
	buf := make([]byte, 1024)
	for range 16 {
		n, rerr := unix.Read(fd, buf)
		if rerr != nil || n <= 0 {
			break
		}
		lines = append(lines, strings.TrimSpace(string(buf[:n])))
	}
	if len(lines) > 0 {
		return fmt.Errorf("mount %s: %s: %w (%s)", kind, what, err, strings.Join(lines, "; "))
	}
	return fmt.Errorf("mount %s: %s: %w", kind, what, err)
}

// mountOverlayLegacy mounts with mount(2) in a mount namespace that lives only as long as one thread, and takes the
// mount out of it with open_tree. The options (one page at most) name directories by fd number, relative to
// /proc/self/fd, so that 500 layers fit.
func mountOverlayLegacy(o Overlay) (*os.File, error) {
	return inOwnMounts(func() (*os.File, error) { return mountOverlayHere(o) })
}

// inOwnMounts runs f in a private copy of the mount namespace, which ends with it.
func inOwnMounts(f func() (*os.File, error)) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread, and with it the namespace, ends with the goroutine.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err != nil {
			done <- result{err: fmt.Errorf("unshare mount namespace: %w", err)}
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			done <- result{err: fmt.Errorf("make mounts private: %w", err)}
			return
		}
		out, err := f()
		done <- result{out, err}
	}()
	r := <-done
	return r.f, r.err
}

func mountOverlayHere(o Overlay) (*os.File, error) {
	if err := unix.Chdir("/proc/self/fd"); err != nil {
		return nil, fmt.Errorf("mount overlay: chdir /proc/self/fd: %w", err)
	}
	o, opened, err := o.reopen()
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	opts := o.legacyOptions()
	var flags uintptr
	if o.Readonly {
		flags = unix.MS_RDONLY
	}
	err = unix.Mount("overlay", scratch, "overlay", flags, opts)
	if errors.Is(err, unix.EINVAL) && o.Volatile && o.Upper != nil {
		opts = strings.TrimSuffix(opts, ",volatile")
		err = unix.Mount("overlay", scratch, "overlay", flags, opts)
	}
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %d layers (%.200s): %w", len(o.Lower), opts, err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, scratch, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount overlay: open_tree: %w", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// scratch is a directory to mount on in a mount namespace of our own: one that every machine has.
const scratch = "/dev"

// reopen gives the overlay with its directories opened in this mount namespace: mount(2) takes no others.
func (o Overlay) reopen() (_ Overlay, opened []*os.File, err error) {
	again := func(path string) *os.File {
		var f *os.File
		if err == nil {
			if f, err = os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
				opened = append(opened, f)
			}
		}
		return f
	}
	if o.Upper != nil {
		o.Upper, o.Work = again(o.Upper.Name()), again(o.Work.Name())
	}
	lower := o.Lower
	o.Lower = nil
	if !o.Detached {
		for _, l := range lower {
			o.Lower = append(o.Lower, again(l.Name()))
		}
		return o, opened, err
	}
	if err == nil {
		err = unix.Mount("tmpfs", scratch, "tmpfs", 0, "mode=0700")
	}
	for i, l := range lower {
		path := scratch + "/" + strconv.Itoa(i)
		if err == nil {
			err = unix.Mkdir(path, 0o700)
		}
		if err == nil {
			err = unix.MoveMount(int(l.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		o.Lower = append(o.Lower, again(path))
	}
	return o, opened, err
}

// legacyOptions name directories by fd number: the working directory is /proc/self/fd.
func (o Overlay) legacyOptions() string {
	nums := make([]string, len(o.Lower))
	for i, l := range o.Lower {
		nums[i] = strconv.Itoa(int(l.Fd()))
	}
	opts := []string{"lowerdir=" + strings.Join(nums, ":")}
	if o.Upper != nil {
		opts = append(opts, "upperdir="+strconv.Itoa(int(o.Upper.Fd())), "workdir="+strconv.Itoa(int(o.Work.Fd())))
	}
	for _, kv := range o.options() {
		v := kv[1]
		if kv[0] == "context" {
			v = `"` + v + `"` // categories of a context are separated by commas
		}
		opts = append(opts, kv[0]+"="+v)
	}
	if o.Volatile && o.Upper != nil {
		opts = append(opts, "volatile")
	}
	return strings.Join(opts, ",")
}

// CloneTree makes a detached copy of the mount below dir (bind mount without a place), with the given attributes:
// read-only, and idmapped by userns where that is not nil (Linux 5.12).
func CloneTree(dir *os.File, readonly bool, userns *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("open_tree %s: %w", dir.Name(), err)
	}
	f := os.NewFile(uintptr(fd), dir.Name())
	attr := unix.MountAttr{}
	if readonly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if userns != nil {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(userns.Fd())
	}
	if attr.Attr_set == 0 {
		return f, nil
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		f.Close()
		return nil, fmt.Errorf("mount_setattr %s (readonly %v, idmap %v): %w", dir.Name(), readonly, userns != nil, err)
	}
	runtime.KeepAlive(userns)
	return f, nil
}

// CloneWritable makes a detached copy of the mount below dir that is writable and takes nothing else over of what the
// mount around it forbids, as an overlay would not either: set-id programs, devices, programs at all.
func CloneWritable(dir *os.File, userns *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("open_tree %s: %w", dir.Name(), err)
	}
	f := os.NewFile(uintptr(fd), dir.Name())
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if userns != nil {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(userns.Fd())
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		f.Close()
		return nil, fmt.Errorf("mount_setattr %s (idmap %v): %w", dir.Name(), userns != nil, err)
	}
	runtime.KeepAlive(userns)
	return f, nil
}

// CloneSubtree is CloneTree of a directory in the detached mount root, which may be used up by it: the kernel clones a
// part of a detached mount since Linux 6.15, and before that only where it is attached.
func CloneSubtree(root, dir *os.File, readonly bool) (*os.File, error) {
	f, err := CloneTree(dir, readonly, nil)
	if !errors.Is(err, unix.EINVAL) {
		return f, err
	}
	return cloneAttached(root, dir, readonly)
}

func cloneAttached(root, dir *os.File, readonly bool) (*os.File, error) {
	return inOwnMounts(func() (*os.File, error) {
		if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, scratch, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return nil, fmt.Errorf("move_mount %s: %w", root.Name(), err)
		}
		return CloneTree(dir, readonly, nil)
	})
}
