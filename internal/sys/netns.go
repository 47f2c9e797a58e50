package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// The namespace kinds that PinNamespaces can make (clone(2)).
const (
	NamespaceNet uintptr = unix.CLONE_NEWNET
	NamespaceIPC uintptr = unix.CLONE_NEWIPC
	NamespaceUTS uintptr = unix.CLONE_NEWUTS
	// NamespaceUser is for PinUserNamespaces.
	NamespaceUser uintptr = unix.CLONE_NEWUSER
)

// nsFiles are the names of the namespace kinds in /proc/PID/ns.
var nsFiles = map[uintptr]string{
	NamespaceNet:  "net",
	NamespaceIPC:  "ipc",
	NamespaceUTS:  "uts",
	NamespaceUser: "user",
}

// NamespacePin says where the namespace of one kind is kept.
type NamespacePin struct {
	Flag uintptr // NamespaceNet, NamespaceIPC, NamespaceUTS, NamespaceUser
	Path string  // absolute; must not exist yet
}

// PinNamespaces makes one new namespace of each kind in pins, runs inside (which may
// be nil) in them, and keeps them alive with a bind mount at each Path, so
// that no process has to. The folder of a network namespace is made a shared mount, as
// ip-netns(8) does, so that the pins reach mount namespaces made later.
//
// inside runs on a locked thread that is thrown away afterwards; it must not start
// goroutines that need the namespaces. On any error nothing is left behind.
func PinNamespaces(pins []NamespacePin, inside func() error) error {
	flags, err := pinFlags(pins)
	if err != nil {
		return err
	}
	return onDoomedThread(func() error {
		if err := unix.Unshare(int(flags)); err != nil {
			return fmt.Errorf("unshare namespaces %#x: %w", flags, err)
		}
		if inside != nil {
			if err := inside(); err != nil {
				return err
			}
		}
		return pinAll("/proc/thread-self/ns", pins)
	})
}

// pinFlags are the kinds of namespaces in pins.
func pinFlags(pins []NamespacePin) (flags uintptr, err error) {
	for _, p := range pins {
		switch {
		case nsFiles[p.Flag] == "":
			return 0, fmt.Errorf("pin namespace %s: flag %#x is not a namespace that can be pinned", p.Path, p.Flag)
		case flags&p.Flag != 0:
			return 0, fmt.Errorf("pin namespace %s: a second %s namespace", p.Path, nsFiles[p.Flag])
		case !filepath.IsAbs(p.Path):
			return 0, fmt.Errorf("pin namespace %s: the path is not absolute", p.Path)
		}
		flags |= p.Flag
	}
	return flags, nil
}

func pinAll(nsDir string, pins []NamespacePin) error {
	for i, p := range pins {
		if err := pin(nsDir, p); err != nil {
			for _, done := range pins[:i] {
				err = errors.Join(err, UnpinNamespace(done.Path))
			}
			return err
		}
	}
	return nil
}

func pin(nsDir string, p NamespacePin) (err error) {
	dir := filepath.Dir(p.Path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("pin namespace %s: %w", p.Path, err)
	}
	if p.Flag == NamespaceNet {
		if err := shareMount(dir); err != nil {
			return fmt.Errorf("pin namespace %s: %w", p.Path, err)
		}
	}
	f, err := os.OpenFile(p.Path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	f.Close()
	src := filepath.Join(nsDir, nsFiles[p.Flag])
	if err := unix.Mount(src, p.Path, "", unix.MS_BIND, ""); err != nil {
		err = fmt.Errorf("pin namespace: bind mount %s at %s: %w", src, p.Path, err)
		return errors.Join(err, os.Remove(p.Path))
	}
	return nil
}

// shareMount makes dir a shared mount point, the way of ip-netns(8). Several processes may do
// so at once; the lock keeps them from stacking bind mounts.
func shareMount(dir string) error {
	if unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "") == nil {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := retryEINTR(func() error { return unix.Flock(int(d.Fd()), unix.LOCK_EX) }); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	err = unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("make %s a shared mount: %w", dir, err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind mount %s on itself: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make %s a shared mount: %w", dir, err)
	}
	return nil
}

// UnpinNamespace undoes one pin: it unmounts path and removes the file. It is nil when path is
// already gone, and an error when path is anything but a pin or the empty file that an
// interrupted PinNamespaces left.
func UnpinNamespace(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue // one mount may hide another
		}
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EINVAL) { // EINVAL: not a mount point (any more)
			return fmt.Errorf("unmount namespace %s: %w", path, err)
		}
		break
	}
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove namespace: %w", err)
	}
	if !fi.Mode().IsRegular() || fi.Size() != 0 {
		return fmt.Errorf("remove namespace %s: not an empty regular file (%s, %d bytes)", path, fi.Mode(), fi.Size())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove namespace: %w", err)
	}
	return nil
}

