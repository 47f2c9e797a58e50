package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Subreaper makes orphans below this process its children (prctl(2), PR_SET_CHILD_SUBREAPER).
func Subreaper() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// NotDumpable keeps other processes from tracing this one and from opening what it holds.
func NotDumpable() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// Reaped is a child that has ended.
type Reaped struct {
	PID    int
	Status syscall.WaitStatus
}

// Reap collects one ended child of any kind; ok is false when there is none now.
func Reap() (r Reaped, ok bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return Reaped{}, false
		}
		return Reaped{PID: pid, Status: syscall.WaitStatus(status)}, true
	}
}

// ReapChild is Reap for one child; ok is false while it runs, and for what is no child.
func ReapChild(pid int) (status syscall.WaitStatus, ok bool) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG|unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return syscall.WaitStatus(status), err == nil && got == pid
		}
	}
}

// IsChild reports whether a process, running or ended, is this one's to reap.
func IsChild(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return err == nil
		}
	}
}

// PidfdPID is the PID that a pidfd's process has here; an error once it has been reaped.
func PidfdPID(pidfd *os.File) (int, error) {
	data, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(pidfd.Fd())))
	runtime.KeepAlive(pidfd)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(text))
			if err == nil && pid <= 0 {
				err = os.ErrProcessDone
			}
			return pid, err
		}
	}
	return 0, errors.New("the file is no pidfd")
}

// PidfdOpen returns a pidfd for a process, whether it is a child or not.
func PidfdOpen(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// PidfdSignal sends a signal; nil when the process has ended already.
func PidfdSignal(pidfd *os.File, signal syscall.Signal) error {
	err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.Signal(signal), nil, 0)
	runtime.KeepAlive(pidfd)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// PidfdSignalGroup sends a signal to the process group that the process leads; to the process alone where it leads
// none, and before Linux 6.9. It is nil when the process has ended already.
func PidfdSignalGroup(pidfd *os.File, signal syscall.Signal) error {
	const processGroup = 1 << 2 // PIDFD_SIGNAL_PROCESS_GROUP
	err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.Signal(signal), nil, processGroup)
	runtime.KeepAlive(pidfd)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESRCH) {
		return PidfdSignal(pidfd, signal)
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// PidfdAlive reports whether the process still runs.
func PidfdAlive(pidfd *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	runtime.KeepAlive(pidfd)
	return err == nil && n == 0
}

// PidfdExit asks the kernel how an ended process ended (PIDFD_GET_INFO, Linux 6.15); any
// holder of the pidfd may. An older kernel gives errors.ErrUnsupported, a
// process that has not ended and been reaped ErrRunning.
func PidfdExit(pidfd *os.File) (syscall.WaitStatus, error) {
	info := &unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	err := unix.IoctlPidfdInfo(int(pidfd.Fd()), info)
	runtime.KeepAlive(pidfd)
	switch {
	case err == unix.ENOTTY || err == unix.EINVAL:
		return 0, fmt.Errorf("exit status from a pidfd needs Linux 6.15: %w", errors.ErrUnsupported)
	case err != nil && err != unix.ESRCH:
		return 0, os.NewSyscallError("PIDFD_GET_INFO", err)
	case err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0:
		return syscall.WaitStatus(info.Exit_code), nil
	}
	return 0, ErrRunning
}

// PidfdExitWait waits at most limit for PidfdExit's answer: the kernel has it once the ended process
// was reaped by its parent, which for an orphan is the machine's PID 1.
func PidfdExitWait(pidfd *os.File, limit time.Duration) (syscall.WaitStatus, error) {
	const step = 2 * time.Millisecond
	for ; ; limit -= step {
		status, err := PidfdExit(pidfd)
		if !errors.Is(err, ErrRunning) {
			return status, err
		}
		if limit <= 0 {
			return 0, fmt.Errorf("its new parent has not reaped it: %w", err)
		}
		time.Sleep(step)
	}
}

// ErrRunning says that a process has not ended, or was not reaped yet.
var ErrRunning = errors.New("process still runs")

// ExitCode turns a wait status into the shell's convention: the exit code, or 128 and the signal.
func ExitCode(s syscall.WaitStatus) (code, signal int) {
	if s.Signaled() {
		return 128 + int(s.Signal()), int(s.Signal())
	}
	return s.ExitStatus(), 0
}

// BootID returns the kernel's random boot ID: it differs after every reboot.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	if len(data) < 36 {
		return "", errors.New("/proc/sys/kernel/random/boot_id is short")
	}
	return string(data[:36]), nil
}

