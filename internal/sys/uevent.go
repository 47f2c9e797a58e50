package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ErrEventsLost: the kernel had more events than room for them; what they were about is to be looked at anew.
var ErrEventsLost = errors.New("events were lost")

// ueventMax is more than the kernel puts into one event (UEVENT_BUFFER_SIZE and the path), in bytes.
const ueventMax = 8192

// Uevents are the kernel's own events of its devices and modules (NETLINK_KOBJECT_UEVENT), but for those of virtual
// network interfaces: each pod makes some, and whoever waits for a device is not to be woken for a pod.
type Uevents struct {
	f   *os.File
	raw syscall.RawConn
	buf []byte
}

// OpenUevents listens in the network namespace of the calling thread. Events of devices reach only network namespaces that
// belong to the first user namespace (Linux 4.18).
func OpenUevents() (_ *Uevents, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("socket for events of the kernel: %w", err)
	}
	f := os.NewFile(uintptr(fd), "uevents")
	defer func() {
		if err != nil {
			err = fmt.Errorf("socket for events of the kernel: %w", errors.Join(err, f.Close()))
		}
	}()
	if err := dropVirtualNet(fd); err != nil {
		return nil, err
	}
	const kernelGroup = 1 // udev's own messages are in group 2
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	raw, err := f.SyscallConn()
	return &Uevents{f: f, raw: raw, buf: make([]byte, ueventMax)}, err
}

// dropVirtualNet has the kernel drop what begins with ACTION@/devices/virtual/net/.
func dropVirtualNet(fd int) error {
	const at = "/devices/virtual/net" // a multiple of four bytes
	var prog []bpf.Instruction
	for _, action := range []string{"add", "move", "change", "remove"} {
		off := uint32(len(action))
		skip := uint8(2*len(at)/4 + 1)
		prog = append(prog, bpf.LoadAbsolute{Off: off, Size: 1}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: '@', SkipTrue: skip})
		for i := 0; i < len(at); i += 4 {
			skip -= 2
			word := uint32(at[i])<<24 | uint32(at[i+1])<<16 | uint32(at[i+2])<<8 | uint32(at[i+3])
			prog = append(prog, bpf.LoadAbsolute{Off: off + 1 + uint32(i), Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: word, SkipTrue: skip})
		}
		prog = append(prog, bpf.RetConstant{})
	}
	raw, err := bpf.Assemble(append(prog, bpf.RetConstant{Val: ueventMax}))
	if err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(raw)), Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(raw)))}
	return os.NewSyscallError("SO_ATTACH_FILTER", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog))
}

// Next waits for an event: ACTION@PATH, and NAME=VALUE pairs, with NUL bytes between them. It is valid until the next call.
// Messages that the kernel has not sent are left out. After Close it is os.ErrClosed.
func (u *Uevents) Next() ([]byte, error) {
	for {
		var n int
		var from unix.Sockaddr
		var opErr error
		err := u.raw.Read(func(fd uintptr) bool {
			n, from, opErr = unix.Recvfrom(int(fd), u.buf, 0)
			return opErr != unix.EAGAIN && opErr != unix.EINTR
		})
		switch {
		case err != nil: // of a RawConn: it was closed, in words of its own
			return nil, fmt.Errorf("%w: %w", os.ErrClosed, err)
		case opErr == unix.ENOBUFS:
			return nil, ErrEventsLost
		case opErr != nil:
			return nil, os.NewSyscallError("recvfrom", opErr)
		}
		if a, ok := from.(*unix.SockaddrNetlink); ok && a.Pid == 0 {
			return u.buf[:n], nil
		}
	}
}

// Close ends a waiting Next.
func (u *Uevents) Close() error { return u.f.Close() }

// SendUevent has the kernel send an event to all listeners in the network namespace of the calling thread, as if it were its
// own; with CAP_SYS_ADMIN there (Linux 4.18).
func SendUevent(event string) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	// A netlink header of a type that the kernel looks at, and the event.
	msg := make([]byte, unix.NLMSG_HDRLEN+len(event))
	*(*unix.NlMsghdr)(unsafe.Pointer(unsafe.SliceData(msg))) = unix.NlMsghdr{Len: uint32(len(msg)), Type: unix.NLMSG_MIN_TYPE, Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK}
	copy(msg[unix.NLMSG_HDRLEN:], event)
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return os.NewSyscallError("recvfrom", err)
	}
	if n >= unix.NLMSG_HDRLEN+4 {
		if code := *(*int32)(unsafe.Pointer(&answer[unix.NLMSG_HDRLEN])); code != 0 {
			return os.NewSyscallError("uevent", syscall.Errno(-code))
		}
	}
	return nil
}

// DirWatch waits for names that come to directories or go (inotify). Unlike other watches it does not see what is written to
// the files in them: /dev/null is in /dev.
type DirWatch struct {
	f   *os.File
	buf [4096]byte
}

// WatchDirs begins with no directory.
func WatchDirs() (*DirWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return &DirWatch{f: os.NewFile(uintptr(fd), "inotify")}, nil
}

// Add watches a directory, once however often it is asked for.
func (w *DirWatch) Add(dir string) error {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	const mask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	var opErr error
	err = raw.Control(func(fd uintptr) { _, opErr = unix.InotifyAddWatch(int(fd), dir, mask) })
	if opErr != nil {
		opErr = &fs.PathError{Op: "inotify_add_watch", Path: dir, Err: opErr}
	}
	return errors.Join(err, opErr)
}

// Next waits for a change. After Close it is os.ErrClosed.
func (w *DirWatch) Next() error {
	_, err := w.f.Read(w.buf[:])
	return err
}

// Close ends a waiting Next.
func (w *DirWatch) Close() error { return w.f.Close() }
