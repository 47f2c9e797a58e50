package initproc

import (
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// server forks an init for each request. A fork takes a tenth of the start of a Go program, and has one thread:
// nothing takes the processor from it in a system call, and execve(2) has no other threads to end.
//
// Go cannot fork a program with threads: a lock that another one holds at that moment is held for ever in the child.
// So the server is itself a fork, which proves that it can work before it says that it is there, and is forked again if not. It has one thread
// and waits in system calls alone, so that each of its forks begins in the same, proved state. What comes
// after must not block in the Go runtime, for there is no thread to go on with: the init has no goroutines, channels
// or timers, and no collection (initmsg.Env).
//
// It knows nothing of containers: messages are read by the forks. Like them it is not dumpable.
type server struct {
	request [64]byte
	rights  [256]byte
	told    *uint32 // shared with the forks: the number of the last one that the parent was told of
	forks   uint32
	// proc is a private procfs that the forks use too. It is of the server's PID namespace, in which they are
	// themselves; in a user namespace of their own they need one that belongs to it.
	proc  int
	ahead *standby // of a fork that was made ahead, else nil
}

const (
	serverSocket = initmsg.ServerFloor
	serverPIDNS  = initmsg.ServerFloor + 1 // the server's own PID namespace
	serverProc   = initmsg.ServerFloor + 2
)

// serve returns nil in each fork, and in the server only an error.
func (s *setup) serve() error {
	s.stage = "server"
	sv := &server{proc: -1}
	ns, err := unix.Open("/proc/self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("open", "/proc/self/ns/pid", err)
	}
	proc, err := newProc()
	if err != nil {
		return err
	}
	for _, fd := range [][2]int{{s.sync, serverSocket}, {ns, serverPIDNS}, {proc, serverProc}} {
		if err := unix.Dup3(fd[0], fd[1], unix.O_CLOEXEC); err != nil {
			return wrap("dup", itoa(fd[0]), err)
		}
	}
	s.sync = serverSocket
	// The files of a request get the lowest free numbers, which are those that the init expects them at.
	if err := closeExcept(0, []int{serverSocket, serverPIDNS, serverProc}); err != nil {
		return err
	}
	page, err := unix.Mmap(-1, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return wrap("mmap", "", err)
	}
	sv.told = (*uint32)(unsafe.Pointer(&page[0]))
	unix.Umask(s.umask)
	// The forks find nothing ignored or blocked then.
	if err := resetSignals(); err != nil {
		return err
	}
	if err := setName("cri-shim-init"); err != nil {
		return err
	}
	pid, err := sv.forkServer((*uint32)(unsafe.Pointer(&page[4])))
	if err != nil {
		return err
	}
	if pid != 0 {
		sv.reply(pid, 0)
		syscall.Exit(0)
	}
	if sv.reply(unix.Getpid(), 0) != 0 {
		syscall.Exit(1)
	}
	s.server = sv
	return sv.loop()
}

// loop returns nil in each fork. The server ends with its parent.
func (sv *server) loop() error {
	for {
		r, errno := sv.receive()
		if errno != 0 {
			syscall.Exit(0)
		}
		pid := 0
		if r.Files > 0 {
			pid, errno = sv.fork(&r)
			if pid == 0 && errno == 0 {
				return sv.forked(&r)
			}
		} else {
			errno = unix.EINVAL
		}
		if sv.reply(pid, errno) != 0 {
			syscall.Exit(0) // the fork, if any, ends too
		}
		atomic.StoreUint32(sv.told, sv.forks)
		if r.PIDNamespace {
			if _, _, e := unix.RawSyscall(unix.SYS_SETNS, serverPIDNS, unix.CLONE_NEWPID, 0); e != 0 {
				syscall.Exit(1)
			}
		}
		unix.RawSyscall(unix.SYS_CLOSE_RANGE, 0, serverSocket-1, 0)
	}
}

// forked closes what is not the fork's.
func (sv *server) forked(r *initmsg.ForkRequest) error {
	if r.Standby {
		return sv.standBy(r.CloneFlags)
	}
	if r.CloneFlags&unix.CLONE_NEWUSER != 0 {
		return closeExcept(r.Files, nil)
	}
	sv.proc = serverProc
	return closeExcept(r.Files, []int{serverProc})
}

func (sv *server) fork(r *initmsg.ForkRequest) (int, unix.Errno) {
	args := cloneArgs{flags: r.CloneFlags | unix.CLONE_PARENT}
	if r.Standby {
		args.flags &^= unix.CLONE_NEWNS // which comes later, see standby
	}
	next := uintptr(r.Files)
	if r.Cgroup {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(next)
		next++
	}
	if r.PIDNamespace {
		if _, _, e := unix.RawSyscall(unix.SYS_SETNS, next, unix.CLONE_NEWPID, 0); e != 0 {
			return 0, e
		}
	}
	sv.forks++
	return clone(&args)
}

// receive waits for a request. Its files begin at descriptor 0.
func (sv *server) receive() (r initmsg.ForkRequest, errno unix.Errno) {
	iov := unix.Iovec{Base: &sv.request[0]}
	iov.SetLen(len(sv.request))
	msg := unix.Msghdr{Iov: &iov, Control: &sv.rights[0]}
	msg.SetIovlen(1)
	for {
		msg.SetControllen(len(sv.rights))
		n, _, e := unix.RawSyscall(unix.SYS_RECVMSG, serverSocket, uintptr(unsafe.Pointer(&msg)), 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return r, e
		}
		if n == 0 {
			return r, unix.EPIPE
		}
		got := 0
		if msg.Controllen > 0 {
			h := (*unix.Cmsghdr)(unsafe.Pointer(&sv.rights[0]))
			got = (int(h.Len) - unix.CmsgLen(0)) / 4
		}
		r, err := initmsg.DecodeForkRequest(sv.request[:n])
		if err != nil || r.Descriptors() != got || msg.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			return initmsg.ForkRequest{}, 0
		}
		return r, 0
	}
}