// Memfd returns an anonymous file with data in it, positioned at its start and sealed.
func Memfd(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(data, 0); err != nil {
		f.Close()
		return nil, err
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, os.NewSyscallError("seal", err)
	}
	return f, nil
}

// SharedPage is a page of memory that who has the file can map and write to.
func SharedPage(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(int64(os.Getpagesize())); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Winsize sets a terminal's size in characters.
func Winsize(tty *os.File, rows, cols uint16) error {
	return control(tty, func(fd int) error {
		return os.NewSyscallError("TIOCSWINSZ", unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}))
	})
}

// control is for a descriptor that the poller may have: os.File's Fd would make it block.
func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	return errors.Join(raw.Control(func(fd uintptr) { opErr = do(int(fd)) }), opErr)
}

// GrowPipe asks for a pipe that holds size bytes; how much a process may have is limited (pipe(7)).
func GrowPipe(f *os.File, size int) error {
	return control(f, func(fd int) error {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size)
		return os.NewSyscallError("F_SETPIPE_SZ", err)
	})
}

// Pipe returns a pipe: r does not block and uses the poller; w is an ordinary blocking
// end for another process. reverse gives the poller the writing end instead.
func Pipe(reverse bool) (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	ours := p[0]
	if reverse {
		ours = p[1]
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

// Dup duplicates a descriptor.
func Dup(f *os.File) (*os.File, error) {
	dup := -1
	err := control(f, func(fd int) (err error) {
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(dup), f.Name()), nil
}

// WaitChild waits for a child and discards how it ended.
func WaitChild(pid int) syscall.WaitStatus {
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, 0, nil); !errors.Is(err, unix.EINTR) {
			return syscall.WaitStatus(status)
		}
	}
}

// WaitPidfd waits until the process has ended; closing the file ends the wait with an error.
// It takes pidfd over.
func WaitPidfd(pidfd *os.File) (*os.File, func() error, error) {
	f, err := Pollable(pidfd)
	if err != nil {
		return nil, nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, func() error {
		return raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
	}, nil
}

// StartTime is when a process started, in clock ticks since boot (proc_pid_stat(5), field 22).
func StartTime(pid int) (uint64, error) {
	_, start, err := ProcessState(pid)
	return start, err
}

// ProcessState is the state of a process ('R', 'S', 'Z', …) and when it started, see StartTime.
func ProcessState(pid int) (state byte, start uint64, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	p, ok := parseStat(data)
	if !ok {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %q is not its format", pid, data)
	}
	return p.state, p.start, nil
}

// PidfdOpenSame opens a process that is known by PID and start time; os.ErrProcessDone if
// the PID is another's now, or nobody's.
func PidfdOpenSame(pid int, start uint64) (*os.File, error) {
	f, err := PidfdOpen(pid)
	if err != nil {
		return nil, errors.Join(os.ErrProcessDone, err)
	}
	if now, err := StartTime(pid); err != nil || now != start {
		f.Close()
		return nil, os.ErrProcessDone
	}
	return f, nil
}

// HardLimit is this process's hard limit of a resource (an RLIMIT_… number).
func HardLimit(resource uint32) (uint64, error) {
	var l unix.Rlimit
	err := unix.Getrlimit(int(resource), &l)
	return l.Max, os.NewSyscallError("getrlimit", err)
}
