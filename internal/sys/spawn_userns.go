package sys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// HostSetup is what Spawn does with the present rights for a program in a user namespace, which has none outside of it.
type HostSetup struct {
	// CgroupTasks are cgroup v1 files that the process is moved by.
	CgroupTasks []string
	// Dir becomes the working directory; "" leaves it.
	Dir string
	// StdioUID becomes the owner of the first three Files, so that it can open them by /dev/stdout and the like;
	// nil leaves them.
	StdioUID *uint32
	// OOMScoreAdj is set as well as it can be.
	OOMScoreAdj *int32
	// Rlimits are raised where they are below.
	Rlimits []Rlimit
}

// Rlimit is a limit by its RLIMIT_… number.
type Rlimit struct {
	Resource uint32
	Hard     uint64
}

// joiner is all that the joining process and its child need: numbers and pointers to what is already made, since they
// can only make system calls.
type joiner struct {
	self      cloneArgs // of the joining process
	child     cloneArgs
	tasks     []*byte
	zero      [1]byte // "0"
	dir       *byte
	oomFile   *byte
	oom       []byte
	rlimits   []unix.Rlimit
	resources []uint32
	pidNS     int
	timeNS    int
	userNS    int
	newTime   bool
	offsets   []byte
	proc      int // private procfs
	offsetsAt *byte
	open      unix.OpenHow
	session   bool
	files     []int
	exe       int
	empty     [1]byte
	argv      **byte
	envp      **byte
	report    int
	record    [2]uint64
}

// Steps of a joiner, as they report errors.
const (
	stepStarted = iota
	stepCgroup
	stepDir
	stepRlimit
	stepPID
	stepTime
	stepOffsets
	stepUser
	stepNewTime
	stepWriteOffsets
	stepClone
	stepSession
	stepGroups
	stepUID
	stepFiles
	stepExec
)

var stepNames = [...]string{
	"", "enter the cgroup", "chdir", "raise a resource limit", "join the PID namespace", "join the time namespace",
	"open timens_offsets", "join the user namespace", "make a time namespace", "write timens_offsets", "clone", "setsid", "setgroups", "become root of the user namespace", "dup", "execute",
}

// spawnJoined is Spawn by way of a process without threads, which alone can enter a user or a time namespace (setns(2)),
// and whose child is in a new time namespace with its first instruction: a process that makes one stays outside, and the
// offsets can be set as long as nobody is in it (time_namespaces(7)). It
// is a fork of this one: it is not dumpable, is in no PID namespace but ours, and ends once it has made its child ours
// (CLONE_PARENT), so that there is nothing of it to be had from inside.
func spawnJoined(exe int, a SpawnAttr) (int, *os.File, error) {
	if err := ownStdio(a); err != nil {
		return 0, nil, err
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, nil, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(p[0])
	j, err := newJoiner(exe, a, p[1])
	unix.Close(p[1])
	if err != nil {
		return 0, nil, err
	}
	syscall.ForkLock.Lock()
	pid, errno := j.fork()
	syscall.ForkLock.Unlock()
	j.close()
	keepAliveAll(a.Files...)
	keepAliveAll(a.Cgroup, a.PIDNamespace, a.UserNamespace, a.TimeNamespace)
	runtime.KeepAlive(j)
	if errno != 0 {
		return 0, nil, fmt.Errorf("fork to join namespaces: %w", errno)
	}
	child, err := readJoiner(p[0])
	WaitChild(pid)
	if err != nil {
		if child > 0 {
			WaitChild(child)
		}
		return 0, nil, fmt.Errorf("start %s: %w", a.Args[0], err)
	}
	// Nobody but this process can have reaped it, so its number is still its own.
	pidfd, err := PidfdOpen(child)
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: it has ended already: %w", a.Args[0], err)
	}
	return child, pidfd, nil
}

// ownStdio gives the first three files to the user that the program is for, as the init does where it has the right.
func ownStdio(a SpawnAttr) error {
	if a.Host.StdioUID == nil {
		return nil
	}
	for _, f := range a.Files[:min(3, len(a.Files))] {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
			continue // a node of /dev belongs to all
		}
		err := unix.Fchown(int(f.Fd()), int(*a.Host.StdioUID), -1)
		// EINVAL: an anonymous inode.
		if err != nil && err != unix.EINVAL && err != unix.EPERM && err != unix.EROFS {
			return fmt.Errorf("chown stdio to %d: %w", *a.Host.StdioUID, err)
		}
	}
	return nil
}