func (sv *server) reply(pid int, errno unix.Errno) unix.Errno {
	var buf [initmsg.ForkReplySize]byte
	r := initmsg.ForkReply{PID: int32(pid), Errno: uint32(errno)}
	b := r.Append(buf[:0])
	for {
		_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, serverSocket, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
		if e != unix.EINTR {
			return e
		}
	}
}

// executing says that the workload is about to be executed. A fork waits until the parent was told of it, or
// a workload could run that nobody knows of: the server may die between the two.
func (s *setup) executing(name string) error {
	const wait, limit = 1e5, 5e9 // nanoseconds
	var begin, now unix.Timespec
	for s.server != nil && int32(atomic.LoadUint32(s.server.told)-s.server.forks) < 0 {
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
		if begin.Nano() == 0 {
			begin = now
		}
		if now.Nano()-begin.Nano() >= limit {
			return text("the server died before it told the parent of this process")
		}
		unix.Nanosleep(&unix.Timespec{Nsec: wait}, nil)
	}
	if s.server != nil {
		// The workload could be taken over before it is executed, and the page is that of all forks.
		if _, _, e := unix.RawSyscall(unix.SYS_MUNMAP, uintptr(unsafe.Pointer(s.server.told)), uintptr(pageSize), 0); e != 0 {
			return wrap("munmap", "", e)
		}
	}
	s.report(initmsg.KindExecute, text(name))
	return nil
}

// States of a server that has been forked, in a word that it shares with the process that forked it.
const (
	unproved uint32 = iota
	proved
	givenUp
)

const (
	firstProof = 20e6 // nanoseconds for a first server to prove itself; each next one has twice as many
	allProofs  = 2e9  // no next one after that: the parent waits five seconds
	// An unproved server whose parent was killed is ended by the kernel.
	provingSeconds = 5
)

// forkServer forks the server, which gets 0, until one proves itself. Another thread that is stopped in the middle of
// something for long, as on a machine with emulated processors, holds its locks in one fork in five; not in the next one.
func (sv *server) forkServer(state *uint32) (int, error) {
	for limit, total := int64(firstProof), int64(0); total < allProofs && !sv.abandoned(); limit *= 2 {
		atomic.StoreUint32(state, unproved)
		pid, errno := clone(&cloneArgs{flags: unix.CLONE_PARENT})
		if errno != 0 {
			return 0, wrap("clone", "", errno)
		}
		if pid == 0 {
			return 0, proveIn(state)
		}
		if sv.awaitProof(state, limit) {
			return pid, nil
		}
		unix.Kill(pid, unix.SIGKILL)
		total += limit
	}
	return 0, text("no fork of this process could work")
}

