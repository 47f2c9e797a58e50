package initproc

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// rootfs makes the root file system and moves into it.
func (s *setup) rootfs() error {
	m, r := s.m, s.m.Root
	s.stage = "rootfs"
	if err := s.openNull(); err != nil {
		return err
	}
	if err := s.attachRoot(); err != nil {
		return err
	}
	s.stage = "files"
	// Before the mounts: nothing below the root is anyone's but the container's.
	for i := range m.Files {
		if err := s.writeFile(&m.Files[i]); err != nil {
			return wrap("write", m.Files[i].Path, err)
		}
	}
	s.stage = "mount"
	for i := range m.Mounts {
		if err := s.mount(i); err != nil {
			return wrap("mount", m.Mounts[i].Target, err)
		}
	}
	s.setFresh("", -1)
	if err := s.finishMounts(); err != nil {
		return err
	}
	s.stage = "devices"
	// After the mounts: /dev is one of them.
	if !s.nodesReady() {
		if err := s.makeNodes(); err != nil {
			return err
		}
	}
	if m.Process.Terminal {
		s.stage = "terminal"
		// The container's own devpts is mounted by now, and nothing of the
		// container runs yet that could take /dev/console away.
		if err := s.openTerminal(); err != nil {
			return err
		}
		if err := s.bindConsole(); err != nil {
			return err
		}
	}
	s.stage = "hooks"
	// runtime-spec, "prestart" and "createRuntime Hooks": in the runtime's namespaces, once those of the
	// container and its mounts are there, before pivot_root.
	if err := s.awaitHooks(); err != nil {
		return err
	}
	if m.HookFile != nil {
		// Not before: a setting of a network device is there once the device is.
		if err := s.setSysctls(); err != nil {
			return err
		}
		s.stage = "hooks"
	}
	// runtime-spec, "createContainer Hooks": in the container's namespaces,
	// after its mounts were made and before pivot_root; paths are the host's.
	if err := runHooks("createContainer", m.CreateContainerHooks, hookState("creating", m.State)); err != nil {
		return err
	}
	s.stage = "read-only paths"
	// Before the masks, as a read-only bind of a tree would uncover what is masked in it.
	for _, path := range m.Readonly {
		if s.coveredAhead(path) {
			continue
		}
		if err := s.readonly(path); err != nil {
			return wrap("make read-only", path, err)
		}
	}
	s.stage = "masked paths"
	for _, path := range m.Masked {
		if s.coveredAhead(path) {
			continue
		}
		if err := s.mask(path); err != nil {
			return wrap("mask", path, err)
		}
	}
	s.stage = "pivot"
	if r.Readonly {
		// Last, since targets of mounts and devices had to be made.
		if err := setAttr(s.root, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return wrap("make read-only", "/", err)
		}
	}
	if r.Detached {
		return s.enterDetached()
	}
	if err := s.pivot(); err != nil {
		return err
	}
	if r.FinalPropagation != 0 {
		if err := unix.Mount("", "/", "", uintptr(r.FinalPropagation), ""); err != nil {
			return wrap("set propagation of", "/", err)
		}
	}
	return nil
}

func (s *setup) makeNodes() error {
	for i := range s.m.Devices {
		if err := s.device(&s.m.Devices[i]); err != nil {
			return wrap("make device", s.m.Devices[i].Path, err)
		}
	}
	for _, l := range s.m.Symlinks {
		if err := s.symlink(l); err != nil {
			return wrap("make symlink", l.Path, err)
		}
	}
	s.closeNodes()
	return nil
}

// attachRoot puts the new root on the staging directory and opens it.
func (s *setup) attachRoot() error {
	r := s.m.Root
	prop := r.Propagation
	if prop == 0 {
		prop = unix.MS_REC | unix.MS_SLAVE
	}
	if r.Detached {
		return s.cloneRoot(prop)
	}
	if s.ahead != nil {
		return s.enterAhead(prop)
	}
	// Before anything is mounted: a mount below a shared one would appear on the host.
	if err := unix.Mount("", "/", "", uintptr(prop), ""); err != nil {
		return wrap("set propagation of", "/", err)
	}
	if prop&unix.MS_SHARED != 0 {
		// pivot_root(2): the new root's parent must not be shared, and the new
		// root itself must not be propagated to the host.
		if err := makeParentPrivate(r.Staging); err != nil {
			return wrap("make the mount private of", r.Staging, err)
		}
	}
	if err := s.cloneRoot(prop); err != nil {
		return err
	}
	return s.onStaging()
}

// cloneRoot opens the new root as a detached mount.
func (s *setup) cloneRoot(prop uint64) error {
	r := s.m.Root
	var err error
	if r.File != initmsg.NoFile {
		s.root = int(file(r.File))
	} else {
		s.root, err = unix.OpenTree(unix.AT_FDCWD, r.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return wrap("clone the mount of", r.Path, needs("5.2", err))
		}
	}
	// A mount that was cloned in the host's mount namespace is a peer of the
	// host's: what is mounted below it would appear there.
	private := unix.MountAttr{Propagation: unix.MS_SLAVE}
	if prop&unix.MS_PRIVATE != 0 || prop&unix.MS_UNBINDABLE != 0 {
		private.Propagation = unix.MS_PRIVATE
	}
	return wrap("set propagation of", "the root", needs("5.12", setAttr(s.root, unix.AT_RECURSIVE, &private)))
}