func newJoiner(exe int, a SpawnAttr, report int) (_ *joiner, err error) {
	j := &joiner{
		exe: exe, session: a.Session, zero: [1]byte{'0'}, pidNS: -1, timeNS: -1, userNS: -1,
		// The child's signal at its end is the joiner's (clone(2), CLONE_PARENT).
		self:  cloneArgs{flags: unix.CLONE_CLEAR_SIGHAND, exitSignal: uint64(unix.SIGCHLD)},
		child: cloneArgs{flags: a.CloneFlags&^unix.CLONE_NEWTIME | unix.CLONE_CLEAR_SIGHAND | unix.CLONE_PARENT},
	}
	if err := j.timeNamespace(a); err != nil {
		return nil, err
	}
	if a.Cgroup != nil {
		j.self.flags |= unix.CLONE_INTO_CGROUP
		j.self.cgroup = uint64(a.Cgroup.Fd())
	}
	for ns, f := range map[*int]*os.File{&j.pidNS: a.PIDNamespace, &j.timeNS: a.TimeNamespace, &j.userNS: a.UserNamespace} {
		if f != nil {
			*ns = int(f.Fd())
		}
	}
	if err := j.setup(a.Host); err != nil {
		return nil, err
	}
	argv, err := syscall.SlicePtrFromStrings(a.Args)
	if err != nil {
		return nil, err
	}
	envp, err := syscall.SlicePtrFromStrings(a.Env)
	if err != nil {
		return nil, err
	}
	j.argv, j.envp = &argv[0], &envp[0]
	// Out of the way of the numbers that the program gets.
	if j.report, err = unix.FcntlInt(uintptr(report), unix.F_DUPFD_CLOEXEC, exeFloor); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	for _, f := range a.Files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, exeFloor)
		if err != nil {
			j.close()
			return nil, os.NewSyscallError("fcntl", err)
		}
		j.files = append(j.files, fd)
	}
	return j, nil
}

func (j *joiner) timeNamespace(a SpawnAttr) (err error) {
	if j.newTime = a.CloneFlags&unix.CLONE_NEWTIME != 0; !j.newTime || a.TimeOffsets == "" {
		return nil
	}
	if j.proc, err = privateProc(); err != nil {
		return err
	}
	j.offsets = []byte(a.TimeOffsets)
	j.offsetsAt, _ = syscall.BytePtrFromString("self/timens_offsets")
	j.open = unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
	}
	return nil
}

func (j *joiner) setup(h HostSetup) (err error) {
	for _, path := range h.CgroupTasks {
		p, err := syscall.BytePtrFromString(path)
		if err != nil {
			return err
		}
		j.tasks = append(j.tasks, p)
	}
	if h.Dir != "" {
		if j.dir, err = syscall.BytePtrFromString(h.Dir); err != nil {
			return err
		}
	}
	if h.OOMScoreAdj != nil {
		j.oomFile, _ = syscall.BytePtrFromString("/proc/self/oom_score_adj")
		j.oom = fmt.Append(nil, *h.OOMScoreAdj)
	}
	for _, l := range h.Rlimits {
		var now unix.Rlimit
		if err := unix.Getrlimit(int(l.Resource), &now); err != nil {
			return os.NewSyscallError("getrlimit", err)
		}
		if l.Hard > now.Max {
			j.resources = append(j.resources, l.Resource)
			j.rlimits = append(j.rlimits, unix.Rlimit{Cur: now.Cur, Max: l.Hard})
		}
	}
	return nil
}

// close closes what newJoiner opened.
func (j *joiner) close() {
	unix.Close(j.report)
	for _, fd := range j.files {
		unix.Close(fd)
	}
}

// readJoiner reads the reports to their end: the program is executed, or something went wrong. child is known as soon as
// there is one.
func readJoiner(fd int) (child int, err error) {
	const size = int(unsafe.Sizeof(joiner{}.record))
	buf := make([]byte, 0, 4*size)
	for {
		n, rerr := unix.Read(fd, buf[len(buf):cap(buf)])
		if errors.Is(rerr, unix.EINTR) {
			continue
		}
		if rerr != nil {
			return child, os.NewSyscallError("read", rerr)
		}
		if n == 0 {
			break
		}
		buf = buf[:len(buf)+n]
	}
	for ; len(buf) >= size; buf = buf[size:] {
		step, value := binary.NativeEndian.Uint64(buf), binary.NativeEndian.Uint64(buf[8:])
		if step == stepStarted {
			child = int(value)
		} else {
			err = fmt.Errorf("%s: %w", stepNames[step], syscall.Errno(value))
		}
	}
	if child == 0 && err == nil {
		err = errors.New("the process that joins its namespaces was killed")
	}
	return child, err
}

