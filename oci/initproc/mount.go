package initproc

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// mount does one mount. The mount is made detached, where nothing can see
// it, and gets its attributes there: it is never writable or suid at its
// target for a moment. The target is a descriptor that was resolved inside the
// root, so that a link swapped in later changes nothing (CVE-2021-30465).
func (s *setup) mount(i int) error {
	m := &s.m.Mounts[i]
	if m.Remount {
		return s.remount(m)
	}
	target := -1
	var err error
	if m.TmpCopyUp {
		// What the image has there is the source, so look before it is covered.
		if target, err = s.target(m, true); err != nil {
			return err
		}
	}
	from := s.gathered(i)
	if from.left {
		if name, below := directlyBelow(m.Target, s.fresh.target); below {
			s.fresh.has(name, false, 0)
		}
		return nil
	}
	src, dir := from.fd, from.dir
	if src < 0 {
		src, dir, err = mountSource(m, target)
	}
	if err != nil {
		if target >= 0 {
			unix.Close(target)
		}
		if m.Optional {
			return nil
		}
		return err
	}
	defer func() {
		if s.fresh.fd != src {
			unix.Close(src)
		}
	}()
	if done, err := s.mountInFresh(src, dir, m); done || err != nil {
		return err
	}
	s.setFresh("", -1)
	if target < 0 {
		if target, err = s.target(m, dir); err != nil {
			return err
		}
	}
	defer unix.Close(target)
	if err := s.attach(src, target, m); err != nil {
		return misfit(target, dir, err)
	}
	if m.ReadonlyAtEnd {
		fd, err := unix.FcntlInt(uintptr(src), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return wrap("dup", "", err)
		}
		s.readonlyAtEnd = append(s.readonlyAtEnd, fd)
	}
	if m.FSType == "tmpfs" && !m.TmpCopyUp && m.Propagation == 0 {
		s.setFresh(m.Target, src)
		s.fresh.dirs = from.dirs
	}
	return nil
}

// freshDir is a tmpfs that was the last thing to be mounted: it is empty but for what this process has made in it, and
// nobody else can reach it. So what is mounted directly below needs no search for the target, nor a second look.
type freshDir struct {
	target string
	fd     int      // of the mount, or -1
	dirs   []string // in it that are there already, see standby
}

func (s *setup) setFresh(target string, fd int) {
	if s.fresh.fd >= 0 {
		unix.Close(s.fresh.fd)
	}
	s.fresh = freshDir{target: target, fd: fd}
}