// awaitProof is false for a server that has not proved itself in time, or that nobody waits for any more.
func (sv *server) awaitProof(state *uint32, limit int64) bool {
	const wait = 1e5
	for waited := int64(0); waited < limit && !sv.abandoned(); waited += wait {
		if atomic.LoadUint32(state) == proved {
			return true
		}
		unix.Nanosleep(&unix.Timespec{Nsec: wait}, nil)
	}
	return !atomic.CompareAndSwapUint32(state, unproved, givenUp)
}

// abandoned says that the parent has closed the connection.
func (sv *server) abandoned() bool {
	n, _, err := unix.Recvfrom(serverSocket, sv.request[:1], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err == nil && n == 0
}

// proveIn returns in a server that works and has said so in the shared word.
func proveIn(state *uint32) error {
	if errno := endIn(provingSeconds); errno != 0 {
		return wrap("setitimer", "", errno)
	}
	prove()
	rehearse()
	if err := dropProgram(); err != nil {
		return err
	}
	if errno := endIn(0); errno != 0 {
		return wrap("setitimer", "", errno)
	}
	if !atomic.CompareAndSwapUint32(state, unproved, proved) {
		syscall.Exit(1)
	}
	return nil
}

// endIn has the kernel end this process after some seconds; 0 calls that off.
func endIn(seconds int64) unix.Errno {
	var byDefault sigaction
	if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGALRM), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0); e != 0 {
		return e
	}
	timer := [4]int64{2: seconds} // struct itimerval
	_, _, e := unix.RawSyscall(unix.SYS_SETITIMER, unix.ITIMER_REAL, uintptr(unsafe.Pointer(&timer)), 0)
	return e
}

// prove uses the parts of the Go runtime that have locks: the heap and the way through a system call. Where
// one is held for ever this does not return.
func prove() {
	for size := 8; size <= 256<<10; size *= 2 {
		if proof = make([]byte, size); len(proof) != size {
			syscall.Exit(1)
		}
	}
	unix.Getwd()
}

var proof []byte

// rehearse does what every fork does at first, so that it finds memory of each size at hand: what it has to ask of the heap
// would cost it a dozen pages of the Go runtime's own.
func rehearse() {
	for _, err := range []error{text(""), wrap("a", "b", unix.ENOENT), needs("5.2", unix.ENOSYS), notFound{}} {
		proof = initmsg.EncodeReport(&initmsg.Report{Errno: errnoOf(err), Text: err.Error()})
	}
	for n := 8; n <= 512; n += 8 {
		proof = make([]byte, n)
		if pointers = make([]*byte, n/8); len(pointers) != len(proof)/8 {
			syscall.Exit(1)
		}
	}
}

var pointers []*byte

// dropProgram lets go of the pages of the program that the start has touched, and the server mostly does not: they stay
// in the file, whence forks take theirs anyway (mmap'd files are not copied by fork(2)).
func dropProgram() error {
	fd, err := openIn(serverProc, "self/maps", unix.O_RDONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return wrap("open", "maps", err)
	}
	defer unix.Close(fd)
	maps, err := readAll(fd, make([]byte, 16<<10))
	if err != nil {
		return wrap("read", "maps", err)
	}
	for line := range strings.SplitSeq(string(maps), "\n") {
		// "00401000-004c3000 r-xp 00001000 00:01 1029  /memfd:cri-shim-init (deleted)"
		f := strings.Fields(line)
		if len(f) < 6 || f[1][1] != '-' || f[5][0] != '/' {
			continue // written to, or not of a file
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			return wrap("parse", "maps", err)
		}
		end, err := strconv.ParseUint(to, 16, 64)
		if err != nil {
			return wrap("parse", "maps", err)
		}
		if _, _, e := unix.RawSyscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED); e != 0 {
			return wrap("madvise", "", e)
		}
	}
	return nil
}

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// clone is fork(2) with flags; 0 is the child. CLONE_PARENT gives it the server's own exit signal.
func clone(args *cloneArgs) (int, unix.Errno) {
	pid, _, e := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	return int(pid), e
}

func setName(name string) error {
	b := [16]byte{}
	copy(b[:15], name)
	return wrap("prctl PR_SET_NAME", "", unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0))
}
