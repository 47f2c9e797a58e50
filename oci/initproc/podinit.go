package initproc

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/tinyelf"
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
	s.stage = "lsm"
	if err := s.setLabels(); err != nil {
		return err
	}
	s.stage = "pod init"
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
	if err := s.executing(podProgram); err != nil {
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

// podELF is podLoop as a static executable.
func podELF() []byte {
	start, end := podLoopBounds()
	return tinyelf.Executable(unsafe.Slice((*byte)(codePointer(start)), end-start))
}

// codePointer is a pointer to instructions, which the garbage collector does not move.
func codePointer(addr uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&addr)) }