// mountInFresh does the mount if its target is a new entry of the tmpfs that was mounted before it.
func (s *setup) mountInFresh(src int, dir bool, m *initmsg.Mount) (done bool, err error) {
	name, below := directlyBelow(m.Target, s.fresh.target)
	if s.fresh.fd < 0 || !below || !quick(m) {
		return false, nil
	}
	mode := m.CreateMode
	if mode == 0 {
		mode = 0o755
	}
	if !s.fresh.has(name, dir, mode) && makeEntry(s.fresh.fd, name, dir, mode) != nil {
		return false, nil // it is there already, or the search gives a better error
	}
	// The tmpfs is not shared, so what is attached stays what it is.
	if err := setPropagation(src, m.Propagation&^detachedPropagation(m)); err != nil {
		return true, err
	}
	return true, wrap("attach", "", unix.MoveMount(src, "", s.fresh.fd, name, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// directlyBelow is the name of path in dir.
func directlyBelow(path, dir string) (name string, ok bool) {
	path, ok = strings.CutPrefix(path, dir)
	if !ok || path == "" || path[0] != '/' {
		return "", false
	}
	name = path[1:]
	return name, name != "" && name != "." && name != ".." && strings.IndexByte(name, '/') < 0
}

// quick says that a mount is attached and that is all.
func quick(m *initmsg.Mount) bool {
	return m.Propagation&unix.MS_SHARED == 0 && !m.TmpCopyUp && !m.ReadonlyAtEnd && !m.IVersion && !m.NoFollow && !m.Remount
}

// finishMounts makes read-only what first had to take the targets of later mounts: the mounts themselves, by
// the descriptors that they were made with, whatever was mounted over them since.
func (s *setup) finishMounts() error {
	for _, fd := range s.readonlyAtEnd {
		var err error
		if s.m.Root.Detached {
			// mount_setattr(2) wants a mount of this namespace, or the top of a tree; the file system is the mount's alone.
			err = reconfigure(fd, []string{"ro"})
		} else {
			err = setAttr(fd, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		}
		if err != nil {
			return wrap("make read-only", "", err)
		}
		unix.Close(fd)
	}
	return nil
}

// attach puts a finished mount on target and proves that it is what the
// target's path now leads to.
func (s *setup) attach(src, target int, m *initmsg.Mount) error {
	detached := s.m.Root.Detached
	if detached { // no mount of the tree is shared, and in the tree it cannot be changed
		if err := setPropagation(src, m.Propagation); err != nil {
			return err
		}
	}
	if err := move(src, target); err != nil {
		if detached && errnoOf(err) == unix.EINVAL {
			err = &kernelError{"6.15", err} // detached mounts on detached mounts
		}
		return err
	}
	if m.File != initmsg.NoFile && m.Propagation&unix.MS_SHARED != 0 && !detached {
		anew, err := attachAnew(src, target, m.Recursive)
		if err != nil {
			return err
		}
		defer unix.Close(anew)
		src = anew
	}
	if !detached {
		// After the attaching, which makes a mount below a shared one shared.
		if err := setPropagation(src, m.Propagation); err != nil {
			return err
		}
	}
	if m.IVersion {
		if err := s.countVersions(src, m); err != nil {
			return err
		}
	}
	return s.verify(src, m)
}

// attachAnew replaces a mount that was handed over, on target, by a copy of it: mountinfo is sorted by the age of mounts,
// and it would come before those that were mounted before it (runtime-spec, "Mounts": in the listed order).
func attachAnew(old, target int, recursive bool) (int, error) {
	back, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, wrap("open", ".", err)
	}
	defer unix.Close(back)
	if unix.Fchdir(old) != nil { // a file, which cannot be unmounted without a path
		return unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
	}
	defer unix.Fchdir(back)
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	anew, err := unix.OpenTree(old, "", flags)
	if err != nil {
		return -1, wrap("clone", "", err)
	}
	// Or the unmount of what is below it would be propagated to the host.
	err = setAttr(old, unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
	if err == nil {
		err = unix.Unmount(".", unix.MNT_DETACH)
	}
	if err == nil {
		err = move(anew, target)
	}
	if err != nil {
		unix.Close(anew)
		return -1, wrap("attach anew", "", err)
	}
	return anew, nil
}

// setPropagation sets an MS_SHARED, MS_SLAVE, …, with MS_REC or not; 0 leaves it.
func setPropagation(mount int, p uint64) error {
	if p == 0 {
		return nil
	}
	flags := uint(0)
	if p&unix.MS_REC != 0 {
		flags = unix.AT_RECURSIVE
	}
	return wrap("set propagation", "", setAttr(mount, flags, &unix.MountAttr{Propagation: p &^ unix.MS_REC}))
}

// remount changes what is mounted at a target: what is asked for changes, as with mount(8), and the rest stays.
func (s *setup) remount(m *initmsg.Mount) error {
	fd, err := openIn(s.root, m.Target, unix.O_PATH, resolveFor(m))
	if err != nil {
		return wrap("open the target", "", err)
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, 0, &st); err != nil {
		return wrap("statx", "", err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return text("remount: nothing is mounted there")
	}
	if err := setMountAttrs(fd, m); err != nil {
		return err
	}
	if err := setPropagation(fd, m.Propagation); err != nil {
		return err
	}
	if len(m.Options) > 0 {
		if err := reconfigure(fd, m.Options); err != nil {
			return err
		}
	}
	if m.IVersion {
		return s.countVersions(fd, m)
	}
	return nil
}

// reconfigure changes the settings of the file system at a mount's root.
func reconfigure(mount int, options []string) error {
	fs, err := unix.Fspick(mount, "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if err != nil {
		return wrap("fspick", "", err)
	}
	defer unix.Close(fs)
	if err := configure(fs, options); err != nil {
		return err
	}
	if err := unix.FsconfigReconfigure(fs); err != nil {
		return wrap("fsconfig reconfigure", "", because(fs, err))
	}
	return nil
}

// countVersions is a remount by mount(2), which takes a path: the descriptor's in the private procfs. It sets the flags
// of the file system and of the mount as a whole, so those that are set are given again.
func (s *setup) countVersions(mount int, m *initmsg.Mount) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(mount, &st); err != nil {
		return wrap("statfs", "", err)
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_I_VERSION)
	for _, f := range [...]struct{ st, ms uintptr }{
		{unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV}, {unix.ST_NOEXEC, unix.MS_NOEXEC},
		{unix.ST_SYNCHRONOUS, unix.MS_SYNCHRONOUS}, {unix.ST_MANDLOCK, unix.MS_MANDLOCK}, {unix.ST_NOATIME, unix.MS_NOATIME},
		{unix.ST_NODIRATIME, unix.MS_NODIRATIME}, {unix.ST_RELATIME, unix.MS_RELATIME}, {stNoSymFollow, unix.MS_NOSYMFOLLOW},
	} {
		if uintptr(st.Flags)&f.st != 0 {
			flags |= f.ms
		}
	}
	if flags&(unix.MS_NOATIME|unix.MS_RELATIME) == 0 {
		flags |= unix.MS_STRICTATIME
	}
	for _, o := range m.Options {
		switch o {
		case "ro":
			flags |= unix.MS_RDONLY
		case "lazytime":
			flags |= unix.MS_LAZYTIME
		}
	}
	back, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("open", ".", err)
	}
	defer unix.Close(back)
	if err := unix.Fchdir(s.proc); err != nil {
		return wrap("chdir", "procfs", err)
	}
	err = unix.Mount("", "thread-self/fd/"+itoa(mount), "", flags, "")
	if cerr := unix.Fchdir(back); cerr != nil {
		return wrap("chdir", "", cerr)
	}
	if err == nil && st.Flags&unix.ST_RDONLY != 0 {
		// Not by mount(2): it would make the file system read-only, which may have other mounts.
		err = setMountAttr(mount, 0, unix.MOUNT_ATTR_RDONLY, 0, 0)
	}
	return wrap("set iversion", "", err)
}

// stNoSymFollow is ST_NOSYMFOLLOW (linux/statfs.h).
const stNoSymFollow = 0x2000

// verify looks the target up again: a mount that ended elsewhere, because
// the image or a volume shared with another container moved things about, is an
// error rather than a container without its /proc (CVE-2019-19921,
// CVE-2023-27561).
func (s *setup) verify(src int, m *initmsg.Mount) error {
	want, err := mountID(src)
	if err != nil {
		return err
	}
	fd, err := openIn(s.root, m.Target, unix.O_PATH, resolveFor(m))
	if err != nil {
		return wrap("look at the target again", "", err)
	}
	defer unix.Close(fd)
	got, err := mountID(fd)
	if err != nil {
		return err
	}
	if got != want {
		return text("the target was moved away while it was mounted on")
	}
	return nil
}

// resolveFor is how a target is resolved. The kernel's own views must be at
// their real paths: LSM labels and sysctls are read from there (CVE-2019-19921).
func resolveFor(m *initmsg.Mount) uint64 {
	switch m.FSType {
	case "proc", "sysfs":
		return beneath | unix.RESOLVE_NO_SYMLINKS
	}
	return beneath
}

// target opens the target, making it when it is missing.
func (s *setup) target(m *initmsg.Mount, dir bool) (int, error) {
	mode := m.CreateMode
	if mode == 0 {
		mode = 0o755
	}
	flags := unix.O_PATH
	if m.NoFollow {
		flags |= unix.O_NOFOLLOW
	}
	resolve := resolveFor(m)
	fd, err := openIn(s.root, m.Target, flags, resolve)
	if err == unix.ENOENT && !(m.NoFollow && s.dangling(m.Target)) {
		// With links on the way forbidden, the second look still is.
		// Made and opened under the rules of this target, or looked for again after a link that leads nowhere.
		var next string
		if next, err = createMissing(s.root, m.Target, dir, mode); err == nil && next != m.Target {
			if fd, err = ensure(s.root, next, dir, mode); err == nil {
				unix.Close(fd)
			}
		}
		if err == nil {
			fd, err = openIn(s.root, m.Target, flags, resolve)
		}
	}
	if err == unix.ELOOP {
		return -1, wrap("the target must not be, or be reached by, a symbolic link", "", err)
	}
	if err != nil {
		return -1, wrap("open the target", "", err)
	}
	s.disturb(fd)
	if !m.NoFollow { // the kernel mounts nothing on what is of another kind, but it would mount a file on a link
		return fd, nil
	}
	if err := checkKind(fd, dir); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// misfit says what is wrong with a target that nothing could be mounted on, if it is its kind.
func misfit(target int, dir bool, err error) error {
	if e := errnoOf(err); e == unix.EINVAL || e == unix.ENOTDIR {
		if kindErr := checkKind(target, dir); kindErr != nil {
			return kindErr
		}
	}
	return err
}

func checkKind(target int, dir bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		return err
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFLNK:
		return wrap("the target is a symbolic link", "", unix.ELOOP)
	case dir && kind != unix.S_IFDIR:
		return wrap("the target is not a directory", "", unix.ENOTDIR)
	case !dir && kind == unix.S_IFDIR:
		return wrap("the source is not a directory, the target is one", "", unix.EISDIR)
	}
	return nil
}

// dangling says whether path ends in a link that leads nowhere.
func (s *setup) dangling(path string) bool {
	fd, err := openIn(s.root, path, unix.O_PATH|unix.O_NOFOLLOW, beneath)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// mountSource returns a detached mount with the attributes of m, and whether its root
// is a directory. covered is the directory that a tmpfs copies, or -1.
func mountSource(m *initmsg.Mount, covered int) (fd int, dir bool, err error) {
	if m.FSType != "" {
		if fd, err = newMount(m); err == nil && covered >= 0 {
			err = wrap("copy up", "", copyUp(covered, fd))
		}
	} else if m.File != initmsg.NoFile {
		fd = int(file(m.File))
	} else {
		flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
		if m.Recursive {
			flags |= unix.AT_RECURSIVE
		}
		fd, err = unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
		err = wrap("clone the mount of", m.Source, err)
	}
	if err != nil {
		return fd, false, err
	}
	if err := setMountAttrs(fd, m); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	if m.FSType != "" {
		return fd, true, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// fsmountAttrs are the attributes that fsmount(2) takes itself.
const fsmountAttrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV |
	unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR__ATIME | unix.MOUNT_ATTR_NODIRATIME

// newMount makes a new file system.
func newMount(m *initmsg.Mount) (int, error) {
	fs, err := unix.Fsopen(m.FSType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, wrap("fsopen", m.FSType, needs("5.2", err))
	}
	defer unix.Close(fs)
	if m.Source != "" {
		if err := unix.FsconfigSetString(fs, "source", m.Source); err != nil {
			return -1, wrap("fsconfig source", m.Source, because(fs, err))
		}
	}
	if err := configure(fs, m.Options); err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, wrap("fsconfig create", m.FSType, because(fs, err))
	}
	attr := m.AttrSet & fsmountAttrs
	if m.TmpCopyUp {
		attr = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attr))
	if err != nil || m.IDMap == 0 {
		return fd, wrap("fsmount", m.FSType, err)
	}
	err = setAttr(fd, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(file(m.IDMap - 1))})
	if err != nil {
		unix.Close(fd)
		return -1, wrap("idmap a mount of type", m.FSType, err)
	}
	return fd, nil
}

// configure gives a file system its settings.
func configure(fs int, options []string) (err error) {
	for _, o := range options {
		key, value, set := strings.Cut(o, "=")
		if set {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return wrap("fsconfig", o, because(fs, err))
		}
	}
	return nil
}

// because adds what the file system wrote into its log (fsopen(2)), which says
// more than EINVAL.
func because(fs int, err error) error {
	buf := make([]byte, 1024)
	n, rerr := unix.Read(fs, buf)
	if rerr != nil || n <= 2 {
		return err
	}
	return wrap(strings.TrimSpace(string(buf[2:n])), "", err)
}

// setMountAttrs sets the attributes on a detached mount.
func setMountAttrs(fd int, m *initmsg.Mount) error {
	set, clr := m.AttrSet, m.AttrClear
	if m.FSType != "" && clr == 0 && set&^fsmountAttrs == 0 && !m.TmpCopyUp {
		set = 0 // fsmount has done it
	}
	if m.FSType != "" && m.TmpCopyUp {
		clr |= (unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC) &^ set
	}
	if err := setMountAttr(fd, 0, set, clr, detachedPropagation(m)); err != nil {
		return wrap("set attributes", "", err)
	}
	return wrap("set recursive attributes", "", setMountAttr(fd, unix.AT_RECURSIVE, m.RecAttrSet, m.RecAttrClear, 0))
}

// detachedPropagation is what of Mount.Propagation is set together with the attributes of a bind, before it is attached.
func detachedPropagation(m *initmsg.Mount) uint64 {
	if m.FSType == "" && m.Propagation == unix.MS_PRIVATE {
		return m.Propagation
	}
	return 0
}

func setMountAttr(fd int, flags uint, set, clr, propagation uint64) error {
	if set|clr|propagation == 0 {
		return nil
	}
	// mount_setattr(2): the access time modes are a number, which is
	// only changed as a whole.
	const modes = unix.MOUNT_ATTR__ATIME
	if set&modes != 0 || clr&modes != 0 {
		clr |= modes
	}
	return needs("5.12", setAttr(fd, flags, &unix.MountAttr{Attr_set: set, Attr_clr: clr, Propagation: propagation}))
}
