package initproc

import (
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// standby is what a fork that was made ahead (initmsg.ForkRequest.Standby) has ready for a message like the one that it was
// shown. Nothing of it is visible to anyone: the process is the only one in its namespaces, which it has had since its birth,
// and it holds the rest by descriptors. What the message turns out not to ask for is closed unused.
//
// The mount namespace is not that of the process yet, since the paths of a message are the host's. It has an empty
// tmpfs for a root, on top of which the container's is put: so the way out of the host's tree, and the grace period of the kernel
// that its unmounting takes, lie behind before there is a message. A process whose root is the container's sees as much of
// what lies below as of the rootfs(5) below every root.
type standby struct {
	flags     uint64           // CLONE_NEW…, as the request will have them
	message   *initmsg.Message // the one that it was shown
	namespace int              // a mount namespace, or -1
	root      int              // its root
	null      int              // the null device, attached in it
	empty     int              // an empty directory that masks, attached in it
	mounts    []readyMount
	proc      *readyMount // has what message masks and makes read-only below its target
	nodes     *readyMount // has message's devices and links
	covers    []uint64    // the file systems (stat's st_dev) of proc and of what covers paths in it
	nodesAt   [2]uint64   // the file system and inode of nodes' root
	disturbed struct{ proc, nodes bool }
}

// readyMount is a new file system, not attached to any container, and what it is for.
type readyMount struct {
	of   *initmsg.Mount
	fd   int // or -1 once it was taken
	dirs []string
}

// aheadFloor is above the descriptors that a server and its forks have.
const aheadFloor = initmsg.ServerFloor + 8

// standBy makes ready, waits for the request and returns nil in what is then a fork like any other. It ends with the parent's
// socket, and where anything goes wrong: the parent then has another one forked.
func (sv *server) standBy(flags uint64) error {
	// The server's socket and namespace are not this process's to hold.
	if unix.Dup3(0, serverSocket, unix.O_CLOEXEC) != nil || closeExcept(0, []int{serverSocket, serverProc}) != nil {
		syscall.Exit(1)
	}
	sv.proc = serverProc
	r, errno := sv.receive()
	if errno != 0 || !r.Standby {
		syscall.Exit(0)
	}
	// Another process has read it, and its position with it.
	data := make([]byte, len(messageBuffer))
	n, err := unix.Pread(0, data, 0)
	unix.Close(0)
	if err != nil || n == len(data) {
		syscall.Exit(1)
	}
	data = data[:n]
	sv.ahead = &standby{flags: flags, namespace: -1, root: -1, null: -1, empty: -1}
	umask := unix.Umask(0)
	if sv.ahead.message, err = initmsg.Decode(data); err != nil || sv.ahead.prepare() != nil {
		syscall.Exit(1)
	}
	unix.Umask(umask)
	sv.touch(data)
	if sv.reply(unix.Getpid(), 0) != 0 {
		syscall.Exit(0)
	}
	if r, errno = sv.receive(); errno != 0 {
		syscall.Exit(0)
	}
	if r.CloneFlags != flags || r.Cgroup || r.PIDNamespace || r.Standby || r.Files == 0 {
		syscall.Exit(1)
	}
	unix.Close(serverSocket)
	// Who sends a request knows of the fork, even if the server died before it said so.
	for told := atomic.LoadUint32(sv.told); int32(told-sv.forks) < 0; told = atomic.LoadUint32(sv.told) {
		atomic.CompareAndSwapUint32(sv.told, told, sv.forks)
	}
	return nil
}

// touch uses the memory that the message will, so that the kernel has copied it by then.
func (sv *server) touch(message []byte) {
	copy(messageBuffer[:], message)
	if _, err := messageSpace.Decode(messageBuffer[:len(message)]); err != nil {
		syscall.Exit(1)
	}
	messageSpace = initmsg.Space{}
	rehearse()
	unix.Getwd()
}

// prepare makes the mount namespace and what can be had ready in it, or nothing where there is to be none.
func (a *standby) prepare() error {
	if a.flags&unix.CLONE_NEWNS == 0 || !a.suits(a.message) {
		return nil
	}
	host, err := unix.Openat(serverProc, "self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(host)
	back, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(back)
	if err := a.enterEmpty(); err != nil {
		return err
	}
	if err := a.makeMounts(); err != nil {
		return err
	}
	if a.namespace, err = keepFD(unix.Openat(serverProc, "self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)); err != nil {
		return err
	}
	if err := unix.Setns(host, unix.CLONE_NEWNS); err != nil {
		return err
	}
	return chrootTo(back)
}

// keepFD moves a descriptor out of the way of those that come with the request.
func keepFD(fd int, err error) (int, error) {
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, aheadFloor)
}

// Names in the root of the namespace, which nobody but the standby can see.
const (
	nullName  = "null"
	emptyName = "empty"
	procName  = "proc"
)

// enterEmpty enters a new mount namespace of nothing but an empty root.
func (a *standby) enterEmpty() error {
	null, err := unix.OpenTree(unix.AT_FDCWD, "/dev/null", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	if a.null, err = keepFD(null, setAttr(null, 0, &unix.MountAttr{Propagation: unix.MS_PRIVATE})); err != nil {
		return err
	}
	if err := verifyDevice(a.null, "/dev/null", unix.S_IFCHR, 1, 3); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if a.root, err = keepFD(newTmpfs([]string{"nr_blocks=1", "nr_inodes=4", "mode=0555"}, 0)); err != nil {
		return err
	}
	if err := unix.MoveMount(a.root, "", unix.AT_FDCWD, a.message.Root.Staging, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	if err := pivotTo(a.root, old); err != nil {
		return err
	}
	if err := makeEntry(a.root, nullName, false, 0); err != nil {
		return err
	}
	if err := unix.MoveMount(a.null, "", a.root, nullName, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	for _, name := range []string{emptyName, procName} {
		if err := makeEntry(a.root, name, true, 0); err != nil {
			return err
		}
	}
	if a.empty, err = keepFD(emptyDir()); err != nil {
		return err
	}
	if err := unix.MoveMount(a.empty, "", a.root, emptyName, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	return setAttr(a.root, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC})
}

// makeMounts makes those file systems of the message that are the same in whatever namespaces it joins.
func (a *standby) makeMounts() error {
	m := a.message
	a.mounts = make([]readyMount, 0, len(m.Mounts))
	for i := range m.Mounts {
		of := &m.Mounts[i]
		if !a.independent(of) {
			continue
		}
		fd, _, err := mountSource(of, -1)
		if fd, err = keepFD(fd, err); err != nil {
			return err
		}
		a.mounts = append(a.mounts, readyMount{of: of, fd: fd})
		made := &a.mounts[len(a.mounts)-1]
		switch {
		case of.FSType == "proc" && of.Target == procTarget && a.proc == nil && of.Propagation == 0:
			err = a.cover(made)
		case of.FSType == "tmpfs":
			a.makeDirs(made, m.Mounts[i+1:])
			err = a.makeNodes(made)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// independent says whether a mount is a new file system that is the same wherever it is made, but for the PID namespace, which is
// this process's own.
func (a *standby) independent(m *initmsg.Mount) bool {
	if m.IDMap != 0 || m.TmpCopyUp || m.Remount || m.Optional {
		return false
	}
	switch m.FSType {
	case "proc":
		return a.flags&unix.CLONE_NEWPID != 0
	case "tmpfs", "devpts":
		return true
	}
	return false
}

const procTarget = "/proc"

// cover does ahead what the message masks and makes read-only in a procfs. For that it has to be attached, and is moved
// from there with all that is on it.
func (a *standby) cover(made *readyMount) error {
	if err := unix.MoveMount(made.fd, "", a.root, procName, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	s := newSetup(nil)
	s.m, s.root, s.null, s.empty = a.message, made.fd, a.null, a.empty
	for path := range coverable(a.message.Readonly) {
		if err := s.readonly(path); err != nil {
			return err
		}
	}
	for path := range coverable(a.message.Masked) {
		if err := s.mask(path); err != nil {
			return err
		}
	}
	a.proc = made
	for _, fd := range []int{made.fd, a.null, a.empty} {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		a.covers = append(a.covers, st.Dev)
	}
	return nil
}

// coverable are the paths below procTarget, less that.
func coverable(paths []string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, path := range paths {
			if isCoverable(path) && !yield(path[len(procTarget):]) {
				return
			}
		}
	}
}

func isCoverable(path string) bool {
	return strings.HasPrefix(path, procTarget+"/") && !strings.Contains(path, "..")
}

// makeDirs makes the targets of the mounts that follow in a new tmpfs, as mountInFresh would.
func (a *standby) makeDirs(made *readyMount, next []initmsg.Mount) {
	for i := range next {
		name, below := directlyBelow(next[i].Target, made.of.Target)
		if !below || !quick(&next[i]) || makeEntry(made.fd, name, true, 0o755) != nil {
			return
		}
		made.dirs = append(made.dirs, name)
	}
}

// makeNodes makes the devices and links in a new tmpfs if all of them belong there.
func (a *standby) makeNodes(made *readyMount) error {
	m := a.message
	for i := range m.Devices {
		if _, below := directlyBelow(m.Devices[i].Path, made.of.Target); !below {
			return nil
		}
	}
	for _, l := range m.Symlinks {
		if _, below := directlyBelow(l.Path, made.of.Target); !below {
			return nil
		}
	}
	if len(m.Devices) == 0 || a.nodes != nil {
		return nil
	}
	s := newSetup(nil)
	s.m = m
	s.nodes = nodeDir{path: made.of.Target + "/", fd: made.fd, setgid: true}
	for i := range m.Devices {
		if err := s.device(&m.Devices[i]); err != nil {
			return err
		}
	}
	for _, l := range m.Symlinks {
		if err := s.symlink(l); err != nil {
			return err
		}
	}
	a.nodes = made
	var st unix.Stat_t
	err := unix.Fstat(made.fd, &st)
	a.nodesAt = [2]uint64{st.Dev, st.Ino}
	return err
}

// suits says whether a message can have its root in a namespace that was made ahead: nothing may look for the host's tree
// once that was entered, and there are no more sources to be opened before than descriptors are for.
func (a *standby) suits(m *initmsg.Message) bool {
	r := m.Root
	if m.Mode != initmsg.ModeContainer || r == nil || r.Staging == "" || r.Detached || r.NoPivot || r.FinalPropagation != 0 || m.UserNamespace ||
		m.HookFile != nil || len(m.CreateContainerHooks) > 0 || len(m.Mounts) > 64 {
		return false
	}
	switch r.Propagation {
	case 0, unix.MS_REC | unix.MS_SLAVE, unix.MS_REC | unix.MS_PRIVATE:
	default:
		return false
	}
	return !slices.ContainsFunc(m.Devices, func(d initmsg.Device) bool { return d.Bind != "" }) &&
		!slices.ContainsFunc(m.Join, func(n initmsg.Namespace) bool { return n.Type == unix.CLONE_NEWNS })
}

// makeNamespace gives a fork that was made ahead the mount namespace that others were cloned with, unless it has a better one ready.
func (s *setup) makeNamespace() error {
	a := s.ahead
	if a == nil {
		return nil
	}
	if a.namespace >= 0 && a.suits(s.m) {
		return nil
	}
	s.ahead = nil
	if a.flags&unix.CLONE_NEWNS == 0 {
		return nil
	}
	return wrap("unshare", "the mount namespace", unix.Unshare(unix.CLONE_NEWNS))
}

// enterAhead opens all that is to be found by the host's paths and enters the namespace that is ready, with the new root on top.
func (s *setup) enterAhead(propagation uint64) error {
	if err := s.cloneRoot(propagation); err != nil {
		return err
	}
	if err := s.gather(propagation); err != nil {
		return err
	}
	a := s.ahead
	if err := unix.Setns(a.namespace, unix.CLONE_NEWNS); err != nil {
		return wrap("enter", "the mount namespace", err)
	}
	s.empty = a.empty
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	return wrap("attach the root to", "/", unix.MoveMount(s.root, "", a.root, "", flags))
}

// source is a mount that waits for its turn.
type source struct {
	fd   int // or -1: it is made in its turn
	dir  bool
	left bool     // out, see Mount.Optional
	dirs []string // that it has already
}

// gather makes the sources of all mounts.
func (s *setup) gather(propagation uint64) error {
	s.stage = "mount"
	s.sources = make([]source, len(s.m.Mounts))
	for i := range s.m.Mounts {
		m := &s.m.Mounts[i]
		s.sources[i] = source{fd: -1}
		if m.Remount || m.TmpCopyUp {
			continue
		}
		if made := s.ahead.take(s.m, i); made != nil {
			s.sources[i] = source{fd: made.fd, dir: true, dirs: made.dirs}
			made.fd = -1
			continue
		}
		fd, dir, err := mountSource(m, -1)
		if err == nil && m.FSType == "" && m.File == initmsg.NoFile {
			err = leavePeers(fd, m, propagation)
		}
		if err != nil && m.Optional {
			s.sources[i].left = true
			continue
		}
		if err != nil {
			return wrap("mount", m.Target, err)
		}
		s.sources[i] = source{fd: fd, dir: dir}
	}
	s.stage = "rootfs"
	return nil
}

// leavePeers takes a bind that was made in the host's namespace out of its peer groups, as it would be in a copy of that
// namespace with a tree that is a slave of the host's.
func leavePeers(fd int, m *initmsg.Mount, propagation uint64) error {
	if !m.Recursive && detachedPropagation(m) != 0 {
		return nil // done already
	}
	attr := unix.MountAttr{Propagation: unix.MS_SLAVE}
	if propagation&unix.MS_PRIVATE != 0 {
		attr.Propagation = unix.MS_PRIVATE
	}
	return wrap("set propagation", "", setAttr(fd, unix.AT_RECURSIVE, &attr))
}

// gathered is the source of a mount; without one it is to be made.
func (s *setup) gathered(i int) source {
	if s.sources == nil {
		return source{fd: -1}
	}
	return s.sources[i]
}

// take finds the file system that was made for m.Mounts[i], or nil. What is in it has to be what m asks for.
func (a *standby) take(m *initmsg.Message, i int) *readyMount {
	for j := range a.mounts {
		r := &a.mounts[j]
		if r.fd >= 0 && sameMount(r.of, &m.Mounts[i]) && !targetBefore(m.Mounts[:i], r.of.Target) && r.sameDirs(m.Mounts[i+1:]) &&
			(r != a.proc || slices.Equal(a.message.Readonly, m.Readonly) && slices.Equal(a.message.Masked, m.Masked)) &&
			(r != a.nodes || slices.Equal(a.message.Devices, m.Devices) && slices.Equal(a.message.Symlinks, m.Symlinks)) {
			return r
		}
	}
	return nil
}

// targetBefore says whether a mount comes before another one on the same target: mountinfo is sorted by age, and the one on top
// is to come last.
func targetBefore(before []initmsg.Mount, target string) bool {
	return slices.ContainsFunc(before, func(m initmsg.Mount) bool { return m.Target == target })
}

// sameDirs says whether the directories in it are the targets of the mounts that come next.
func (r *readyMount) sameDirs(next []initmsg.Mount) bool {
	for i, name := range r.dirs {
		if i >= len(next) || next[i].Target != r.of.Target+"/"+name || !quick(&next[i]) {
			return false
		}
	}
	return true
}

// sameMount says whether two mounts are the same in all.
func sameMount(a, b *initmsg.Mount) bool {
	return a.FSType == b.FSType && a.Source == b.Source && a.File == b.File && a.IDMap == b.IDMap && a.Target == b.Target && a.Recursive == b.Recursive &&
		a.AttrSet == b.AttrSet && a.AttrClear == b.AttrClear && a.RecAttrSet == b.RecAttrSet && a.RecAttrClear == b.RecAttrClear &&
		a.Propagation == b.Propagation && slices.Equal(a.Options, b.Options) && a.TmpCopyUp == b.TmpCopyUp && a.CreateMode == b.CreateMode &&
		a.Optional == b.Optional && a.ReadonlyAtEnd == b.ReadonlyAtEnd && a.NoFollow == b.NoFollow && a.Remount == b.Remount && a.IVersion == b.IVersion
}

// disturb notes that something is mounted on, or below, what was finished ahead: that is then done again, in its place in the order.
func (s *setup) disturb(target int) {
	a := s.ahead
	if a == nil {
		return
	}
	var st unix.Stat_t
	if unix.Fstat(target, &st) != nil || slices.Contains(a.covers, st.Dev) {
		a.disturbed.proc = true
	}
	if kind := st.Mode & unix.S_IFMT; st.Dev == a.nodesAt[0] && (st.Ino == a.nodesAt[1] || kind != unix.S_IFREG && kind != unix.S_IFDIR) {
		a.disturbed.nodes = true
	}
}

// nodesReady says that the devices and links are there.
func (s *setup) nodesReady() bool {
	a := s.ahead
	return a != nil && a.nodes != nil && a.nodes.fd < 0 && !a.disturbed.nodes
}

// coveredAhead says that a path is masked or read-only already.
func (s *setup) coveredAhead(path string) bool {
	a := s.ahead
	return a != nil && a.proc != nil && a.proc.fd < 0 && !a.disturbed.proc && isCoverable(path)
}

// has says whether an entry is there already. A directory that was made ahead for what turns out to be a file, or nothing, is taken away.
func (f *freshDir) has(name string, dir bool, mode uint32) bool {
	if len(f.dirs) == 0 || f.dirs[0] != name {
		return false
	}
	f.dirs = f.dirs[1:]
	if dir && mode == 0o755 {
		return true
	}
	unix.Unlinkat(f.fd, name, unix.AT_REMOVEDIR)
	return false
}
