package initproc

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// podInit becomes PID 1 of a pod's shared PID namespace. What stays is no Go
// program but the few instructions of podLoop, as a program of their own: a Go
// heap and its threads would cost each such pod about a megabyte for nothing.
// Its root is an empty read-only tmpfs, so that it holds no mount of the host busy.
func (s *setup) podInit() error {
	if err := s.enter(); err != nil {
		return err
	}
	s.stage = "pod init"
	if s.m.Root == nil || s.m.Root.Staging == "" {
		return text("message: a pod init needs a staging directory")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return wrap("set propagation of", "/", err)
	}
	root, err := podRoot()
	if err != nil {
		return err
	}
	s.root = root
	if err := s.onStaging(); err != nil {
		return err
	}
	if err := s.pivot(); err != nil {
		return err
	}
	if _, err := unix.Setsid(); err != nil && err != unix.EPERM {
		return wrap("setsid", "", err)
	}
	if err := setUser(&s.m.Process); err != nil {
		return err
	}
	if err := setCapabilities(s.m.Process.Caps); err != nil {
		return err
	}
	if err := resetSignals(); err != nil {
		return err
	}
	// All blocked: podLoop takes those that it waits for, and PID 1 would have
	// ignored SIGTERM otherwise (pid_namespaces(7)).
	if err := setSignalMask(^uint64(0)); err != nil {
		return err
	}
	for fd := range 3 {
		// Not to hold a pipe of the parent open.
		if err := unix.Close(fd); err != nil && err != unix.EBADF {
			return wrap("close", itoa(fd), err)
		}
	}
	if err := s.executing(); err != nil {
		return err
	}
	return wrap("exec", podProgram, syscall.Exec(podProgram, []string{"pod-init"}, nil))
}

const podProgram = "/pod-init"

// podRoot is a detached read-only tmpfs with nothing but podProgram.
func podRoot() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, wrap("fsopen", "tmpfs", needs("5.2", err))
	}
	defer unix.Close(fs)
	for _, o := range [][2]string{{"size", "64k"}, {"nr_inodes", "4"}, {"mode", "0555"}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, wrap("fsconfig", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, wrap("fsconfig create", "tmpfs", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, wrap("fsmount", "tmpfs", err)
	}
	f, err := unix.Openat(root, podProgram[1:], unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o555)
	if err != nil {
		return -1, wrap("create", podProgram, err)
	}
	err = writeOnce(f, string(podELF()))
	unix.Close(f)
	if err != nil {
		return -1, wrap("write", podProgram, err)
	}
	return root, wrap("make read-only", "/", setAttr(root, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
}

func podLoopBounds() (start, end uintptr)

// podELF is podLoop as a static executable: the ELF header, one segment for the
// code, one that says that the stack is not executable (elf(5)).
func podELF() []byte {
	start, end := podLoopBounds()
	code := unsafe.Slice((*byte)(codePointer(start)), end-start)
	const (
		base   = 0x10000
		header = 64
		ph     = 56
		entry  = header + 2*ph
	)
	le := binary.LittleEndian
	b := make([]byte, entry, entry+len(code))
	copy(b, "\x7fELF\x02\x01\x01") // 64 bit, little endian, version 1
	le.PutUint16(b[16:], 2)        // ET_EXEC
	le.PutUint16(b[18:], podMachine)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], base+entry)
	le.PutUint64(b[32:], header) // program headers
	le.PutUint16(b[52:], header)
	le.PutUint16(b[54:], ph)
	le.PutUint16(b[56:], 2)
	size := uint64(entry + len(code))
	p := b[header:]
	le.PutUint32(p, 1)     // PT_LOAD
	le.PutUint32(p[4:], 5) // read, execute
	le.PutUint64(p[16:], base)
	le.PutUint64(p[24:], base)
	le.PutUint64(p[32:], size)
	le.PutUint64(p[40:], size)
	le.PutUint64(p[48:], 0x10000) // the largest page size
	p = p[ph:]
	le.PutUint32(p, 0x6474e551) // PT_GNU_STACK
	le.PutUint32(p[4:], 6)      // read, write
	return append(b, code...)
}

// codePointer is a pointer to instructions, which the garbage collector does not move.
func codePointer(addr uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&addr)) }