// fork makes the joining process. In it there is one thread and no Go runtime, see idleChild.
//
//go:nosplit
//go:noinline
//go:norace
func (j *joiner) fork() (int, syscall.Errno) {
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&j.self)), unsafe.Sizeof(j.self), 0)
	if errno != 0 || pid != 0 {
		return int(pid), errno
	}
	unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0, 0)
	if step, errno := j.join(); errno != 0 {
		j.fail(step, errno)
	}
	pid, _, errno = unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&j.child)), unsafe.Sizeof(j.child), 0)
	if errno != 0 {
		j.fail(stepClone, errno)
	}
	if pid == 0 {
		step, errno := j.execute()
		j.fail(step, errno)
	}
	j.fail(stepStarted, syscall.Errno(pid))
	return 0, 0
}

// fail reports and ends this process.
//
//go:nosplit
//go:noinline
//go:norace
func (j *joiner) fail(step uint64, value syscall.Errno) {
	j.record[0], j.record[1] = step, uint64(value)
	unix.RawSyscall(unix.SYS_WRITE, uintptr(j.report), uintptr(unsafe.Pointer(&j.record)), unsafe.Sizeof(j.record))
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// join does what needs the host's rights, and gives them up with the last steps. The cgroup is entered first, so that
// nothing that comes is unlimited.
//
//go:nosplit
//go:noinline
//go:norace
func (j *joiner) join() (uint64, syscall.Errno) {
	for _, path := range j.tasks {
		if errno := writeRaw(path, &j.zero[0], 1); errno != 0 {
			return stepCgroup, errno
		}
	}
	if j.dir != nil {
		if _, _, errno := unix.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(j.dir)), 0, 0); errno != 0 {
			return stepDir, errno
		}
	}
	if j.oomFile != nil {
		writeRaw(j.oomFile, &j.oom[0], uintptr(len(j.oom))) // the init tries again, and warns
	}
	for i := range j.rlimits {
		_, _, errno := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, uintptr(j.resources[i]), uintptr(unsafe.Pointer(&j.rlimits[i])), 0, 0, 0)
		if errno != 0 {
			return stepRlimit, errno
		}
	}
	if j.pidNS >= 0 {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETNS, uintptr(j.pidNS), unix.CLONE_NEWPID, 0); errno != 0 {
			return stepPID, errno
		}
	}
	if j.timeNS >= 0 {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETNS, uintptr(j.timeNS), unix.CLONE_NEWTIME, 0); errno != 0 {
			return stepTime, errno
		}
	}
	// The file is the node's root's, as this process is not dumpable.
	var offsets uintptr
	if len(j.offsets) > 0 {
		var errno syscall.Errno
		offsets, _, errno = unix.RawSyscall6(unix.SYS_OPENAT2, uintptr(j.proc), uintptr(unsafe.Pointer(j.offsetsAt)),
			uintptr(unsafe.Pointer(&j.open)), unsafe.Sizeof(j.open), 0, 0)
		if errno != 0 {
			return stepOffsets, errno
		}
	}
	if j.userNS >= 0 {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETNS, uintptr(j.userNS), unix.CLONE_NEWUSER, 0); errno != 0 {
			return stepUser, errno
		}
	}
	if j.newTime {
		if _, _, errno := unix.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWTIME, 0, 0); errno != 0 {
			return stepNewTime, errno
		}
	}
	if len(j.offsets) > 0 {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, offsets, uintptr(unsafe.Pointer(&j.offsets[0])), uintptr(len(j.offsets)))
		if errno != 0 {
			return stepWriteOffsets, errno
		}
	}
	return 0, 0
}

//go:nosplit
//go:noinline
//go:norace
func writeRaw(path, data *byte, n uintptr) syscall.Errno {
	cwd := unix.AT_FDCWD
	fd, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(cwd), uintptr(unsafe.Pointer(path)), unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	_, _, errno = unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(data)), n)
	unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	return errno
}

// execute is what the child does. Its real and effective group stay as Spawn has made them differ, so that execve(2) makes
// it not dumpable; the init changes them.
//
//go:nosplit
//go:noinline
//go:norace
func (j *joiner) execute() (uint64, syscall.Errno) {
	if j.session {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
			return stepSession, errno
		}
	}
	if j.userNS >= 0 {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			return stepGroups, errno
		}
		// Or execve(2) would take all capabilities away.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); errno != 0 {
			return stepUID, errno
		}
	}
	for i, fd := range j.files {
		if _, _, errno := unix.RawSyscall(unix.SYS_DUP3, uintptr(fd), uintptr(i), 0); errno != 0 {
			return stepFiles, errno
		}
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(j.exe), uintptr(unsafe.Pointer(&j.empty)),
		uintptr(unsafe.Pointer(j.argv)), uintptr(unsafe.Pointer(j.envp)), unix.AT_EMPTY_PATH, 0)
	return stepExec, errno
}