// IsNamespace tells whether path is a namespace file: a pin or a /proc/PID/ns link. A path that
// does not exist is not one; any other failure to look is the error.
func IsNamespace(path string) (bool, error) {
	var st unix.Statfs_t
	err := retryEINTR(func() error { return unix.Statfs(path, &st) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("statfs %s: %w", path, err)
	}
	return int64(st.Type) == unix.NSFS_MAGIC, nil
}

// WithNamespace runs f inside the net, IPC or UTS namespace at path, on a locked thread that returns
// to its own namespace afterwards and is thrown away if it cannot.
func WithNamespace(flag uintptr, path string, f func() error) error {
	name := nsFiles[flag]
	if name == "" {
		return fmt.Errorf("enter namespace %s: flag %#x is not supported", path, flag)
	}
	target, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("enter namespace: %w", &fs.PathError{Op: "open", Path: path, Err: err})
	}
	defer unix.Close(target)
	return onThread(func() (doomed bool, err error) {
		own, err := unix.Open("/proc/thread-self/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, fmt.Errorf("open own %s namespace: %w", name, err)
		}
		defer unix.Close(own)
		if err := unix.Setns(target, int(flag)); err != nil {
			return false, fmt.Errorf("enter namespace %s: setns: %w", path, err)
		}
		defer func() { doomed = unix.Setns(own, int(flag)) != nil }()
		return false, f()
	})
}

// WithNetns runs f inside the network namespace at path; see WithNamespace.
func WithNetns(path string, f func() error) error {
	return WithNamespace(NamespaceNet, path, f)
}

// onDoomedThread runs f on a thread that ends with it.
func onDoomedThread(f func() error) error {
	return onThread(func() (bool, error) { return true, f() })
}

// onThread runs f on a locked thread and ends the thread if f says so or calls runtime.Goexit. It never uses the main
// thread: /proc/self shows its namespaces as the process's own, and Go cannot end it.
func onThread(f func() (doomed bool, err error)) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f) // holds the main thread, so another is taken
			runtime.UnlockOSThread()
			return
		}
		doomed, err := true, errors.New("the function ended its goroutine")
		defer func() {
			if !doomed {
				runtime.UnlockOSThread()
			}
			done <- err
		}()
		doomed, err = f()
	}()
	return <-done
}

// LoopbackUp brings up lo in the network namespace of the calling thread; the kernel gives it
// 127.0.0.1/8 and, where IPv6 is on, ::1/128.
func LoopbackUp() error {
	// SIOCSIFFLAGS works on a socket of any family, and AF_UNIX is always there.
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up lo: socket: %w", err)
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring up lo: read flags: %w", err)
	}
	if ifr.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring up lo: set flags: %w", err)
	}
	return nil
}

// SetHostname sets the host name in the UTS namespace of the calling thread: at most 64 bytes
// (HOST_NAME_MAX), no NUL.
func SetHostname(name string) error {
	if len(name) > 64 || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("set hostname %q: %w", name, unix.EINVAL)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set hostname %q: %w", name, err)
	}
	return nil
}

func retryEINTR(f func() error) error {
	for {
		err := f()
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
