package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// IDMap maps Size ids from Inside on, in a user namespace, to Outside on.
type IDMap struct{ Inside, Outside, Size uint32 }

// NewUserNamespace makes a user namespace with the given mappings, which lives as long as the file. It is what
// mounts are idmapped by, and what Spawn enters.
func NewUserNamespace(uids, gids []IDMap) (*os.File, error) {
	var ns *os.File
	err := inNewUserNamespace(0, uids, gids, func(pid int) (err error) {
		ns, err = os.Open("/proc/" + strconv.Itoa(pid) + "/ns/user")
		return err
	})
	return ns, err
}

// PinUserNamespaces is PinNamespaces for namespaces that belong to a new user namespace with these mappings: it is one of
// the pins (NamespaceUser). inside runs with the rights of the caller in the other new namespaces.
func PinUserNamespaces(pins []NamespacePin, uids, gids []IDMap, inside func() error) error {
	flags, err := pinFlags(pins)
	if err != nil {
		return err
	}
	if flags&NamespaceUser == 0 {
		return errors.New("pin user namespace: it is not among the pins")
	}
	return inNewUserNamespace(flags, uids, gids, func(pid int) error {
		dir := "/proc/" + strconv.Itoa(pid) + "/ns"
		if inside != nil {
			if err := onDoomedThread(func() error { return within(dir, flags&^NamespaceUser, inside) }); err != nil {
				return err
			}
		}
		return pinAll(dir, pins)
	})
}

// within joins namespaces on a thread that is thrown away, and runs f.
func within(nsDir string, flags uintptr, f func() error) error {
	for flag, name := range nsFiles {
		if flags&flag == 0 {
			continue
		}
		fd, err := unix.Open(nsDir+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open new %s namespace: %w", name, err)
		}
		err = unix.Setns(fd, int(flag))
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("enter new %s namespace: %w", name, err)
		}
	}
	return f()
}

// inNewUserNamespace runs f while a process of its own, which does nothing, is in new namespaces.
func inNewUserNamespace(flags uintptr, uids, gids []IDMap, f func(pid int) error) (err error) {
	pid, gate, err := forkIdle(uint64(flags) | unix.CLONE_NEWUSER)
	if err != nil {
		return fmt.Errorf("make user namespace: %w", err)
	}
	defer func() {
		unix.Close(gate) // ends it
		WaitChild(pid)
	}()
	for _, m := range []struct {
		file string
		ids  []IDMap
	}{{"uid_map", uids}, {"gid_map", gids}} {
		if err := writeMap(pid, m.file, m.ids); err != nil {
			return err
		}
	}
	return f(pid)
}

func writeMap(pid int, file string, ids []IDMap) error {
	var b strings.Builder
	for _, m := range ids {
		fmt.Fprintf(&b, "%d %d %d\n", m.Inside, m.Outside, m.Size)
	}
	// One write, of less than a page (user_namespaces(7)).
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/"+file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("user namespace: open %s: %w", file, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(b.String())); err != nil {
		return fmt.Errorf("user namespace: write %s %q: %w", file, b.String(), err)
	}
	return nil
}

// cloneArgs are clone3(2)'s, up to CLONE_INTO_CGROUP (Linux 5.7).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// forkIdle forks a process that waits for the end of gate, which is also our own end. Nobody but the caller waits for it.
func forkIdle(flags uint64) (pid, gate int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, -1, os.NewSyscallError("pipe2", err)
	}
	// No signal may run a handler of this program's in the child.
	args := &cloneArgs{flags: flags | unix.CLONE_CLEAR_SIGHAND, exitSignal: uint64(unix.SIGCHLD)}
	syscall.ForkLock.Lock()
	pid, errno := idleChild(args, p[0], p[1])
	syscall.ForkLock.Unlock()
	unix.Close(p[0])
	if errno != 0 {
		unix.Close(p[1])
		return 0, -1, os.NewSyscallError("clone3", errno)
	}
	return pid, p[1], nil
}

// idleChild is a fork by hand: package syscall can only fork to execute. In the child there is one thread and no Go
// runtime, so only system calls are made: no stack may grow, nothing be allocated, no pointer be stored.
//
//go:nosplit
//go:noinline
//go:norace
func idleChild(args *cloneArgs, r, w int) (int, syscall.Errno) {
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno != 0 || pid != 0 {
		return int(pid), errno
	}
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(w), 0, 0)
	var b byte
	unix.RawSyscall(unix.SYS_READ, uintptr(r), uintptr(unsafe.Pointer(&b)), 1)
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// WriteSysctlAs is WriteSysctl with uid as the calling thread's effective user: since Linux 6.3 the IPC namespace's belong
// to the root of its user namespace, and not to the host's. The thread's goroutine must be locked to it.
func WriteSysctlAs(uid uint32, name, value string) error {
	euid := uintptr(unix.Geteuid())
	set := func(id uintptr) error {
		keep := ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, id, keep); errno != 0 {
			return os.NewSyscallError("setresuid", errno)
		}
		return nil
	}
	if _, err := privateProc(); err != nil { // while there are the rights for it
		return err
	}
	if err := set(uintptr(uid)); err != nil {
		return err
	}
	return errors.Join(WriteSysctl(name, value), set(euid))
}

// keepAliveAll keeps files from being closed by the collector while only their numbers are used.
func keepAliveAll(files ...*os.File) { runtime.KeepAlive(files) }