// onStaging puts the root on the staging directory. In a user namespace the way there may be closed, so the process was
// started in it.
func (s *setup) onStaging() error {
	path, flags := s.m.Root.Staging, unix.MOVE_MOUNT_F_EMPTY_PATH
	if s.m.UserNamespace {
		path, flags = "", flags|unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	return wrap("attach the root to", s.m.Root.Staging, unix.MoveMount(s.root, "", unix.AT_FDCWD, path, flags))
}

// makeParentPrivate makes the mount that path is on private.
func makeParentPrivate(path string) error {
	for {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
			return err
		}
		if path == "/" || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
			return unix.Mount("", path, "", unix.MS_PRIVATE, "")
		}
		path = path[:max(strings.LastIndexByte(strings.TrimRight(path, "/"), '/'), 0)]
		if path == "" {
			path = "/"
		}
	}
}

// setAttr is mount_setattr(2) on the mount that fd is the root of.
func setAttr(fd int, flags uint, attr *unix.MountAttr) error {
	return unix.MountSetattr(fd, "", flags|unix.AT_EMPTY_PATH, attr)
}

// pivot makes s.root the root and takes the host's mounts away.
func (s *setup) pivot() error {
	if s.ahead != nil {
		return chrootTo(s.root) // there is nothing but the empty root below it, see standby
	}
	if s.m.Root.NoPivot {
		if err := s.moveRoot(); err != nil {
			return err
		}
		return wrap("chdir", "/", unix.Chdir("/"))
	}
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("open", "the old root", err)
	}
	defer unix.Close(old)
	return pivotTo(s.root, old)
}

// pivotTo makes root the root, and unmounts old.
func pivotTo(root, old int) error {
	if err := unix.Fchdir(root); err != nil {
		return wrap("chdir", "the new root", err)
	}
	// pivot_root(2), "pivot_root(".", ".")": the old root is put on top of
	// the new one, so that no directory for it has to be made in the image.
	if err := unix.PivotRoot(".", "."); err != nil {
		return wrap("pivot_root", "", err)
	}
	if err := unix.Fchdir(old); err != nil {
		return wrap("chdir", "the old root", err)
	}
	// Or the unmount would be propagated to the host.
	if err := unix.Mount("", ".", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return wrap("set propagation of", "the old root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return wrap("unmount", "the old root", err)
	}
	return wrap("chdir", "/", unix.Chdir("/"))
}

// enterDetached joins the mount namespace, if it is to be another one, and makes the detached tree this process's root. It
// stays out of the namespace: its processes keep their root, they see none of the container's mounts, and these go with
// the container. There is nothing above the tree that a process could break out to.
func (s *setup) enterDetached() error {
	if p := s.m.Root.FinalPropagation; p != 0 {
		flags := uint(0)
		if p&unix.MS_REC != 0 {
			flags = unix.AT_RECURSIVE
		}
		if err := setAttr(s.root, flags, &unix.MountAttr{Propagation: p &^ unix.MS_REC}); err != nil {
			return wrap("set propagation of", "/", err)
		}
	}
	for i := range s.m.Join {
		if s.m.Join[i].Type == unix.CLONE_NEWNS {
			if err := s.joinOne(i); err != nil {
				return err
			}
		}
	}
	return chrootTo(s.root)
}

func chrootTo(root int) error {
	if err := unix.Fchdir(root); err != nil {
		return wrap("chdir", "the container's root", err)
	}
	return wrap("chroot", "", unix.Chroot("."))
}

// moveRoot is for a root on the initramfs, which pivot_root(2) cannot leave. The old
// root stays below, so at least its procfs and sysfs, which show
// everything unmasked, are taken away, as runc does.
func (s *setup) moveRoot() error {
	fd, err := openIn(s.proc, "thread-self/mountinfo", unix.O_RDONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return wrap("open", "mountinfo", err)
	}
	defer unix.Close(fd)
	data, err := readAll(fd, make([]byte, 16<<10))
	if err != nil {
		return wrap("read", "mountinfo", err)
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		mount, fs, _ := strings.Cut(line, " - ")
		f := strings.Fields(mount)
		if len(f) < 5 || !strings.HasPrefix(fs, "proc ") && !strings.HasPrefix(fs, "sysfs ") ||
			strings.HasPrefix(f[4]+"/", strings.TrimRight(s.m.Root.Staging, "/")+"/") {
			continue
		}
		if unix.Unmount(f[4], unix.MNT_DETACH) != nil {
			if err := unix.Mount("tmpfs", f[4], "tmpfs", unix.MS_RDONLY, "size=4k"); err != nil {
				return wrap("cover", f[4], err)
			}
		}
	}
	if err := unix.Fchdir(s.root); err != nil {
		return wrap("chdir", "the new root", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return wrap("move the root to", "/", err)
	}
	return wrap("chroot", "", unix.Chroot("."))
}
